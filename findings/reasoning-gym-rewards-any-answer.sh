#!/usr/bin/env bash
# reasoning-gym 0.1.25: two tasks give their full reward to wrong answers, and one of them to any answer.
#
# The package makes tasks and scores answers, as a reward for GRPO and as an evaluation. game_of_life_halting
# asks whether a board dies out, and keeps the answer as the text "True" or "False". Its scorer compares
# the truth of both texts, and every text but the empty one is true. gsm_symbolic takes the first
# number of an answer, by a pattern that cannot see a minus sign at its start and stops at a comma.
# chain_sum gives most of its reward to an answer that has the right digits in it. A model is paid for nothing
# in the first task, and learns in the others that signs do not count. Nothing warns.
#
# Seen for 50 questions each (task, answer: mean reward):
#   game_of_life_halting, the right answer    1.00
#   game_of_life_halting, the opposite        1.00
#   game_of_life_halting, "I do not know"     1.00
#   gsm_symbolic, the right answer            1.00
#   gsm_symbolic, minus the right answer      1.00
#   gsm_symbolic, 1,250 where 1250 is right   0.01
#   chain_sum, minus the right answer         0.72
#   decimal_chain_sum, minus the right answer 0.00
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --quiet reasoning-gym==0.1.25
cd "$work"
"$work/env/bin/python" - 2> log <<'PYTHON' || { cat log; exit 1; }
import reasoning_gym


def mean_reward(task, answer_to):
    questions = reasoning_gym.create_dataset(task, size=50, seed=7)
    entries = list(questions)
    rewards = [questions.score_answer(answer_to(entry["answer"]), entry) for entry in entries]
    assert len(rewards) == 50
    return sum(rewards) / len(rewards)


def same(answer):
    return answer


def opposite(answer):
    return {"True": "False", "False": "True"}[answer]


def minus(answer):
    return f"-{answer}"


def with_comma():
    questions = reasoning_gym.create_dataset("gsm_symbolic", size=1, seed=7)
    entry = {**questions[0], "answer": "1250"}
    assert questions.score_answer("1250", entry) == 1
    return questions.score_answer("1,250", entry)


answers = {entry["answer"] for entry in reasoning_gym.create_dataset("game_of_life_halting", size=50, seed=7)}
assert answers == {"True", "False"}
seen = {
    "game_of_life_halting, the right answer": mean_reward("game_of_life_halting", same),
    "game_of_life_halting, the opposite": mean_reward("game_of_life_halting", opposite),
    'game_of_life_halting, "I do not know"': mean_reward("game_of_life_halting", lambda _: "I do not know"),
    "gsm_symbolic, the right answer": mean_reward("gsm_symbolic", same),
    "gsm_symbolic, minus the right answer": mean_reward("gsm_symbolic", minus),
    "gsm_symbolic, 1,250 where 1250 is right": with_comma(),
    "chain_sum, minus the right answer": mean_reward("chain_sum", minus),
    "decimal_chain_sum, minus the right answer": mean_reward("decimal_chain_sum", minus),
}
for name, reward in seen.items():
    print(f"{name:41} {reward:.2f}")
expected = [1, 1, 1, 1, 1, 0.01, 0.72, 0]
assert all(abs(a - b) < 0.05 for a, b in zip(seen.values(), expected, strict=True)), "changed"
PYTHON

#!/usr/bin/env bash
# rouge-chinese 1.0.3: an answer that repeats itself without end has a ROUGE-1 of 1.
#
# LLaMA-Factory and other tools for fine-tuning score answers with this library. ROUGE-N counts a word of
# the answer as often as the answer has it, so that a repetition costs precision. The library compares
# sets of words unless it gets exclusive=False, an argument that its README does not name. A model that
# repeats its answer until the token limit, a common fault of fine-tuning, scores as well as one that
# stops, and one word of the reference repeated scores like the word. ROUGE-L counts rightly. rouge 1.0.1,
# from which the library is made, has the same default, and its ROUGE-L is 1 too. Nothing warns. Google's
# rouge-score counts all words.
#
# Seen for the reference "the refund takes three days" (answer: ROUGE-1, ROUGE-2, ROUGE-L by
# rouge-chinese; ROUGE-1 with exclusive=False; ROUGE-1 by rouge-score 0.1.2):
#   the reference once      1.00 1.00 1.00  1.00  1.00
#   the reference 20 times  1.00 0.89 0.10  0.10  0.10
#   "days" once             0.33 0.00 0.33  0.33  0.33
#   "days" 100 times        0.33 0.00 0.02  0.02  0.02
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --quiet rouge-chinese==1.0.3 rouge-score==0.1.2 numpy==2.4.6
cd "$work"
"$work/env/bin/python" - <<'PYTHON'
import warnings

from rouge_chinese import Rouge
from rouge_score.rouge_scorer import RougeScorer

REFERENCE = "the refund takes three days"
ANSWERS = {
    "the reference once": REFERENCE,
    "the reference 20 times": " ".join([REFERENCE] * 20),
    '"days" once': "days",
    '"days" 100 times': " ".join(["days"] * 100),
}
other = RougeScorer(["rouge1"])
seen = {}
with warnings.catch_warnings():
    warnings.simplefilter("error", UserWarning)
    for name, answer in ANSWERS.items():
        scores = Rouge().get_scores(answer, REFERENCE)[0]
        counted = Rouge(exclusive=False).get_scores(answer, REFERENCE)[0]["rouge-1"]["f"]
        seen[name] = scores["rouge-1"]["f"], counted, other.score(REFERENCE, answer)["rouge1"].fmeasure
        print(f"{name:22}", " ".join(f"{scores[key]['f']:.2f}" for key in ("rouge-1", "rouge-2", "rouge-l")),
              *(f"{score:.2f}" for score in seen[name][1:]), sep="  ")
for default, counted, expected in seen.values():
    assert abs(counted - expected) < 1e-6
assert seen["the reference 20 times"][0] > 0.99 > 0.2 > seen["the reference 20 times"][1], "changed"
assert abs(seen['"days" 100 times'][0] - seen['"days" once'][0]) < 1e-6, "changed"
PYTHON

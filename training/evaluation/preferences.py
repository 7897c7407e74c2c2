"""Evaluation of a preference method: does the trained model prefer the better answers?

The implicit reward of an answer is beta times its log-probability under the trained model minus
that under the base (Rafailov et al., 2023). A pair is right if the better answer has the higher
reward. A reward model's own score takes the place of the implicit reward; GRPO is judged by its
reward functions on greedy answers.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from training.config import EvaluationConfig, TrainingConfig
from training.config.method import GrpoConfig
from training.data.prepare import dataset_rows
from training.data.row import Row
from training.evaluation.decoding import batches_by_length, fitting_batch_size, greedy_answers
from training.evaluation.judged_answers import judge_answers
from training.evaluation.kept import Kept, ask_rest, kept_answers
from training.heldout import require_heldout
from training.methods import find_method, require_kinds
from training.methods.rewards import load_rewards
from training.model import load_base, load_tuned, quiet_libraries, resolve_dtype
from tuneline.core.artifact import Artifact, canonical_digest, new_artifact, open_artifact
from tuneline.core.dataset import HELDOUT_FILE
from tuneline.core.progress import progress
from tuneline.core.statistics import (
    bootstrap_interval,
    count_pairs,
    mcnemar_p,
    paired_share_interval,
    wilson_interval,
)
from tuneline.models.source import ModelSource
from tuneline.models.stop_tokens import served_stop_ids
from tuneline.models.template import dataset_settings
from tuneline.models.tokenizer import load_tokenizer

ROWS_FILE = "preferences.jsonl"
SUMMARY_FILE = "preferences.json"

Figures = dict[str, Any]


def evaluate_preferences(
    config: EvaluationConfig,
    training: TrainingConfig,
    dataset: Artifact,
    base: ModelSource,
    trained: Artifact,
    out: Path,
    *,
    relative_to: Path = Path(),
) -> Artifact:
    """Compare the trained model with its base on held-out rows, and write every row's figures.

    With a judge, answers of KTO and GRPO are also compared by it; those of other methods are
    compared in the evaluation report.

    Args:
        relative_to: The directory that the paths of the method's files start from.

    Raises:
        ArtifactError: `out` exists, or base and trained model cannot be loaded or do not fit.
        DataError: The held-out rows are not rows of the method, or cannot be compared.
        ConfigError: A reward function does not answer with numbers.
        ServerError: A request to the judge failed.
    """
    quiet_libraries()
    inputs = [dataset.as_input("dataset"), base.as_input("base"), trained.as_input("adapter")]
    training = training.model_copy(update={"method": training.method.resolved(relative_to)})
    recorded = config.model_dump(mode="json")
    with (
        kept_answers(out) as kept,
        new_artifact(out, "preferences", config=recorded, inputs=inputs) as draft,
    ):
        rows = dataset_rows(dataset, HELDOUT_FILE, config.num_rows)
        require_kinds(training.method, rows, HELDOUT_FILE)
        require_heldout(training, rows, HELDOUT_FILE)
        if training.method.type == "grpo":
            found, figures = _rewards(training, rows, base, trained, kept)
        else:
            measure = _scores if training.method.type == "reward" else _implicit
            found, figures = measure(training, rows, base, trained)
        if config.judge is not None and not training.method.has_expected_answers:
            figures["judge"] = judge_answers(
                config, config.judge, rows, dataset_settings(dataset), base, trained, draft.dir,
                kept,
            )  # fmt: skip
        lines = (json.dumps(entry, ensure_ascii=False) + "\n" for entry in found)
        (draft.dir / ROWS_FILE).write_text("".join(lines), encoding="utf-8")
        text = json.dumps(figures, indent=2) + "\n"
        (draft.dir / SUMMARY_FILE).write_text(text, encoding="utf-8")
        draft.metrics.update(figures)
    return open_artifact(out, kind="preferences")


def preference_figures(rewards: Sequence[tuple[float, float]]) -> Figures:
    """Return accuracy and margin of pairs of rewards, the better answer's first.

    Intervals are at 95 %: Wilson's of the accuracy, a bootstrap of the mean margin.
    """
    right = sum(better > worse for better, worse in rewards)
    margins = [better - worse for better, worse in rewards]
    return {
        "num_pairs": len(rewards),
        "accuracy": right / len(rewards),
        "accuracy_interval": wilson_interval(right / len(rewards), len(rewards)),
        "margin": math.fsum(margins) / len(margins),
        "margin_interval": bootstrap_interval(margins),
    }


def _implicit(
    training: TrainingConfig,
    rows: Sequence[Row],
    base: ModelSource,
    trained: Artifact,
) -> tuple[list[Figures], Figures]:
    """Measure implicit rewards; answers with labels are paired in order, a good and a bad one."""
    examples = _examples(training, trained, rows)
    tuned = load_tuned(base, trained, resolve_dtype("auto"))
    tuned_logprobs = _logprobs(tuned, examples, "trained model")
    with _without_adapter(tuned, base) as plain:
        base_logprobs = _logprobs(plain, examples, "base model")
    beta = float(training.method.model_dump()["beta"])
    found = [
        {
            "line": row.line,
            "rewards": [beta * (t - b) for t, b in zip(tuned_row, base_row, strict=True)],
            "logprobs": tuned_row,
            "base_logprobs": base_row,
            **({} if row.label is None else {"label": row.label}),
        }
        for row, tuned_row, base_row in zip(rows, tuned_logprobs, base_logprobs, strict=True)
    ]
    tuned_right = [better > worse for better, worse in _paired(found, "logprobs")]
    base_right = [better > worse for better, worse in _paired(found, "base_logprobs")]
    counts = count_pairs(base_right, tuned_right)
    return found, {
        **preference_figures(_paired(found, "rewards")),
        "likelier_base": sum(base_right) / len(base_right),
        "likelier": sum(tuned_right) / len(tuned_right),
        "likelier_difference_interval": paired_share_interval(counts),
        "likelier_p": mcnemar_p(counts.first_only, counts.second_only),
    }


def _paired(found: Sequence[Figures], name: str) -> list[tuple[float, float]]:
    if "label" not in found[0]:
        return [(entry[name][0], entry[name][1]) for entry in found]
    good = [entry[name][0] for entry in found if entry["label"]]
    bad = [entry[name][0] for entry in found if not entry["label"]]
    return list(zip(good, bad, strict=False))


def _scores(
    training: TrainingConfig,
    rows: Sequence[Row],
    base: ModelSource,
    trained: Artifact,
) -> tuple[list[Figures], Figures]:
    """Measure a reward model's scores of both answers of each pair."""
    examples = _examples(training, trained, rows)
    dtype = resolve_dtype("auto")
    model = load_tuned(base, trained, dtype, task_type="SEQ_CLS")
    # Without a padding token, the score is read at the last token of a row, as in training.
    model.config.get_text_config().pad_token_id = None

    def score(token_ids: list[int], _num_answer: int) -> float:
        ids = torch.tensor([token_ids], device=model.device)
        return float(model(input_ids=ids, use_cache=False).logits[0, 0])

    scores = _measured(examples, score, "reward model")
    # With the ids, a server can be asked for the same scores.
    found = [
        {"line": row.line, "rewards": pair, "token_ids": [ids for ids, _ in _sides(example)]}
        for row, pair, example in zip(rows, scores, examples, strict=True)
    ]
    figures = preference_figures([(better, worse) for better, worse in scores])
    return found, {**figures, "dtype": str(dtype).removeprefix("torch.")}


def _rewards(
    training: TrainingConfig,
    rows: Sequence[Row],
    base: ModelSource,
    trained: Artifact,
    kept: Kept,
) -> tuple[list[Figures], Figures]:
    """Measure the reward functions on greedy answers of the trained model and of its base."""
    options = training.method
    assert isinstance(options, GrpoConfig)  # noqa: S101 (for the type checker)
    tokenizer = load_tokenizer(trained.path)
    stop_ids = frozenset(served_stop_ids(trained.path, tokenizer))
    examples = _examples(training, trained, rows)
    prompts = [example.prompt_ids for example in examples]
    columns = {
        name: [example.columns[name] for example in examples] for name in examples[0].columns
    }
    functions = load_rewards(options.reward_funcs)
    weights = options.for_trl().get("reward_weights") or [1.0] * len(functions)
    max_new_tokens = options.max_completion_length
    tuned = load_tuned(base, trained, resolve_dtype("auto"))

    def answered(model: Any, *identity: str) -> list[tuple[str, float]]:
        answers = _answers(model, prompts, stop_ids, max_new_tokens, identity, kept)
        texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in answers]
        total = [0.0] * len(rows)
        for function, weight in zip(functions, weights, strict=True):
            values = function(
                prompts=[list(row.prompt) for row in rows],
                completions=[[{"role": "assistant", "content": text}] for text in texts],
                completion_ids=answers,
                trainer_state=None,
                log_extra=lambda _column, _values: None,
                log_metric=lambda _name, _value: None,
                **columns,
            )
            total = [sum_ + weight * value for sum_, value in zip(total, values, strict=True)]
        return list(zip(texts, total, strict=True))

    of_tuned = answered(tuned, base.digest, trained.digest)
    with _without_adapter(tuned, base) as plain:
        of_base = answered(plain, base.digest)
    found = [
        {"line": row.line, "answer": t[0], "reward": t[1], "base_answer": b[0], "base_reward": b[1]}
        for row, t, b in zip(rows, of_tuned, of_base, strict=True)
    ]
    differences = [t[1] - b[1] for t, b in zip(of_tuned, of_base, strict=True)]
    return found, {
        "num_rows": len(rows),
        "reward": math.fsum(value for _, value in of_tuned) / len(rows),
        "reward_base": math.fsum(value for _, value in of_base) / len(rows),
        "reward_difference": math.fsum(differences) / len(rows),
        "reward_difference_interval": bootstrap_interval(differences),
    }


def _examples(training: TrainingConfig, trained: Artifact, rows: Sequence[Row]) -> Sequence[Any]:
    """Render the rows as training did."""
    tokenizer = load_tokenizer(trained.path)
    stop_ids = served_stop_ids(trained.path, tokenizer)
    return find_method(training.method).render(training, tokenizer, rows, stop_ids, HELDOUT_FILE)


def _sides(example: Any) -> list[tuple[list[int], int]]:
    """Return the sequences of an example, each with the number of its answer's tokens."""
    if hasattr(example, "completion_ids"):
        answers = [example.completion_ids]
    else:
        answers = [example.chosen_ids, example.rejected_ids]
    return [(example.prompt_ids + answer, len(answer)) for answer in answers]


def _logprobs(model: Any, examples: Sequence[Any], what: str) -> list[list[float]]:
    """Return the summed log-probability of each answer, in nats."""

    def logprob(token_ids: list[int], num_answer: int) -> float:
        ids = torch.tensor([token_ids], device=model.device)
        logits = model(input_ids=ids, use_cache=False, logits_to_keep=num_answer + 1).logits
        logprobs = logits[0, :-1].float().log_softmax(-1)
        return float(logprobs.gather(1, ids[0, -num_answer:, None]).double().sum())

    return _measured(examples, logprob, what)


def _measured(
    examples: Sequence[Any], measure: Callable[[list[int], int], float], what: str
) -> list[list[float]]:
    """Measure every side of every example, one sequence at a time: without padding."""
    found: list[list[float]] = []
    with progress(f"preferences of the {what}", len(examples), "rows") as advance:
        for example in examples:
            with torch.inference_mode():
                found.append([measure(*side) for side in _sides(example)])
            advance(len(found))
    return found


def _answers(
    model: Any,
    prompts: Sequence[list[int]],
    stop_ids: frozenset[int],
    max_new_tokens: int,
    identity: Sequence[str],
    kept: Kept,
) -> list[list[int]]:
    """Return the tokens of each greedy answer, and generate only those that are not kept."""
    settings = [*identity, str(model.dtype), sorted(stop_ids), max_new_tokens]
    longest = max(len(prompt) for prompt in prompts) + max_new_tokens
    size = fitting_batch_size(model, longest)

    def ask(rest: Sequence[int], on_answer: Callable[[int, Any], None]) -> None:
        for batch in batches_by_length([len(prompts[index]) for index in rest], size):
            asked = [rest[place] for place in batch]
            texts = [prompts[index] for index in asked]
            found = greedy_answers(model, texts, stop_ids, max_new_tokens)
            for index, token_ids in zip(asked, found, strict=True):
                on_answer(index, token_ids)

    return ask_rest(kept, [canonical_digest([*settings, ids]) for ids in prompts], ask, "answers")


@contextlib.contextmanager
def _without_adapter(tuned: Any, base: ModelSource) -> Iterator[Any]:
    """Give the base: the adapter is off, or the base is loaded if training changed its weights."""
    if hasattr(tuned, "disable_adapter") and tuned.peft_config["default"].bias == "none":
        with tuned.disable_adapter():
            yield tuned
    else:
        yield load_base(base, resolve_dtype("auto")).eval()

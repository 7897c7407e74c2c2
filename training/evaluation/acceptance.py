"""How many tokens of a model's answers would a drafter have guessed? From the reference, exactly.

A server with speculative decoding lets a small model draft the next K tokens, and the model checks
them in one step: it takes the drafts up to the first wrong one, and adds a token of its own
(Leviathan, Kalman and Matias, Fast Inference from Transformers via Speculative Decoding, 2023). At
temperature 0 a draft is right if it is the model's own token, and until then the drafter reads the
model's tokens. So one pass of the drafter over a recorded answer says which drafts are right.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tuneline.core.artifact import Artifact, new_artifact, open_artifact
from tuneline.core.errors import ConfigError
from tuneline.core.progress import progress
from tuneline.core.reference import Continuation, read_reference
from tuneline.core.statistics import bootstrap_interval
from tuneline.models.source import ModelSource

ACCEPTANCE_FILE = "acceptance.json"
DRAFTS_FILE = "drafts.jsonl"
NUM_DRAFTED = (1, 2, 3, 4, 5, 6, 8)
"""Tokens that a step drafts, by which the figures are given."""


def measure_acceptance(reference: Artifact, drafter: ModelSource, out: Path) -> Artifact:
    """Measure how many tokens of the reference a drafter guesses, for each number of drafts.

    Args:
        reference: The recorded answers of the model that is to be sped up.
        drafter: A small model with the same tokens.

    Returns:
        An artifact of kind `acceptance`: the share of right tokens, and for each number of drafted
        tokens the mean tokens of a step, with its interval at 95 % over the answers. `drafts.jsonl`
        has 1 for each right token of an answer, from its second token on, and 0 for the others.

    Raises:
        ArtifactError: `out` exists, or the drafter cannot be loaded.
        ConfigError: The drafter has other tokens than the reference, or no answer has two tokens.
    """
    from training.model import load_base, quiet_libraries, resolve_dtype
    from tuneline.models.tokenizer import load_tokenizer

    quiet_libraries()
    answers = [one for one in read_reference(reference) if len(one.token_ids) > 1]
    if not answers:
        raise ConfigError(f"{reference.path}: no answer has two tokens; expected longer answers")
    _require_same_tokens(load_tokenizer(drafter.path), answers, reference, drafter)
    inputs = [reference.as_input("reference"), drafter.as_input("drafter")]
    with new_artifact(out, "acceptance", config={}, inputs=inputs) as draft:
        network = load_base(drafter, resolve_dtype("auto"), what=f"drafter {drafter.name}").eval()
        right = []
        with progress("drafting", len(answers), "answers") as advance:
            for done, answer in enumerate(answers, start=1):
                right.append(_right_drafts(network, answer))
                advance(done)
        lines = (json.dumps({"right": list(map(int, one))}) + "\n" for one in right)
        (draft.dir / DRAFTS_FILE).write_text("".join(lines), encoding="utf-8")
        figures = acceptance_figures(right)
        text = json.dumps(figures, indent=2) + "\n"
        (draft.dir / ACCEPTANCE_FILE).write_text(text, encoding="utf-8")
        draft.metrics.update(figures)
    return open_artifact(out, kind="acceptance")


def acceptance_figures(right: Sequence[Sequence[bool]]) -> dict[str, Any]:
    """Return the figures of drafts.

    Args:
        right: For each answer and each of its tokens but the first, which the prompt's own step
            gives, whether it is the drafter's most likely token.
    """
    num_tokens = sum(map(len, right))
    rows = []
    for num_drafted in NUM_DRAFTED:
        steps = [num_steps(one, num_drafted) for one in right]
        per_step = num_tokens / sum(steps)
        each = [len(one) / count for one, count in zip(right, steps, strict=True)]
        rows.append(
            {
                "num_drafted": num_drafted,
                "tokens_per_step": per_step,
                "interval": list(bootstrap_interval(each)),
                # A step with drafts takes 1 + K c steps' time: it gains if that is less.
                "most_cost": (per_step - 1) / num_drafted,
            }
        )
    return {
        "num_answers": len(right),
        "num_tokens": num_tokens,
        "share_right": math.fsum(map(sum, right)) / num_tokens,
        "drafted": rows,
    }


def num_steps(right: Sequence[bool], num_drafted: int) -> int:
    """Return the steps in which a model writes tokens whose drafts are right or wrong.

    Each step takes its drafts up to the first wrong one, and adds one token.
    """
    steps = place = 0
    while place < len(right):
        accepted = 0
        while accepted < num_drafted and place < len(right) and right[place]:
            accepted += 1
            place += 1
        place += 1
        steps += 1
    return steps


def _right_drafts(network: Any, answer: Continuation) -> list[bool]:
    """Return whether each token but the first is the drafter's most likely one."""
    import torch

    ids = [*answer.prompt_token_ids, *answer.token_ids]
    with torch.inference_mode():
        logits = network(input_ids=torch.tensor([ids], device=network.device)).logits[0]
    # The logits at a place are of the next token.
    start = len(answer.prompt_token_ids)
    guessed = logits[start : len(ids) - 1].argmax(dim=-1).tolist()
    return [own == token for own, token in zip(guessed, answer.token_ids[1:], strict=True)]


def _require_same_tokens(
    tokenizer: Any, answers: Sequence[Continuation], reference: Artifact, drafter: ModelSource
) -> None:
    for answer in answers:
        if tokenizer.decode(answer.token_ids, skip_special_tokens=True) != answer.text:
            raise ConfigError(
                f"drafter {drafter.name}: its tokenizer reads the answers of {reference.path} "
                "otherwise; expected a model with the tokens of the model that it drafts for",
                hint="Try: a smaller model of the same family",
            )

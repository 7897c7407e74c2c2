"""The reference: recorded greedy answers of base and adapter, in float32 and not merged.

Answers are drafted in batches. Each draft is then scored in one pass over prompt and draft, without
padding, and decoded further from the first token that is not the most likely one.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from training.config import ReferenceConfig
from training.data.prepare import dataset_rows
from training.data.row import Row
from training.evaluation.decoding import batches_by_length, fitting_batch_size, greedy_answers
from training.heldout import prompted_rows
from training.model import load_tuned, quiet_libraries
from tuneline.core.artifact import Artifact, new_artifact, open_artifact
from tuneline.core.dataset import HELDOUT_FILE
from tuneline.core.messages import calls_of
from tuneline.core.progress import progress
from tuneline.core.reference import (
    REFERENCE_FILE,
    Continuation,
    reference_date,
    write_continuations,
)
from tuneline.models.chat import (
    date_facts,
    prompt_token_ids,
    require_chat_template,
    set_template,
)
from tuneline.models.greedy import cached_scores, greedy_answer
from tuneline.models.source import ModelSource
from tuneline.models.stop_tokens import served_stop_ids
from tuneline.models.template import dataset_settings
from tuneline.models.tokenizer import load_tokenizer

NUM_REPEATED = 4
"""Prompts that are answered a second time, token by token, for the reference's own noise."""

Scored = tuple[list[int], list[float], list[dict[int, float]]]
"""Tokens of an answer, their log-probabilities, and the most likely tokens at each position."""


def build_reference(
    config: ReferenceConfig, dataset: Artifact, base: ModelSource, adapter: Artifact, out: Path
) -> Artifact:
    """Write the greedy continuations of the first held-out prompts.

    The metric `repeat_max_logprob_difference` is the reference's own noise: the largest difference,
    in nats, between a token's log-probability from one pass over prompt and answer together and
    from decoding token by token with a key-value cache.

    Raises:
        ArtifactError: `out` exists, or base and adapter cannot be loaded or do not fit.
        DataError: No held-out row has a prompt.
    """
    quiet_libraries()
    inputs = [
        dataset.as_input("dataset"),
        base.as_input("base"),
        adapter.as_input("adapter"),
    ]
    with new_artifact(
        out, "reference", config=config.model_dump(mode="json"), inputs=inputs
    ) as draft:
        asked = prompted_rows(dataset_rows(dataset, HELDOUT_FILE), HELDOUT_FILE)
        rows = asked[: config.num_prompts]
        tokenizer = load_tokenizer(adapter.path)
        template = require_chat_template(tokenizer, base.name)
        settings = dataset_settings(dataset)
        # The day of the training, if the same rows were made into a dataset again later.
        settings = replace(settings, date=reference_date(adapter) or settings.date)
        set_template(tokenizer, base.name, settings)
        stop_ids = frozenset(served_stop_ids(adapter.path, tokenizer))
        model = load_tuned(base, adapter, torch.float32)
        prompts = [prompt_token_ids(tokenizer, row.prompt, row.tools) for row in rows]
        drafts = _drafts(model, prompts, stop_ids, config.max_new_tokens)
        continuations: list[Continuation] = []
        with progress("reference", len(rows), "prompts") as advance:
            for row, prompt, draft_ids in zip(rows, prompts, drafts, strict=True):
                token_ids, logprobs, top = _answer(model, prompt, draft_ids, stop_ids, config)
                continuations.append(
                    Continuation(
                        messages=list(row.prompt),
                        prompt_token_ids=prompt,
                        token_ids=token_ids,
                        logprobs=logprobs,
                        top_logprobs=top,
                        text=tokenizer.decode(token_ids, skip_special_tokens=True),
                        finish_reason="stop" if token_ids[-1] in stop_ids else "length",
                        expected=_right_answer(row),
                        tools=list(row.tools),
                    )
                )
                advance(len(continuations))
        differences = [
            _difference(continuation, _answer(model, prompt, (), stop_ids, config))
            for prompt, continuation in zip(prompts, continuations[:NUM_REPEATED], strict=False)
        ]
        write_continuations(draft.dir / REFERENCE_FILE, continuations)
        draft.metrics.update(
            {
                "num_prompts": len(continuations),
                "num_tokens": sum(len(c.token_ids) for c in continuations),
                "num_stopped": sum(c.finish_reason == "stop" for c in continuations),
                "repeat_max_logprob_difference": max(differences),
                **date_facts(tokenizer, template, [row.prompt for row in rows], settings.date),
            }
        )
    return open_artifact(out, kind="reference")


def _right_answer(row: Row) -> str | None:
    """Return the text of the row's right answer; None without one.

    The answer of a row with a label may be a bad one, and a call of a tool has no text.
    """
    if row.kind not in ("answer", "preference") or calls_of(row.completion[-1]):
        return None
    return row.answer or None


def _drafts(
    model: Any, prompts: Sequence[list[int]], stop_ids: frozenset[int], max_new_tokens: int
) -> list[list[int]]:
    """Return answers that were decoded in batches with padding, in order."""
    drafts: list[list[int]] = [[] for _ in prompts]
    longest = max(len(prompt) for prompt in prompts) + max_new_tokens
    batch_size = fitting_batch_size(model, longest)
    for batch in batches_by_length([len(prompt) for prompt in prompts], batch_size):
        found = greedy_answers(model, [prompts[i] for i in batch], stop_ids, max_new_tokens)
        for index, token_ids in zip(batch, found, strict=True):
            drafts[index] = token_ids
    return drafts


def _answer(
    model: Any,
    prompt: list[int],
    draft_ids: Sequence[int],
    stop_ids: frozenset[int],
    config: ReferenceConfig,
) -> Scored:
    return greedy_answer(
        cached_scores(model),
        prompt,
        draft=draft_ids,
        stop_ids=stop_ids,
        max_new_tokens=config.max_new_tokens,
        num_top=config.top_logprobs,
    )


def _difference(continuation: Continuation, again: Scored) -> float:
    """Return the largest difference of log-probabilities, in nats, up to the first other token."""
    pairs = zip(continuation.token_ids, continuation.logprobs, again[0], again[1], strict=False)
    same = itertools.takewhile(lambda pair: pair[0] == pair[2], pairs)
    return max((abs(first - second) for _, first, _, second in same), default=0.0)

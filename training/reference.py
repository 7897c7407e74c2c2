"""The reference: golden answers of base and adapter, in float32 and not merged.

One prompt at a time and greedy, with a loop of our own: no padding, no sampling defaults of the
model, and log-probabilities from the raw logits in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from training.config import ReferenceConfig
from training.data.prepare import dataset_rows
from training.model import load_tuned, quiet_libraries
from tuneline.core.artifact import Artifact, new_artifact, open_artifact
from tuneline.core.dataset import HELDOUT_FILE
from tuneline.core.progress import progress
from tuneline.core.reference import REFERENCE_FILE, Continuation, write_continuations
from tuneline.models.chat import prompt_token_ids, require_chat_template
from tuneline.models.greedy import cached_scores, greedy_answer
from tuneline.models.source import ModelSource
from tuneline.models.stop_tokens import served_stop_ids
from tuneline.models.tokenizer import load_tokenizer

NUM_REPEATED = 4
"""Prompts whose answers are scored a second time, for the reference's own noise."""


def build_reference(
    config: ReferenceConfig, dataset: Artifact, base: ModelSource, adapter: Artifact, out: Path
) -> Artifact:
    """Write the greedy continuations of the first held-out prompts.

    The metric `repeat_max_logprob_difference` is the reference's own noise: the largest difference,
    in nats, between a token's log-probability from the loop with a key-value cache and from one
    pass over prompt and answer together.

    Raises:
        ArtifactError: `out` exists, or base and adapter cannot be loaded or do not fit.
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
        rows = dataset_rows(dataset, HELDOUT_FILE, config.num_prompts)
        tokenizer = load_tokenizer(adapter.path)
        require_chat_template(tokenizer, base.name)
        stop_ids = frozenset(served_stop_ids(adapter.path, tokenizer))
        model = load_tuned(base, adapter, torch.float32)
        continuations: list[Continuation] = []
        with progress("reference", len(rows), "prompts") as advance:
            for row in rows:
                prompt = prompt_token_ids(tokenizer, row.prompt)
                token_ids, logprobs, top = greedy_answer(
                    cached_scores(model),
                    prompt,
                    stop_ids=stop_ids,
                    max_new_tokens=config.max_new_tokens,
                    num_top=config.top_logprobs,
                )
                finish: Literal["stop", "length"] = (
                    "stop" if token_ids[-1] in stop_ids else "length"
                )
                continuations.append(
                    Continuation(
                        messages=list(row.prompt),
                        prompt_token_ids=prompt,
                        token_ids=token_ids,
                        logprobs=logprobs,
                        top_logprobs=top,
                        text=tokenizer.decode(token_ids, skip_special_tokens=True),
                        finish_reason=finish,
                        expected=row.answer,
                    )
                )
                advance(len(continuations))
        write_continuations(draft.dir / REFERENCE_FILE, continuations)
        draft.metrics.update(
            {
                "num_prompts": len(continuations),
                "num_tokens": sum(len(c.token_ids) for c in continuations),
                "num_stopped": sum(c.finish_reason == "stop" for c in continuations),
                "repeat_max_logprob_difference": _repeat_difference(
                    model, continuations[:NUM_REPEATED]
                ),
            }
        )
    return open_artifact(out, kind="reference")


def _repeat_difference(model: Any, continuations: Sequence[Continuation]) -> float:
    largest = 0.0
    for continuation in continuations:
        start = len(continuation.prompt_token_ids)
        ids = continuation.prompt_token_ids + continuation.token_ids
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([ids], device=model.device)).logits[0]
        scores = logits[start - 1 : -1].float().log_softmax(dim=-1)
        again = scores.gather(1, torch.tensor(continuation.token_ids, device=model.device)[:, None])
        first = torch.tensor(continuation.logprobs, device=model.device)
        largest = max(largest, float((again[:, 0] - first).abs().max()))
    return largest

"""Evaluation on held-out rows: greedy answers of a model here, or of one behind an endpoint."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from training.config import EvaluationConfig
from training.data.prepare import dataset_rows
from training.data.rows import Row
from training.evaluation.scoring import Prediction, predict, score
from tuneline.core.artifact import Artifact, Input, new_artifact, open_artifact
from tuneline.core.dataset import HELDOUT_FILE
from tuneline.core.endpoint import Endpoint
from tuneline.core.environment import require
from tuneline.core.errors import ServerError
from tuneline.core.openai_client import openai_client, server_error
from tuneline.core.progress import progress
from tuneline.models.source import ModelSource

REQUEST_TIMEOUT_S = 120.0


def evaluate_model(
    config: EvaluationConfig,
    dataset: Artifact,
    base: ModelSource,
    adapter: Artifact | None,
    out: Path,
) -> Artifact:
    """Answer the held-out prompts with base and adapter, or the base alone, and score them.

    Weights are bfloat16 on a GPU that computes in it and float32 elsewhere.

    Raises:
        ArtifactError: `out` exists, or the model or adapter cannot be loaded.
        ConfigError: `config.fields` does not fit the expected answers, or the model has no chat
            template.
    """
    from training import model as models
    from tuneline.models.chat import prompt_token_ids, require_chat_template
    from tuneline.models.stop_tokens import served_stop_ids
    from tuneline.models.tokenizer import load_tokenizer

    models.quiet_libraries()
    inputs = [dataset.as_input("dataset"), base.as_input("base")]
    inputs += [adapter.as_input("adapter")] if adapter else []
    with new_artifact(
        out, "evaluation", config=config.model_dump(mode="json"), inputs=inputs
    ) as draft:
        rows = dataset_rows(dataset, HELDOUT_FILE, config.num_rows)
        folder = adapter.path if adapter else base.path
        tokenizer = load_tokenizer(folder)
        require_chat_template(tokenizer, base.name)
        stop_ids = served_stop_ids(folder, tokenizer)
        dtype = models.resolve_dtype("auto")
        model = (
            models.load_tuned(base, adapter, dtype) if adapter else models.load_base(base, dtype)
        )
        start_s = time.monotonic()
        prompts = [prompt_token_ids(tokenizer, row.prompt) for row in rows]
        predictions: list[Prediction | None] = [None] * len(rows)
        # Prompts of like length together: the least padding.
        order = sorted(range(len(rows)), key=lambda index: len(prompts[index]))
        with progress("evaluating", len(rows), "prompts") as advance:
            for start in range(0, len(rows), config.batch_size):
                batch = order[start : start + config.batch_size]
                answers = _generate(
                    model, [prompts[i] for i in batch], stop_ids, config.max_new_tokens
                )
                for index, ids in zip(batch, answers, strict=True):
                    row = rows[index]
                    predictions[index] = predict(
                        row.prompt,
                        row.answer,
                        tokenizer.decode(ids, skip_special_tokens=True),
                        "stop" if ids[-1] in stop_ids else "length",
                    )
                advance(start + len(batch))
        measured = [prediction for prediction in predictions if prediction is not None]
        _write(draft.dir, draft.metrics, measured, config, time.monotonic() - start_s)
    return open_artifact(out, kind="evaluation")


def evaluate_endpoint(
    config: EvaluationConfig,
    dataset: Artifact,
    endpoint: Endpoint,
    out: Path,
    *,
    inputs: Sequence[Input] = (),
) -> Artifact:
    """Answer the held-out prompts through an OpenAI-compatible endpoint and score them.

    `config.batch_size` requests are in flight at once, at temperature 0. After the first request
    that fails for good no further one is sent.

    Raises:
        ServerError: Requests failed; the message counts them.
        ArtifactError: `out` exists.
        ConfigError: `config.fields` does not fit the expected answers.
    """
    recorded = [dataset.as_input("dataset"), *inputs]
    with new_artifact(
        out, "evaluation", config=config.model_dump(mode="json"), inputs=recorded
    ) as draft:
        rows = dataset_rows(dataset, HELDOUT_FILE, config.num_rows)
        start_s = time.monotonic()
        predictions = _ask_all(config, rows, endpoint)
        draft.metrics["served_model"] = endpoint.model
        _write(draft.dir, draft.metrics, predictions, config, time.monotonic() - start_s)
    return open_artifact(out, kind="evaluation")


def _generate(
    model: Any, prompts: Sequence[list[int]], stop_ids: Sequence[int], max_new_tokens: int
) -> list[list[int]]:
    """Greedy answers to prompts padded on the left, each up to and with its stop token."""
    import torch
    from transformers import GenerationConfig

    longest = max(len(ids) for ids in prompts)
    pad = stop_ids[0] if stop_ids else 0
    input_ids = torch.tensor([[pad] * (longest - len(ids)) + ids for ids in prompts])
    mask = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompts])
    # The model's own sampling defaults (temperature, repetition penalty) are not used: this is
    # greedy decoding, as the reference is.
    model.generation_config = GenerationConfig(
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=list(stop_ids) or None,
        pad_token_id=pad,
    )
    with torch.inference_mode():
        output = model.generate(
            input_ids=input_ids.to(model.device), attention_mask=mask.to(model.device)
        )
    answers = output[:, longest:].tolist()
    return [_until_stop(ids, frozenset(stop_ids)) for ids in answers]


def _until_stop(ids: list[int], stop_ids: frozenset[int]) -> list[int]:
    for position, token in enumerate(ids):
        if token in stop_ids:
            return ids[: position + 1]
    return ids


def _ask_all(config: EvaluationConfig, rows: Sequence[Row], endpoint: Endpoint) -> list[Prediction]:
    openai = require("openai", "train")
    failed = threading.Event()
    errors: list[ServerError] = []
    predictions: list[Prediction | None] = [None] * len(rows)

    def ask(index: int) -> None:
        if failed.is_set():
            return
        row = rows[index]
        try:
            response = client.chat.completions.create(
                model=endpoint.model,
                messages=list(row.prompt),  # type: ignore[arg-type]  # which tells roles apart
                temperature=0,
                max_tokens=config.max_new_tokens,
            )
            choice = response.choices[0]
            answer = choice.message.content or ""
        except (openai.OpenAIError, ValueError, AttributeError, IndexError, TypeError) as error:
            # The client passes a body of another shape on; reading the body then fails.
            failed.set()
            errors.append(server_error(error, endpoint, REQUEST_TIMEOUT_S))
            return
        predictions[index] = predict(
            row.prompt, row.answer, answer, "stop" if choice.finish_reason == "stop" else "length"
        )

    with (
        openai_client(endpoint, timeout_s=REQUEST_TIMEOUT_S, extra="train") as client,
        ThreadPoolExecutor(config.batch_size, thread_name_prefix="evaluate") as pool,
        progress("evaluating", len(rows), "prompts") as advance,
    ):
        try:
            for done, _ in enumerate(pool.map(ask, range(len(rows))), start=1):
                advance(done)
        finally:
            failed.set()  # on an interrupt, what still waits in the pool is not sent
    measured = [prediction for prediction in predictions if prediction is not None]
    if errors:
        raise ServerError(
            f"{endpoint.url}: {len(errors)} requests to model {endpoint.model!r} failed, "
            f"{len(measured)} of {len(rows)} prompts were answered; the first failure: "
            f"{errors[0].message.removeprefix(f'{endpoint.url}: ')}",
            hint=errors[0].hint or f"Try: curl {endpoint.url}/models",
        )
    return measured


def _write(
    folder: Path,
    metrics: dict[str, Any],
    predictions: Sequence[Prediction],
    config: EvaluationConfig,
    wall_s: float,
) -> None:
    scores = score(predictions, config.fields)
    lines = (prediction.model_dump_json() + "\n" for prediction in predictions)
    (folder / "predictions.jsonl").write_text("".join(lines), encoding="utf-8")
    (folder / "evaluation.json").write_text(
        scores.model_dump_json(indent=2) + "\n", encoding="utf-8"
    )
    metrics.update({**scores.model_dump(mode="json"), "wall_s": wall_s})

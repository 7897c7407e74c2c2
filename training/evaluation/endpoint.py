"""Evaluation of a model behind an OpenAI-compatible endpoint."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from training.config import EvaluationConfig
from training.data.prepare import dataset_rows
from training.data.row import Row
from training.evaluation.results import write_results
from training.evaluation.scoring import Prediction, predict
from tuneline.core.artifact import Artifact, Input, new_artifact, open_artifact
from tuneline.core.dataset import HELDOUT_FILE
from tuneline.core.endpoint import Endpoint
from tuneline.core.environment import require
from tuneline.core.errors import ServerError
from tuneline.core.openai_client import openai_client, server_error
from tuneline.core.progress import progress

REQUEST_TIMEOUT_S = 120.0
DEFAULT_CONCURRENCY = 16
"""Requests in flight without `batch_size`."""


def evaluate_endpoint(
    config: EvaluationConfig,
    dataset: Artifact,
    endpoint: Endpoint,
    out: Path,
    *,
    inputs: Sequence[Input] = (),
) -> Artifact:
    """Answer the held-out prompts through an OpenAI-compatible endpoint and score them.

    `config.batch_size` requests, or 16, are in flight at once, at temperature 0. After the first
    request that fails permanently no further request is sent.

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
        write_results(draft.dir, draft.metrics, predictions, config, time.monotonic() - start_s)
    return open_artifact(out, kind="evaluation")


def _ask_all(config: EvaluationConfig, rows: Sequence[Row], endpoint: Endpoint) -> list[Prediction]:
    openai = require("openai", "train")
    failed = threading.Event()
    concurrency = config.batch_size or DEFAULT_CONCURRENCY
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
        ThreadPoolExecutor(concurrency, thread_name_prefix="evaluate") as pool,
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

"""Evaluate a model on held-out rows: ask, score, write an `evaluation` artifact."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from training.config import EvaluationConfig
from training.config.data import SourceConfig
from training.data.prepare import dataset_rows
from training.data.row import Row
from training.data.rows import Counts, stream_rows
from training.data.sources import Source, open_source
from training.evaluation.answerer import Answerer, LossesAbsentError, Question
from training.evaluation.kept import Kept, ask_model, kept_answers
from training.evaluation.metrics.ready import require_metrics
from training.evaluation.metrics.table import METRICS, choose_metrics
from training.evaluation.prediction import Prediction, predict
from training.evaluation.report.page import mismatch_page
from training.evaluation.scoring import score, try_metrics
from training.heldout import answered_rows
from tuneline.core.artifact import Artifact, Draft, Input, file_input, new_artifact, open_artifact
from tuneline.core.dataset import HELDOUT_FILE
from tuneline.core.endpoint import Endpoint
from tuneline.core.errors import DataError
from tuneline.core.files import MANIFEST
from tuneline.core.progress import logger
from tuneline.models.source import ModelSource
from tuneline.models.template import TemplateSettings, dataset_settings

PREDICTIONS_FILE = "predictions.jsonl"
SCORES_FILE = "evaluation.json"
PAGE_FILE = "mismatches.html"

Data = Artifact | SourceConfig
"""A dataset artifact, whose held-out rows are taken, or data files, whose rows are all taken."""


def evaluate_model(
    config: EvaluationConfig,
    data: Data,
    base: ModelSource,
    adapter: Artifact | Path | None,
    out: Path,
    *,
    reuse: bool = False,
) -> Artifact:
    """Answer the held-out prompts with base and adapter, or the base only, and score them.

    Weights are bfloat16 on a GPU that computes in it and float32 elsewhere. A second call with the
    same `out` asks only for the answers that an interrupted call had not got.

    Args:
        reuse: Whether an evaluation at `out` of the same model, rows and settings is the result.

    Raises:
        ArtifactError: `out` exists, or the model or adapter cannot be loaded.
        ConfigError: A metric does not fit the expected answers, or the model has no chat template.
        DataError: A row of the file cannot be used.
    """
    from training.evaluation.local import adapter_input, local_answerer

    opened = _opened(data)
    rows = evaluation_rows(opened, config.num_rows)
    inputs = [base.as_input("base")]
    if adapter is not None:
        inputs.append(adapter_input(adapter))
    settings = _settings(data)
    recorded, inputs = _record(config, opened, inputs)
    if reuse and (made := _made_before(out, recorded, inputs)):
        return made
    with (
        kept_answers(out) as kept,
        new_artifact(out, "evaluation", config=recorded, inputs=inputs) as draft,
    ):
        answerer = local_answerer(base, adapter, batch_size=config.batch_size, settings=settings)
        _evaluate(draft, config, rows, answerer, kept)
    return open_artifact(out, kind="evaluation")


def evaluate_endpoint(
    config: EvaluationConfig,
    data: Data,
    endpoint: Endpoint,
    out: Path,
    *,
    inputs: Sequence[Input] = (),
    tokenizer_folder: Path | None = None,
    base: ModelSource | None = None,
    reuse: bool = False,
) -> Artifact:
    """Answer the held-out prompts through an OpenAI-compatible endpoint and score them.

    `config.batch_size` requests, or 16, are in flight at once, at temperature 0. After the first
    request that fails permanently no further request is sent; a second call with the same `out`
    asks for the rest.

    Args:
        inputs: The model that the endpoint serves, for the manifest.
        tokenizer_folder: The served model's tokenizer. Without it, or if the server gives no
            log-probabilities of prompt tokens, `nats` is absent, with the reason.
        base: The base model of the dataset's run, if the server may have a chat template without
            the run's variables and date. Requests then set them.
        reuse: Whether an evaluation at `out` of the same endpoint, rows and settings is the result.

    Raises:
        ServerError: Requests failed; the message counts them.
        ArtifactError: `out` exists.
        ConfigError: A metric does not fit the expected answers.
        DataError: A row of the file cannot be used.
    """
    from training.evaluation.endpoint import endpoint_answerer

    opened = _opened(data)
    rows = evaluation_rows(opened, config.num_rows)
    settings = _settings(data)
    kwargs = {} if base is None else _template_kwargs(base, settings, rows[0])
    recorded, given = _record(config, opened, inputs)
    if not inputs:  # nothing else says what was asked
        recorded["endpoint"] = {"url": endpoint.url, "model": endpoint.model}
    if reuse and (made := _made_before(out, recorded, given)):
        return made
    with (
        kept_answers(out) as kept,
        new_artifact(out, "evaluation", config=recorded, inputs=given) as draft,
    ):
        answerer = endpoint_answerer(
            endpoint,
            batch_size=config.batch_size,
            tokenizer_folder=tokenizer_folder,
            settings=settings,
            template_kwargs=kwargs,
        )
        _evaluate(draft, config, rows, answerer, kept)
    return open_artifact(out, kind="evaluation")


def _opened(data: Data) -> Artifact | Source:
    return data if isinstance(data, Artifact) else open_source(data, Path(), "--data")


def evaluation_rows(data: Artifact | Source, num_rows: int | None) -> list[Row]:
    """Return the rows to evaluate.

    Raises:
        DataError: A row of a file cannot be used, or no row has an answer.
    """
    if isinstance(data, Source):
        where = data.config.path
        rows = list(stream_rows([data], Counts()))[:num_rows]
    else:
        where = str(data.path / HELDOUT_FILE)
        rows = dataset_rows(data, HELDOUT_FILE, num_rows)
    if query := next((row for row in rows if row.is_query), None):
        raise DataError(
            f"{where}: line {query.line}: is a query with passages; expected a prompt with an "
            "answer"
        )
    answered = answered_rows(rows, where)
    if len(answered) < len(rows):
        logger.info("  %d rows without a good answer are left out", len(rows) - len(answered))
    return answered


def _settings(data: Data) -> TemplateSettings:
    """Return the chat template's settings of a dataset's run; a file has none."""
    return dataset_settings(data) if isinstance(data, Artifact) else TemplateSettings()


def _template_kwargs(base: ModelSource, settings: TemplateSettings, row: Row) -> dict[str, Any]:
    """Return the variables by which a request sets a run's settings of the chat template."""
    from tuneline.models.chat import date_variable, set_template
    from tuneline.models.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(base.path)
    # A fixed date is in the trained model's template only, and this server's may be the base's.
    template = set_template(tokenizer, base.name, replace(settings, serves_date=False))
    if settings.date is None:
        return dict(settings.kwargs)
    return {**settings.kwargs, **date_variable(tokenizer, template, row.prompt, settings.date)}


def read_predictions(evaluation: Artifact) -> list[Prediction]:
    """Return the predictions of an evaluation, in order."""
    text = (evaluation.path / PREDICTIONS_FILE).read_text(encoding="utf-8")
    lines = text.removesuffix("\n").split("\n")
    return [Prediction.model_validate_json(line) for line in lines]


def _made_before(out: Path, recorded: dict[str, Any], inputs: Sequence[Input]) -> Artifact | None:
    """Return the complete evaluation at a path if it has this configuration and these inputs."""
    if not (out / MANIFEST).is_file():
        return None
    made = open_artifact(out, kind="evaluation")
    if made.manifest.config != recorded or made.manifest.inputs != list(inputs):
        return None
    logger.info("  %s is the same evaluation, and is taken as it is", out)
    return made


def _record(
    config: EvaluationConfig, data: Artifact | Source, inputs: Sequence[Input]
) -> tuple[dict[str, Any], list[Input]]:
    """Return the configuration and the inputs of an evaluation, for its manifest."""
    recorded = config.model_dump(mode="json", exclude={"json_schema", "python", "forgetting"})
    if isinstance(data, Source):
        own = data.as_input().model_copy(update={"role": "data"})
        recorded["columns"] = data.config.columns
    else:
        own = data.as_input("dataset")
    files = [own, *inputs]
    if config.json_schema is not None and Path(config.json_schema).is_file():
        files.append(file_input("json_schema", Path(config.json_schema)))
    if config.python is not None:
        path = Path(config.python.rpartition(":")[0])
        recorded["python"] = Path(config.python).name
        files += [file_input("python", path)] if path.is_file() else []
    return recorded, files


def _evaluate(
    draft: Draft, config: EvaluationConfig, rows: Sequence[Row], answerer: Answerer, kept: Kept
) -> None:
    require_metrics(config)
    try_metrics(config, rows)
    start_s = time.monotonic()
    questions = [Question(row.prompt, row.tools) for row in rows]
    replies = ask_model(answerer, questions, config.max_new_tokens, kept)
    predictions = [
        predict(row, reply.text, reply.finish_reason, reply.tool_calls)
        for row, reply in zip(rows, replies, strict=True)
    ]
    no_losses = ""
    chosen = choose_metrics(config, [row.answer for row in rows])
    if any(METRICS[name].needs_losses for name in chosen):
        try:
            losses = answerer.losses(rows)
            predictions = [
                p.model_copy(update={"nats": loss.nats, "num_answer_tokens": loss.num_tokens})
                for p, loss in zip(predictions, losses, strict=True)
            ]
        except LossesAbsentError as error:
            no_losses = f"absent: {error}"
            logger.warning("  nats per answer token are %s", no_losses)
    predictions, scores = score(predictions, config, no_losses=no_losses, kept=kept)
    lines = (prediction.model_dump_json() + "\n" for prediction in predictions)
    (draft.dir / PREDICTIONS_FILE).write_text("".join(lines), encoding="utf-8")
    text = scores.model_dump_json(indent=2) + "\n"
    (draft.dir / SCORES_FILE).write_text(text, encoding="utf-8")
    page = mismatch_page("Answers to the held-out rows", {"model": predictions}, config)
    (draft.dir / PAGE_FILE).write_text(page, encoding="utf-8")
    brief = {
        name: result.model_dump(mode="json", exclude={"higher_is_better", "details"})
        for name, result in scores.metrics.items()
    }
    draft.metrics.update(answerer.about)
    draft.metrics.update(scores.model_dump(mode="json", exclude={"metrics"}))
    draft.metrics.update(metrics=brief, wall_s=time.monotonic() - start_s)

"""The command that scores answers: of a run's models, or of any model or endpoint on any file."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tuneline.commands.data import Columns, column_map
from tuneline.commands.option_values import (
    endpoint_of,
    open_run,
    refuse,
    required,
    section_of,
)
from tuneline.commands.options import AsJson, KeyEnv, OptionalRun, Out, Overrides, RunsDir, Url
from tuneline.commands.printing import emit, emit_artifact
from tuneline.commands.run_stages import run_stages
from tuneline.pipeline import DEFAULT_RUNS

if TYPE_CHECKING:
    from training.config import EvaluationConfig
    from training.config.data import SourceConfig
    from tuneline.core.artifact import Artifact
    from tuneline.core.endpoint import Endpoint


class Suite(StrEnum):
    forgetting = "forgetting"


def evaluate(
    run_file: OptionalRun = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="Rows with prompts and answers: a file, a folder or hf:owner/name."
        ),
    ] = None,
    columns: Columns = None,
    model: Annotated[
        str | None,
        typer.Option(help="Model folder or Hugging Face id; with --url, its name on the server."),
    ] = None,
    adapter: Annotated[
        Path | None, typer.Option(metavar="DIR", help="A PEFT adapter on top of --model.")
    ] = None,
    url: Url = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="With --url: the model's tokenizer, for perplexity; an embedding model's prompts.",
        ),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="The base model, folder or id, for a comparison."),
    ] = None,
    suite: Annotated[
        Suite | None, typer.Option(help="Ask a built-in suite in place of --data.")
    ] = None,
    reference: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="A reference whose tokens --model drafts, not --data."),
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option(metavar="A,B", help="With --url: tasks of lm-evaluation-harness."),
    ] = None,
    include_path: Annotated[
        Path | None, typer.Option(metavar="DIR", help="A folder with further tasks.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="First documents of each task.")] = None,
    api_key_env: KeyEnv = None,
    out: Out = None,
    overrides: Overrides = None,
    runs_dir: RunsDir = DEFAULT_RUNS,
    as_json: AsJson = False,
) -> None:
    """Score answers to held-out rows: a run's, or any model or URL.

    With RUN.yaml, score base, tuned and served model; with --url too, only that endpoint. Without
    RUN.yaml, score --model or --url on --data; options are --set evaluation.KEY=VALUE. With --suite
    forgetting, compare general skills with --against.
    """
    # Over 60 lines: most of them are options.
    of_rows = {"--data": data, "--column": columns}
    if reference is not None:
        others = {**of_rows, "--adapter": adapter, "--url": url, "--against": against}
        more = {"--suite": suite, "--tasks": tasks, "--set": overrides, "RUN.yaml": run_file}
        refuse("with --reference", {**others, **more})
        _draft(reference, required(model, "--model"), required(out, "--out"), as_json)
        return
    of_a_file = {**of_rows, "--adapter": adapter, "--against": against, "--suite": suite}
    if tasks is not None:
        refuse("with --tasks", {"RUN.yaml": run_file, **of_a_file, "--set": overrides})
        asked = Asked(endpoint_of(required(url, "--url"), model, api_key_env), tokenizer)
        harness = Harness(tasks, include_path, limit)
        emit_artifact(_run_tasks(asked, harness, required(out, "--out")), as_json)
        return
    refuse("without --tasks", {"--include-path": include_path, "--limit": limit})
    of_a_server = {"--api-key-env": api_key_env, "--tokenizer": tokenizer}
    if url is None:
        refuse("without --url", of_a_server)
    endpoint = None if url is None else endpoint_of(url, model, api_key_env)
    if run_file is None:
        asked = Asked(endpoint, tokenizer, model, adapter)
        if suite is not None:
            refuse("with --suite", {**of_rows, "--tokenizer": tokenizer, "--set": overrides})
            _ask_suite(asked, against, required(out, "--out"), as_json)
            return
        names_model = model is not None or url is not None
        source = {
            "path": required(data, "--data" if names_model else "RUN.yaml or --data"),
            "columns": column_map(columns or []),
        }
        _evaluate_file(asked, source, against, out, overrides, as_json)
        return
    refuse("with RUN.yaml", of_a_file)
    run = open_run(run_file, overrides, runs_dir)
    if endpoint is None:
        refuse("without --url", {"--model": model, "--out": out})
        from tuneline.pipeline.stages import stage_names

        names = stage_names(run, groups=("evaluation",), kinds=("evaluation",))
        run_stages(run, names, as_json=as_json)
        return
    from training import evaluate_endpoint, evaluate_ranking
    from tuneline.pipeline.run_config import resolve_base
    from tuneline.pipeline.served_stages import evaluation_config
    from tuneline.pipeline.stage import DATASET
    from tuneline.pipeline.up import up as up_run

    folder = required(out, "--out")
    dataset = up_run(run, (DATASET,))[DATASET]
    config = evaluation_config(run)
    base = resolve_base(run, download=True)
    if not run.config.training.method.answers_prompts:
        prompts = run.config.training.method.prompts(base.path)
        emit_artifact(evaluate_ranking(config, dataset, endpoint, folder, prompts=prompts), as_json)
        return
    result = evaluate_endpoint(
        config, dataset, endpoint, folder, tokenizer_folder=tokenizer, base=base
    )
    _emit_evaluation(result, as_json)


def _draft(reference: Path, drafter: str, out: Path, as_json: bool) -> None:
    """Measure how many tokens of recorded answers a drafter guesses."""
    from training import measure_acceptance
    from tuneline.core.artifact import open_artifact
    from tuneline.core.artifact_kinds import KINDS
    from tuneline.models.source import resolve_model

    recorded = open_artifact(reference, kind="reference")
    result = measure_acceptance(recorded, resolve_model(drafter), out)
    metrics = result.manifest.metrics
    lines = [KINDS["acceptance"].summary(metrics), "  drafted  tokens per step        gains if"]
    for one in metrics["drafted"]:
        low, high = one["interval"]
        lines.append(
            f"  {one['num_drafted']:7}  {one['tokens_per_step']:.2f} ({low:.2f} to {high:.2f})  a "
            f"drafted token costs less than {one['most_cost']:.0%} of a step"
        )
    document = {"path": str(result.path), **result.manifest.model_dump()}
    emit(document, [*lines, f"figures: {result.path / 'acceptance.json'}"], as_json)


@dataclass(frozen=True)
class Asked:
    """The options that name the model to score: an endpoint, or a folder with an adapter."""

    endpoint: Endpoint | None
    tokenizer: Path | None = None
    model: str | None = None
    adapter: Path | None = None


@dataclass(frozen=True)
class Harness:
    """The options of lm-evaluation-harness."""

    tasks: str
    include_path: Path | None
    limit: int | None


def _run_tasks(asked: Asked, harness: Harness, out: Path) -> Artifact:
    from training import run_harness

    assert asked.endpoint is not None  # noqa: S101 (the caller requires --url)
    return run_harness(
        asked.endpoint,
        required(asked.tokenizer, "--tokenizer"),
        harness.tasks.split(","),
        out,
        include_path=harness.include_path,
        limit=harness.limit,
    )


def _evaluate_file(
    asked: Asked,
    source: dict[str, Any],
    against: str | None,
    out: Path | None,
    overrides: list[str] | None,
    as_json: bool,
) -> None:
    """Score a model on a file, and a second model if there is one."""
    from training import has_queries
    from training.config import EvaluationConfig
    from training.config.data import SourceConfig
    from tuneline.core.config import validate_config

    if asked.endpoint is None:
        required(asked.model, "--model")
    else:
        refuse("with --url", {"--adapter": asked.adapter})
    section = section_of(overrides, "evaluation", "an evaluation without a run", "fields=lines")
    config = validate_config(EvaluationConfig, section, "evaluation")
    data = validate_config(SourceConfig, source, "options")
    folder = required(out, "--out")
    if has_queries(data):
        _rank_file(config, data, asked, against, folder, as_json)
        return
    if against is None:
        _emit_evaluation(_evaluate(config, data, asked, folder), as_json)
        return
    from training import report_evaluations
    from tuneline.models.source import resolve_model
    from tuneline.pipeline.run_report import comparison_lines

    resolve_model(against)  # a wrong name is found before the first model answers
    # The first two may be those of an interrupted command.
    tuned = _evaluate(config, data, asked, folder / "tuned", reuse=True)
    base = _evaluate(config, data, Asked(None, model=against), folder / "base", reuse=True)
    report = report_evaluations(config, base, tuned, folder / "report")
    metrics = report.manifest.metrics
    lines = [*comparison_lines(metrics), f"answers side by side: {report.path / 'mismatches.html'}"]
    emit({"path": str(report.path), **report.manifest.model_dump()}, lines, as_json)


def _rank_file(
    config: EvaluationConfig,
    data: SourceConfig,
    asked: Asked,
    against: str | None,
    out: Path,
    as_json: bool,
) -> None:
    """Rank the passages of a file of queries by a model, and by a second one if there is one."""
    from training import evaluate_ranking
    from tuneline.models.prompts import read_prompts
    from tuneline.models.source import resolve_model

    refuse("with rows of queries, which need a merged model", {"--adapter": asked.adapter})
    model = asked.endpoint or resolve_model(required(asked.model, "--model"))
    result = evaluate_ranking(
        config, data, model, out,
        against=None if against is None else resolve_model(against),
        prompts=None if asked.tokenizer is None else read_prompts(asked.tokenizer),
    )  # fmt: skip
    emit_artifact(result, as_json)


def _emit_evaluation(evaluation: Artifact, as_json: bool) -> None:
    from tuneline.pipeline.run_report import evaluation_lines

    document = {"path": str(evaluation.path), **evaluation.manifest.model_dump()}
    emit(document, evaluation_lines(evaluation), as_json)


def _evaluate(
    config: EvaluationConfig, data: SourceConfig, asked: Asked, out: Path, *, reuse: bool = False
) -> Artifact:
    if asked.endpoint is not None:
        from training import evaluate_endpoint

        return evaluate_endpoint(
            config, data, asked.endpoint, out, tokenizer_folder=asked.tokenizer, reuse=reuse
        )
    from training import evaluate_model
    from tuneline.models.source import resolve_model

    base = resolve_model(required(asked.model, "--model"))
    return evaluate_model(config, data, base, _adapter(asked.adapter), out, reuse=reuse)


def _adapter(folder: Path | None) -> Artifact | Path | None:
    """Return an adapter artifact, or the path of any other PEFT folder."""
    from tuneline.core.artifact import open_artifact
    from tuneline.core.files import MANIFEST

    if folder is None or not (folder / MANIFEST).is_file():
        return folder
    return open_artifact(folder, kind="adapter")


def _ask_suite(asked: Asked, against: str | None, out: Path, as_json: bool) -> None:
    """Measure forgetting, and end with the verdict's exit code."""
    from training import measure_forgetting
    from tuneline.core.verdict import Verdict, require_verdict
    from tuneline.models.source import resolve_model
    from tuneline.pipeline.run_report import forgetting_lines

    if asked.adapter is not None:
        refuse("with --url", {"--adapter": asked.adapter if asked.endpoint else None})
        refuse("with --adapter, whose base is --model", {"--against": against})
        base = resolve_model(required(asked.model, "--model"))
        result = measure_forgetting(base, _adapter(asked.adapter) or asked.adapter, out)
    else:
        base = resolve_model(required(against, "--against"))
        tuned = asked.endpoint or resolve_model(required(asked.model, "--model"))
        result = measure_forgetting(base, tuned, out)
    metrics = result.manifest.metrics
    lines = [*forgetting_lines(metrics), f"answers side by side: {result.path / 'mismatches.html'}"]
    emit({"path": str(result.path), **result.manifest.model_dump()}, lines, as_json)
    require_verdict(result, Verdict(metrics["verdict"]))

"""`tuneline tune RUN.yaml`: the tuning of a finished run, on vLLM."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export import FORMS
from tuneline.core.artifact import (
    Artifact,
    Input,
    canonical_digest,
    new_artifact,
    open_artifact,
)
from tuneline.core.config import keyed_values, read_document
from tuneline.core.dataset import heldout_prompts
from tuneline.core.endpoint import Endpoint
from tuneline.core.environment import gpu_names, hardware_facts, library_versions
from tuneline.core.errors import ConfigError
from tuneline.core.progress import logger
from tuneline.pipeline.finished_run import checked
from tuneline.pipeline.keys import key_of
from tuneline.pipeline.plan import plan
from tuneline.pipeline.run_config import Run, load_run, resolve_base
from tuneline.pipeline.served_stages import loadtest_config
from tuneline.pipeline.server import (
    LazyServer,
    require_served_weights,
    served,
    served_stage,
    serving_config,
)
from tuneline.pipeline.stage import DATASET, MODEL, PARITY_SERVED, REFERENCE, Line, Made
from tuneline.pipeline.stage_inputs import drafter_input, served_inputs
from tuneline.pipeline.stages import stages
from tuneline.pipeline.tune.bench import Bench
from tuneline.pipeline.tune.picture import draw_trials
from tuneline.pipeline.tune.schema import TUNE_FILE, Offer, TuneReport
from tuneline.pipeline.tune.table import Facts, Settings
from tuneline.pipeline.tune.tune import (
    chosen_knobs,
    offers_of,
    require_budget,
    tune_servers,
)
from tuneline.pipeline.up import lock_run
from tuneline.pipeline.winner import require_winner, write_winner

QUANTIZE = "export.merge.quantize"
FOLDER = "tune"
"""The folder in a run's directory for trials of tunings that are not finished."""


@dataclass(frozen=True)
class Tuned:
    """The result of a tuning.

    Attributes:
        winner: The run.yaml with the winner's settings; None if the run's own stay.
    """

    artifact: Artifact
    report: TuneReport
    winner: Path | None


@dataclass(frozen=True)
class Options:
    """How a tuning goes.

    Attributes:
        budget_s: Time for all trials and the comparison, those of killed processes included.
        num_requests: Measured requests of each probe.
        precision: Share by which the rate of a trial is known.
        max_rps: No higher rate is tried.
        drafter: A folder with a model for speculative decoding.
        only: Names of the rows of the table to try; empty for all.
    """

    budget_s: float
    num_requests: int = 300
    precision: float = 0.1
    max_rps: float = 1000.0
    drafter: Path | None = None
    only: Sequence[str] = ()


def tune_run(run: Run, options: Options, out: Path | None = None) -> Tuned:
    """Tune the server of a finished run; write a `tune` artifact, and the winner as a run.yaml.

    The same command goes on where a killed tuning stopped, and a larger budget continues a tuning
    whose budget ended.

    Args:
        out: The new run.yaml; next to the old one by default, where relative paths hold.

    Raises:
        ConfigError: No objective is set, or the budget is too small for one trial.
        NotAnArtifactError: The run is not finished.
        ServerError: The run's own server does not start.
    """
    from loadtest import require_objective
    from serving import require_server

    knobs = chosen_knobs(options.only)
    require_objective(loadtest_config(run), options.num_requests)
    require_budget(options.budget_s, options.num_requests, _start_rps(run))
    if options.drafter is not None and not (options.drafter / "config.json").is_file():
        raise ConfigError(f"--drafter {options.drafter}: has no config.json; expected a model")
    winner = out or run.path.with_suffix(".tuned.yaml")
    require_winner(run, winner)
    made = checked(run, DATASET, REFERENCE, served_stage(run.config))
    require_server(serving_config(run))
    forms = exported_forms(run)
    drafter = None if options.drafter is None else options.drafter.resolve()
    serving = run.config.serving
    prunes = run.config.export.prune is not None
    facts = Facts(serving, bool(gpu_names()), list(forms), drafter, prunes)
    offers = offers_of(facts, knobs)
    config = _resolved(run, options, offers)
    key = key_of(canonical_digest([config, [made[name].digest for name in sorted(made)]]))
    with lock_run(run):
        bench = make_bench(run, made, forms, options, run.dir / FOLDER / key)
        report = tune_servers(bench, offers, serving, options.budget_s)
        if report.is_changed:
            _write_winner(run, report, winner)
            report = report.model_copy(update={"winner": winner.name})
        artifact = _write_artifact(run, report, bench, config, made, key)
    return Tuned(artifact, report, winner if report.is_changed else None)


def _start_rps(run: Run) -> float:
    """Return the rate at which the search of the run's own settings begins: the highest one that
    its load test asks."""
    scenarios = run.config.loadtest.scenarios
    return max((one.rate_rps for one in scenarios if one.rate_rps is not None), default=1.0)


def _resolved(run: Run, options: Options, offers: Sequence[Offer]) -> dict[str, Any]:
    """Return all that the figures of a trial depend on, next to the artifacts."""
    return {
        "serving": keyed_values(run.config.serving),
        "loadtest": keyed_values(run.config.loadtest),
        "num_requests": options.num_requests,
        "precision": options.precision,
        "max_rps": options.max_rps,
        "offers": [offer.model_dump(mode="json") for offer in offers],
        "files": _file_digests(run, options),
        "hardware": hardware_facts(),
        "vllm": {name: version for name, version in library_versions().items() if "vllm" in name},
    }


def _file_digests(run: Run, options: Options) -> list[str]:
    """Return the content of the files that the servers read, and of the drafter that is tried."""
    inputs = served_inputs(run, resolve_base(run, download=True))[1:]
    if options.drafter is not None:
        inputs.append(drafter_input("drafter", options.drafter))
    return [entry.digest for entry in inputs]


def exported_forms(run: Run) -> dict[str, Artifact]:
    """Return the quantized forms that the line has made and run.yaml can serve, by scheme."""
    names = {
        str(FORMS[name].fixed["scheme"]): name
        for name in run.config.export.forms
        if set(FORMS[name].fixed) == {"scheme"}
    }
    if not names or run.config.export.merge.quantize is not None:
        return {}
    planned = {entry.stage.name: entry for entry in plan(run, tuple(names.values()))}
    return {
        scheme: open_artifact(entry.path)
        for scheme, name in names.items()
        if (entry := planned[name]).state == "current" and entry.path is not None
    }


def make_bench(
    run: Run, made: Made, forms: dict[str, Artifact], options: Options, folder: Path
) -> Bench:
    base = resolve_base(run, download=True)
    config = loadtest_config(run)

    def with_settings(settings: Settings) -> Run:
        return load_run(run.path, run.overrides, run.dir.parent, values=settings)

    def made_with(settings: Settings) -> Made:
        scheme = settings.get(QUANTIZE)
        return made if scheme is None else {**made, MODEL: forms[scheme]}

    def check(settings: Settings) -> None:
        from serving import check_flags

        other = with_settings(settings)
        require_served_weights(other)
        check_flags(serving_config(other))

    @contextlib.contextmanager
    def serve(settings: Settings, limit_s: float) -> Iterator[Endpoint]:
        ready_s = min(run.config.serving.ready_timeout_s, max(limit_s, 1.0))
        with ExitStack() as stack:
            other = with_settings({**settings, "serving.ready_timeout_s": ready_s})
            yield LazyServer(other, base, stack).endpoint(made_with(settings))

    def prove(settings: Settings, endpoint: Endpoint, out: Path) -> Artifact:
        other = with_settings(settings)
        step = next(stage.step for stage in stages(other) if stage.name == PARITY_SERVED)
        return step(Line(other, base, lambda _: endpoint), made_with(settings), out)

    def inputs(settings: Settings) -> list[Input]:
        return served(with_settings(settings), base, made_with(settings)).inputs

    return Bench(
        config=config,
        prompts=heldout_prompts(made[DATASET]),
        check=check,
        open=serve,
        prove=prove,
        inputs=inputs,
        folder=folder,
        num_requests=options.num_requests,
        start_rps=_start_rps(run),
        max_rps=options.max_rps,
        precision=options.precision,
    )


def _write_artifact(
    run: Run, report: TuneReport, bench: Bench, config: dict[str, Any], made: Made, key: str
) -> Artifact:
    """Write the report with the evidence of each trial, in place of an earlier one."""
    out = run.dir / f"tune-{key}"
    shutil.rmtree(out, ignore_errors=True)
    inputs = [made[name].as_input(name) for name in sorted(made)]
    with new_artifact(out, "tune", config=config, inputs=inputs) as draft:
        (draft.dir / TUNE_FILE).write_text(report.model_dump_json(indent=2) + "\n", "utf-8")
        draw_trials(report, draft.dir)
        for file in sorted(bench.folder.glob("*.json")):
            shutil.copyfile(file, draft.dir / file.name)
        if report.comparison is not None and (bench.folder / "comparison").is_dir():
            shutil.copyfile(
                bench.folder / "comparison" / "report.json", draft.dir / "comparison-report.json"
            )
        draft.metrics.update(
            report.model_dump(
                mode="json",
                include={
                    "verdict", "problems", "is_changed", "settings", "rate_rps", "own_rate_rps",
                    "gain", "gain_interval", "is_complete", "spent_s",
                },
            )
        )  # fmt: skip
        draft.metrics["num_trials"] = len(report.trials)
    return open_artifact(out)


def _write_winner(run: Run, report: TuneReport, out: Path) -> None:
    """Write the run.yaml of the winner, with its evidence as a comment."""
    document = read_document(run.path, run.overrides, report.settings)
    low, high = report.gain_interval or (None, None)
    lines = [
        f"{report.rate_rps:.4g} requests/s keep the objectives; the settings of {run.path.name} "
        + ("hold no rate." if report.own_rate_rps is None else f"hold {report.own_rate_rps:.4g}."),
    ]
    if report.gain is not None and low is not None:
        most = "more" if high is None else f"{high:.2f}"
        lines.append(f"Gain: {report.gain:.2f} ({low:.2f} to {most}).")
    if report.comparison is not None:
        lines.append(
            f"In turns at {report.comparison.rate_rps:.4g} requests/s, these settings keep the "
            "objectives, and those do not."
        )
    lines.append("The answers of the tuned server are the reference's.")
    write_winner(run, "tune", document, lines, report.settings, out)
    logger.info("the tuned run is %s", out)

"""run.yaml → plan → stages: runs what is stale and skips what is not.

A stage's artifact lies in `<stage>-<key>`, where the key is a digest of the stage's configuration
and of its inputs' digests. So a stage is current when that directory is a complete artifact; a
changed section moves the key of its stage, and of those after it once the new content is known.
Artifacts of earlier configurations stay, and going back to one costs nothing.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from export import FORMS, prepare_form
from loadtest.config import LoadTestConfig
from tuneline.core.artifact import (
    Artifact,
    Input,
    cannot_write,
    canonical_digest,
    file_sha256,
    open_artifact,
    verify_artifact,
)
from tuneline.core.endpoint import Endpoint
from tuneline.core.errors import (
    ArtifactError,
    ConfigError,
    DataError,
    InconclusiveError,
    InvalidError,
    MissingError,
    NotAnArtifactError,
    VerdictError,
)
from tuneline.core.progress import logger
from tuneline.models.source import ModelSource, resolve_model
from tuneline.pipeline.run_config import Run
from tuneline.pipeline.stages import (
    Line,
    Made,
    Stage,
    heldout_prompts,
    loadtest_config,
    model_source,
    served_inputs,
    stages,
)

State = Literal["current", "stale", "waiting"]


@dataclass(frozen=True)
class Planned:
    """A stage and whether it has to run."""

    stage: Stage
    state: State
    reason: str
    path: Path | None
    """Where its artifact is or will be; None while an input is not made yet."""


def plan(run: Run, until: Sequence[str] = ()) -> list[Planned]:
    """What `up` would do now: one entry per stage, in order.

    Args:
        run: The line.
        until: Names of the stages wanted, with those they need; all of them by default.

    Raises:
        MissingError: The base model is not to be found.
        DataError: A data file is missing.
    """
    return _planned(run, _selected(run, until), _base(run, download=False))


def _planned(run: Run, selected: Sequence[Stage], base: ModelSource) -> list[Planned]:
    made: Made = {}
    planned = []
    for stage in selected:
        entry = _plan_stage(run, stage, base, made)
        if entry.state == "current" and entry.path is not None:
            made[stage.name] = open_artifact(entry.path)
        planned.append(entry)
    return planned


def up(
    run: Run,
    until: Sequence[str] = (),
    on_stage: Callable[[Planned, Artifact, float], None] = lambda *_: None,
    *,
    keep_going: bool = False,
) -> Made:
    """Run what is stale, in order, and return every artifact of the line.

    Args:
        run: The line.
        until: Names of the stages wanted, with those they need; all of them by default.
        on_stage: Told of each stage when it is done: its plan, its artifact, its wall time in
            seconds (0 where it was current).
        keep_going: Whether the stages after a verdict that is not met run all the same; it is
            raised at the end.

    Raises:
        VerdictError: A proof or the load test's verdict is not met; the artifact that says so is
            kept, and the stages after it do not run unless told to.
        TunelineError: Whatever a stage raises.
    """
    selected = _selected(run, until)
    base = _base(run, download=True)
    _require_ready(run, selected, base)
    made: Made = {}
    whole: set[str] = set()
    failed: list[VerdictError] = []
    with ExitStack() as stack:
        stack.enter_context(_only_one(run))
        server = _LazyServer(run, base, stack)
        line = Line(run, base, server.endpoint)
        for number, stage in enumerate(selected, start=1):
            entry = _plan_stage(run, stage, base, made)
            assert entry.path is not None  # noqa: S101 (every need has been made by now)
            started_s = time.monotonic()
            if entry.state == "current":
                artifact = open_artifact(entry.path)
                wall_s = 0.0
            else:
                # Sizes were looked at; what a stage builds on is read to the last byte.
                for name in set(stage.needs) - whole:
                    verify_artifact(made[name])
                whole |= {*stage.needs, stage.name}
                logger.info("[%d/%d] %s (%s)", number, len(selected), stage.title, entry.reason)
                # A measurement that says nothing is not kept from being made again.
                shutil.rmtree(entry.path, ignore_errors=True)
                artifact = stage.step(line, made, entry.path)
                wall_s = time.monotonic() - started_s
            made[stage.name] = artifact
            on_stage(entry, artifact, wall_s)
            try:
                require_verdict(artifact)
            except VerdictError as error:
                if not keep_going:
                    raise
                failed.append(error)
    if failed:
        raise failed[0]
    return made


def export_stages(run: Run) -> tuple[str, ...]:
    """The merged model and every other form that the run asks for, with their proofs."""
    return ("model", *(name for name in proof_stages(run) if name != "parity-served"))


def proof_stages(run: Run) -> tuple[str, ...]:
    """The rungs of the ladder, from the merged model to the served one."""
    return tuple(stage.name for stage in stages(run) if stage.name.startswith("parity-"))


def require_verdict(artifact: Artifact) -> None:
    """Stop where an artifact holds a verdict that is not met.

    Raises:
        VerdictError: The verdict, its reasons, and where the whole report is.
    """
    verdict = _verdict(artifact)
    if verdict == "pass":
        return
    reasons = artifact.manifest.metrics.get("problems", [])
    lines = "\n".join(f"  {reason}" for reason in reasons)
    kinds = {"inconclusive": InconclusiveError, "invalid": InvalidError}
    raise kinds.get(verdict, VerdictError)(
        f"{artifact.path.name}: {verdict.upper()}" + (f"\n{lines}" if lines else ""),
        hint=f"The whole report: tuneline inspect {artifact.path}\n"
        f"  To measure again under the same configuration, remove it: rm -r {artifact.path}",
    )


def _verdict(artifact: Artifact) -> str:
    """`pass`, `fail`, `inconclusive` or `invalid`, from the payload: the digest covers it."""
    report = {
        "parity": "parity.json",
        "load-report": "report.json",
        "load-search": "report.json",
        "load-comparison": "report.json",
    }.get(artifact.kind)
    if report is None:
        return "pass"
    return str(json.loads((artifact.path / report).read_text("utf-8"))["verdict"]).lower()


def current(run: Run, *names: str) -> list[Artifact]:
    """The artifacts of stages that must be current already.

    Raises:
        NotAnArtifactError: One of them is stale; the message names the command that makes it.
    """
    planned = {entry.stage.name: entry for entry in plan(run, names)}
    artifacts = []
    for name in names:
        entry = planned[name]
        if entry.state != "current" or entry.path is None:
            raise NotAnArtifactError(
                f"{run.path}: stage {name!r} is {entry.state} ({entry.reason})",
                hint=f"Try: tuneline up {run.path}",
            )
        artifacts.append(open_artifact(entry.path))
    return artifacts


@dataclass(frozen=True)
class LoadTarget:
    """What a load test is run against, and with."""

    config: LoadTestConfig
    endpoint: Endpoint
    prompts: list[list[dict[str, str]]]
    inputs: list[Input]


@contextlib.contextmanager
def load_target(run: Run) -> Iterator[LoadTarget]:
    """Serve a finished run's model, for load tests beyond the line's own.

    Raises:
        NotAnArtifactError: The dataset or the served artifact is stale.
        TamperedError: One of them differs from its manifest.
        ServerError: As of `serving.server.running`.
    """
    served = "adapter" if run.config.serving.mode == "adapter" else "model"
    names = ("dataset", served)
    made = dict(zip(names, current(run, *names), strict=True))
    for artifact in made.values():
        verify_artifact(artifact)
    base = _base(run, download=True)
    with ExitStack() as stack:
        stack.enter_context(_only_one(run))
        server = _LazyServer(run, base, stack)
        line = Line(run, base, server.endpoint)
        yield LoadTarget(
            loadtest_config(run),
            server.endpoint(made),
            heldout_prompts(made["dataset"]),
            served_inputs(line, made),
        )


def served_model(run: Run) -> tuple[ModelSource, Artifact | None]:
    """What `serving` puts on the network: the merged model, or the base and its adapter."""
    if run.config.serving.mode == "adapter":
        (adapter,) = current(run, "adapter")
        verify_artifact(adapter)
        return _base(run, download=True), adapter
    (model,) = current(run, "model")
    verify_artifact(model)
    return model_source(model), None


def _plan_stage(run: Run, stage: Stage, base: ModelSource, made: Made) -> Planned:
    missing = [name for name in stage.needs if name not in made]
    if missing:
        return Planned(stage, "waiting", f"needs {', '.join(missing)}", None)
    inputs = [made[name].as_input(name) for name in stage.needs]
    if stage.name == "dataset":
        inputs = _data_files(run)
    else:
        inputs.append(base.as_input("base"))
    if stage.name == "load" and (workload := workload_file(run)) is not None:
        inputs.append(workload)
    sections = stage.config if isinstance(stage.config, tuple) else (stage.config,)
    key = canonical_digest(
        {
            "config": [section.model_dump(mode="json") for section in sections],
            "inputs": [[entry.role, entry.digest] for entry in inputs],
            # The served model's names carry the run's name.
            "name": run.config.name,
        }
    ).removeprefix("sha256:")[:10]
    path = run.dir / f"{stage.name}-{key}"
    if path.exists():
        verdict = _verdict(open_artifact(path))
        if verdict in ("inconclusive", "invalid"):
            return Planned(stage, "stale", f"the last measurement was {verdict}", path)
    else:
        earlier = any(run.dir.glob(f"{stage.name}-*/manifest.json"))
        reason = "its configuration or an input changed" if earlier else "not made yet"
        return Planned(stage, "stale", reason, path)
    return Planned(stage, "current", "up to date", path)


def _selected(run: Run, until: Sequence[str]) -> list[Stage]:
    all_stages = stages(run)
    by_name = {stage.name: stage for stage in all_stages}
    unknown = [name for name in until if name not in by_name]
    if unknown:
        raise ConfigError(f"no stage {unknown[0]!r}; the stages are {', '.join(by_name)}")
    wanted = set(until) or set(by_name)
    for stage in reversed(all_stages):
        if stage.name in wanted:
            wanted |= set(stage.needs)
    return [stage for stage in all_stages if stage.name in wanted]


def _require_ready(run: Run, selected: Sequence[Stage], base: ModelSource) -> None:
    """What would stop a late stage stops the line before training, not after it."""
    pending = [e.stage.name for e in _planned(run, selected, base) if e.state != "current"]
    for name in pending:
        if name in FORMS:
            prepare_form(name)
    if {"parity-served", "evaluation-served", "load"} & set(pending):
        from serving.supervisor.process import require_server

        require_server(run.config.serving.port)
    if "load" in pending:
        workload_file(run)


def workload_file(run: Run) -> Input | None:
    """The load test's own file, where it has one.

    Raises:
        DataError: It is not there.
    """
    path = run.config.loadtest.workload.path
    return None if path is None else _file_input(run, "loadtest.workload.path", path)


def _base(run: Run, *, download: bool) -> ModelSource:
    """The base model, as it is cached: a second `up` asks the network nothing."""
    config = run.config

    def resolve(download: bool) -> ModelSource:
        return resolve_model(
            config.base_model,
            relative_to=run.path.parent,
            revision=config.base_revision,
            download=download,
        )

    try:
        return resolve(False)
    except MissingError:
        if not download:
            raise
    return resolve(True)


def _data_files(run: Run) -> list[Input]:
    inputs = []
    for key in ("path", "heldout_path"):
        name = getattr(run.config.data, key)
        if name is None:
            continue
        inputs.append(_file_input(run, f"data.{key}", name))
    return inputs


def _file_input(run: Run, key: str, name: str | Path) -> Input:
    path = run.resolve(name)
    if not path.is_file():
        raise DataError(
            f"{run.path}: {key}: no such file: {path}",
            hint="Check the path; it starts from the directory of run.yaml.",
        )
    return Input(role=key, kind="file", digest=f"sha256:{file_sha256(path)}")


@contextlib.contextmanager
def _only_one(run: Run) -> Iterator[None]:
    """Two `up`s of one run would train the same adapter twice."""
    try:
        run.dir.mkdir(parents=True, exist_ok=True)
        lock = (run.dir / ".lock").open("w")
    except OSError as error:
        raise cannot_write(run.dir, error) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ArtifactError(
                f"{run.dir}: another tuneline is at work in it", hint="Wait for it, or end it."
            ) from None
        yield


@dataclass
class _LazyServer:
    """The endpoint of this `up`, started when the first stage asks for it."""

    run: Run
    base: ModelSource
    stack: ExitStack
    started: Endpoint | None = field(default=None)

    def endpoint(self, made: Made) -> Endpoint:
        if self.started is None:
            self.started = self.stack.enter_context(self._running(made)).endpoint
        return self.started

    def _running(self, made: Made) -> AbstractContextManager[Any]:
        from serving.supervisor.process import running

        config = self.run.config
        adapter = made["adapter"] if config.serving.mode == "adapter" else None
        model = self.base if adapter is not None else model_source(made["model"])
        return running(
            config.serving,
            model,
            name=config.name,
            adapter=adapter,
            log_path=self.run.dir / "vllm.log",
            port=config.serving.port,
        )

"""run.yaml → plan → stages: runs what is stale and skips what is not.

A stage's artifact lies in `<stage>-<key>`, where the key is a digest of the stage's configuration
and of its inputs' digests. So a stage is current when that directory is a complete artifact; a
changed section moves the key of its stage, and of those after it once the new content is known.
Artifacts of earlier configurations stay, and going back to one costs nothing.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from export.config import FormName, OnnxConfig, QuantizeConfig
from loadtest.config import LoadTestConfig
from tuneline.config import Run
from tuneline.core.artifact import (
    Artifact,
    Input,
    canonical_digest,
    disk_full,
    file_sha256,
    open_artifact,
    verify_artifact,
)
from tuneline.core.config import StrictModel
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
from tuneline.core.model_source import ModelSource, computed_dtype, resolve_model
from tuneline.core.progress import logger

Made = dict[str, Artifact]


@dataclass(frozen=True)
class Line:
    """What every stage may use: the run, its base model, and the running server."""

    run: Run
    base: ModelSource
    endpoint: Callable[[Made], Endpoint]
    """Starts the server on first use; later stages of the same `up` share it."""


@dataclass(frozen=True)
class Stage:
    """One step of the line.

    Attributes:
        name: Also the first part of its artifact's directory name.
        title: What it does, for people.
        config: The sections that decide its result.
        needs: Names of the stages whose artifacts it reads.
        step: Writes the artifact.
    """

    name: str
    title: str
    config: StrictModel | tuple[StrictModel, ...]
    needs: tuple[str, ...]
    step: Callable[[Line, Made, Path], Artifact]


State = Literal["current", "stale", "waiting"]


@dataclass(frozen=True)
class Planned:
    """A stage and whether it has to run."""

    stage: Stage
    state: State
    reason: str
    path: Path | None
    """Where its artifact is or will be; None while an input is not made yet."""


def _dataset(line: Line, _made: Made, out: Path) -> Artifact:
    from training.data import prepare

    data = line.run.config.data
    heldout = data.heldout_path
    return prepare(
        data,
        path=line.run.resolve(data.path),
        heldout_path=None if heldout is None else line.run.resolve(heldout),
        out=out,
    )


def _adapter(line: Line, made: Made, out: Path) -> Artifact:
    from training.finetune import train

    return train(line.run.config.training, made["dataset"], line.base, out)


def _reference(line: Line, made: Made, out: Path) -> Artifact:
    from training.reference import build_reference

    config = line.run.config.reference
    return build_reference(config, made["dataset"], line.base, made["adapter"], out)


def _evaluation_base(line: Line, made: Made, out: Path) -> Artifact:
    from training.evaluate import evaluate_model

    return evaluate_model(line.run.config.evaluation, made["dataset"], line.base, None, out)


def _evaluation_tuned(line: Line, made: Made, out: Path) -> Artifact:
    from training.evaluate import evaluate_model

    config = line.run.config.evaluation
    return evaluate_model(config, made["dataset"], line.base, made["adapter"], out)


def _model(line: Line, made: Made, out: Path) -> Artifact:
    from export.merge import merge

    return merge(line.run.config.export.merge, line.base, made["adapter"], out)


def _parity_merged(line: Line, made: Made, out: Path) -> Artifact:
    from export.parity import prove_model

    model = _source(made["model"])
    return prove_model(line.run.config.export.parity, made["reference"], model, out, form="merged")


def _form_stages(run: Run) -> list[Stage]:
    """Each form that the run asks for, and its proof."""
    export = run.config.export
    found = []
    for form in export.forms:
        section: StrictModel = StrictModel()
        if form == "pruned" and export.prune is not None:
            section = export.prune
        if form.startswith("quantized-"):
            section = _quantize_config(form, run)
        found += [
            Stage(form, f"Export {form}", section, ("model",), functools.partial(_form, form)),
            Stage(
                f"parity-{form}", f"Prove {form}", export.parity, ("reference", form),
                functools.partial(_parity_form, form),
            ),
        ]  # fmt: skip
    return found


def _form(form: FormName, line: Line, made: Made, out: Path) -> Artifact:
    model = _source(made["model"])
    if form == "pruned":
        from export.prune import prune

        section = line.run.config.export.prune
        assert section is not None  # noqa: S101 (the configuration was checked)
        return prune(section, model, out)
    if form.startswith("quantized-"):
        from export.quantize import quantize

        return quantize(_quantize_config(form, line.run), model, out)
    if form == "torchscript":
        from export.to_torchscript import export_torchscript

        return export_torchscript(model, out)
    if form == "torch-export":
        from export.to_torch_export import export_torch_export

        return export_torch_export(model, out)
    from export.to_onnx import export_onnx

    graphs = {
        "onnx-fp32": OnnxConfig(precision="fp32"),
        "onnx-int8": OnnxConfig(precision="int8"),
        "onnx-int4": OnnxConfig(precision="int4"),
        "onnx-logits": OnnxConfig(graph="logits"),
    }
    return export_onnx(graphs[form], model, out)


def _quantize_config(form: FormName, run: Run) -> QuantizeConfig:
    values = {
        "scheme": form.removeprefix("quantized-"),
        "group_size": run.config.export.merge.group_size,
    }
    return QuantizeConfig.model_validate(values)


def _parity_form(form: FormName, line: Line, made: Made, out: Path) -> Artifact:
    from export.parity import prove_model

    config = line.run.config.export.parity
    return prove_model(config, made["reference"], _source(made[form]), out, form=form)


def _parity_served(line: Line, made: Made, out: Path) -> Artifact:
    from serving.parity import prove_served

    serving = line.run.config.serving
    weights = line.base if serving.mode == "adapter" else _source(made["model"])
    return prove_served(
        serving.parity,
        made["reference"],
        line.endpoint(made),
        out,
        inputs=_served(line, made),
        dtype=computed_dtype(serving.dtype, weights),
    )


def _evaluation_served(line: Line, made: Made, out: Path) -> Artifact:
    from training.evaluate import evaluate_endpoint

    config = line.run.config.evaluation
    endpoint = line.endpoint(made)
    return evaluate_endpoint(config, made["dataset"], endpoint, out, inputs=_served(line, made))


def _load(line: Line, made: Made, out: Path) -> Artifact:
    from loadtest.run import run_loadtest

    return run_loadtest(
        loadtest_config(line.run),
        line.endpoint(made),
        out,
        prompts=heldout_prompts(made["dataset"]),
        inputs=_served(line, made),
    )


def loadtest_config(run: Run) -> LoadTestConfig:
    """The section `loadtest`, with its workload file as this process sees it."""
    config = run.config.loadtest
    if config.workload.path is None:
        return config
    path = str(run.resolve(config.workload.path))
    workload = config.workload.model_copy(update={"path": path})
    return config.model_copy(update={"workload": workload})


def stages(run: Run) -> list[Stage]:
    """The line, in order."""
    config = run.config
    served = "adapter" if config.serving.mode == "adapter" else "model"
    return [
        Stage("dataset", "Check, clean and split the data", config.data, (), _dataset),
        Stage(
            "evaluation-base", "Evaluate the base model", config.evaluation, ("dataset",),
            _evaluation_base,
        ),
        Stage("adapter", "Fine-tune a LoRA adapter", config.training, ("dataset",), _adapter),
        Stage(
            "evaluation-tuned", "Evaluate base + adapter", config.evaluation,
            ("dataset", "adapter"), _evaluation_tuned,
        ),
        Stage(
            "reference", "Record the trained model's answers", config.reference,
            ("dataset", "adapter"), _reference,
        ),
        Stage("model", "Merge adapter and base", config.export.merge, ("adapter",), _model),
        Stage(
            "parity-merged", "Prove the merged model", config.export.parity,
            ("reference", "model"), _parity_merged,
        ),
        *_form_stages(run),
        Stage(
            "parity-served", "Prove the served model", config.serving, ("reference", served),
            _parity_served,
        ),
        Stage(
            "evaluation-served", "Evaluate through the API", (config.serving, config.evaluation),
            ("dataset", served), _evaluation_served,
        ),
        Stage(
            "load", "Load-test the endpoint", (config.serving, config.loadtest),
            ("dataset", served), _load,
        ),
    ]  # fmt: skip


def plan(run: Run, until: Sequence[str] = ()) -> list[Planned]:
    """What `up` would do now: one entry per stage, in order.

    Args:
        run: The line.
        until: Names of the stages wanted, with those they need; all of them by default.

    Raises:
        MissingError: The base model is not to be found.
        DataError: A data file is missing.
    """
    base = _base(run, download=False)
    made: Made = {}
    planned = []
    for stage in _selected(run, until):
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
    made: Made = {}
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
        TamperedError: The served artifact differs from its manifest.
        ServerError: As of `serving.server.running`.
    """
    served = "adapter" if run.config.serving.mode == "adapter" else "model"
    names = ("dataset", served)
    made = dict(zip(names, current(run, *names), strict=True))
    base = _base(run, download=True)
    with ExitStack() as stack:
        stack.enter_context(_only_one(run))
        server = _LazyServer(run, base, stack)
        line = Line(run, base, server.endpoint)
        yield LoadTarget(
            loadtest_config(run),
            server.endpoint(made),
            heldout_prompts(made["dataset"]),
            _served(line, made),
        )


def served_model(run: Run) -> tuple[ModelSource, Artifact | None]:
    """What `serving` puts on the network: the merged model, or the base and its adapter."""
    if run.config.serving.mode == "adapter":
        (adapter,) = current(run, "adapter")
        verify_artifact(adapter)
        return _base(run, download=True), adapter
    (model,) = current(run, "model")
    verify_artifact(model)
    return _source(model), None


def heldout_prompts(dataset: Artifact) -> list[list[dict[str, str]]]:
    """The chat messages of a dataset's held-out rows, without their answers."""
    text = (dataset.path / "heldout.jsonl").read_text(encoding="utf-8")
    return [json.loads(line)["prompt"] for line in text.split("\n") if line]


def _plan_stage(run: Run, stage: Stage, base: ModelSource, made: Made) -> Planned:
    missing = [name for name in stage.needs if name not in made]
    if missing:
        return Planned(stage, "waiting", f"needs {', '.join(missing)}", None)
    inputs = [made[name].as_input(name) for name in stage.needs]
    if stage.name == "dataset":
        inputs = _data_files(run)
    else:
        inputs.append(base.as_input("base"))
    if stage.name == "load" and run.config.loadtest.workload.path is not None:
        inputs.append(_file_input(run, "loadtest.workload.path", run.config.loadtest.workload.path))
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


def _source(model: Artifact) -> ModelSource:
    return ModelSource(model.path.name, model.path, model.digest, model.kind)


def _served(line: Line, made: Made) -> list[Input]:
    """What the endpoint under test serves, for the report's manifest."""
    if line.run.config.serving.mode == "adapter":
        return [line.base.as_input("base"), made["adapter"].as_input("adapter")]
    return [made["model"].as_input("model")]


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
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise disk_full(run.dir) from error
        raise ArtifactError(
            f"{run.dir}: {error.strerror}; expected a directory to write to"
        ) from None
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
        from serving.server import running

        config = self.run.config
        adapter = made["adapter"] if config.serving.mode == "adapter" else None
        # The served name carries the digest: it must be that of the bytes.
        verify_artifact(made["model"] if adapter is None else adapter)
        model = self.base if adapter is not None else _source(made["model"])
        return running(
            config.serving,
            model,
            name=config.name,
            adapter=adapter,
            log_path=self.run.dir / "vllm.log",
            port=config.serving.port,
        )

"""The walk along a line: every artifact that is there, and why any other is not."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from tuneline.core.artifact import Artifact, open_artifact, remove_command, verify_artifact
from tuneline.core.documents import parse_json
from tuneline.core.errors import ArtifactError, ConfigError
from tuneline.core.files import MANIFEST, file_sha256
from tuneline.core.release import Release, Source, read_release
from tuneline.core.verdict import REPEATED, read_verdict
from tuneline.models.source import ModelSource
from tuneline.pipeline.plan import plan_stage
from tuneline.pipeline.run_config import Run, resolve_base
from tuneline.pipeline.server import served_stage, serves_adapter
from tuneline.pipeline.stage import EVALUATION_TUNED, LOADTEST, PARITY_SERVED, Made, Stage
from tuneline.pipeline.stages import stages
from tuneline.release.config import ReleaseConfig
from tuneline.release.rows import SCORES_FILE


@dataclass(frozen=True)
class Earlier:
    """The earlier release that a new one is compared with."""

    artifact: Artifact
    release: Release


@dataclass(frozen=True)
class Proofs:
    """The proofs of a line so far.

    Attributes:
        run: The run.
        base: Its base model.
        stages: Its stages, in order.
        made: The artifacts of the run's configuration whose bytes equal their manifest.
        problems: For each other stage, why its artifact is not a proof.
        broken: Stages whose artifact is there and differs from its manifest, with what to type.
        earlier: The earlier release, if the run names one.
    """

    run: Run
    base: ModelSource
    stages: list[Stage]
    made: Made
    problems: dict[str, str] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)
    earlier: Earlier | None = None

    @property
    def config(self) -> ReleaseConfig:
        return self.run.config.release

    @property
    def metric(self) -> str:
        """Return the metric of the evaluation gates.

        Few good answers of a method that compares two answers are word for word the expected one,
        so that exact match could not fall; ROUGE-L takes its place.
        """
        if self.config.metric is not None:
            return self.config.metric
        if self.run.config.training.method.compares and EVALUATION_TUNED in self.made:
            scores = self.read(EVALUATION_TUNED, SCORES_FILE)["metrics"]
            return "rouge_l" if "rouge_l" in scores else "exact_match"
        return "exact_match"

    @property
    def up(self) -> str:
        """Return the hint for a missing proof."""
        return f"Try: {self.run.command('up')}"

    def again(self, stage: str) -> str:
        """Return the hint that makes a proof again."""
        if read_verdict(self.made[stage]) in REPEATED:
            return f"Measure it again: {self.run.command('up')}"
        remove = remove_command(self.made[stage].path)
        return f"Make it again: {remove} && {self.run.command('up')}"

    @cached_property
    def served(self) -> Artifact | None:
        """Return the artifact that the server loads: the merged model, or the adapter."""
        return self.made.get(served_stage(self.run.config))

    @cached_property
    def served_digests(self) -> set[str]:
        """Return what the server loads: the merged model, or the adapter and its base model."""
        digests = set() if self.served is None else {self.served.digest}
        return digests | ({self.base.digest} if serves_adapter(self.run.config) else set())

    @property
    def measured_engine(self) -> str | None:
        """Return a digest of the server's settings in the load test; None if no file has it."""
        if LOADTEST not in self.made:
            return None
        found: str | None = self.read(LOADTEST, "report.json").get("endpoint", {}).get("engine")
        return found

    def has_stage(self, name: str) -> bool:
        """Return whether the line has a stage, made or not."""
        return any(stage.name == name for stage in self.stages)

    def names_of(self, kind: str) -> list[str]:
        """Return the names of the stages that make an artifact of a kind."""
        return [stage.name for stage in self.stages if stage.kind == kind]

    def source(self, stage: str, file: str, pointer: str = "") -> Source:
        """Return the place of a figure in an artifact's file."""
        artifact = self.made[stage]
        listed = {entry.path: entry.sha256 for entry in artifact.manifest.files}
        return Source(
            stage=stage,
            kind=artifact.kind,
            digest=artifact.digest,
            file=file,
            sha256=listed.get(file) or file_sha256(artifact.path / file),
            pointer=pointer,
        )

    def read(self, stage: str, file: str) -> Any:
        """Return the JSON document of a stage's artifact."""
        return parse_json((self.made[stage].path / file).read_text(encoding="utf-8"))

    def metrics_source(self, stage: str, pointer: str = "") -> Source:
        """Return the place of a figure that only the manifest has."""
        return self.source(stage, MANIFEST, f"/metrics{pointer}")


def collect_proofs(run: Run) -> Proofs:
    """Return the proofs of a run; every byte of them is compared with the manifests.

    Raises:
        ConfigError: The line ends without a served model.
        MissingError: The base model is not here.
        DataError: A data file is missing.
        ArtifactError: `release.previous` is not a release.
    """
    base = resolve_base(run, download=False)
    line = stages(run)
    if not any(stage.name == PARITY_SERVED for stage in line):
        raise ConfigError(
            f"{run.path}: training.method {run.config.training.method.type} makes a model that is "
            "not served; expected a line with a served model",
            hint="Try: --set 'serving.routes=[pooling]', which serves its scores",
        )
    planned: Made = {}
    whole: Made = {}
    problems: dict[str, str] = {}
    broken: dict[str, str] = {}
    for stage in line:
        try:
            entry = plan_stage(run, stage, base, planned)
            if entry.path is None or not entry.path.exists():
                problems[stage.name] = entry.reason
                continue
            artifact = open_artifact(entry.path, kind=stage.kind)
            planned[stage.name] = artifact
            verify_artifact(artifact)
        except ArtifactError as error:
            problems[stage.name] = error.message
            broken[stage.name] = error.hint or ""
            continue
        whole[stage.name] = artifact
    return Proofs(run, base, line, whole, problems, broken, _earlier(run))


def _earlier(run: Run) -> Earlier | None:
    if run.config.release.previous is None:
        return None
    path: Path = run.resolve(run.config.release.previous)
    artifact = open_artifact(path, kind="release")
    verify_artifact(artifact)
    return Earlier(artifact, read_release(path))

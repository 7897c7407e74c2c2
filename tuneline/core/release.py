"""`release.json`: what a release proves, as types with their reader and writer.

An artifact of kind `release` holds the file. The report and the manifests are made from it, so it
names every figure with the file that the figure comes from. Raise FORMAT_VERSION when a key changes
its name or its meaning; a new key with a default keeps the version.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from tuneline.core.artifact import Input, remove_command
from tuneline.core.config import StrictModel
from tuneline.core.documents import read_versioned
from tuneline.core.errors import NotAnArtifactError
from tuneline.core.files import FileEntry
from tuneline.core.verdict import Verdict

FormatVersion = Literal[1]
FORMAT_VERSION: FormatVersion = 1
RELEASE_KIND = "release"
RELEASE_FILE = "release.json"
BOM_FILE = "bom.json"
CARD_FILE = "README.md"
STATEMENT_FILE = "statement.json"
ROWS_FILE = "rows.json"
MODEL_SIGNATURE = "model.sig"
RELEASE_SIGNATURE = "release.sig"


class Outcome(StrEnum):
    """The result of a gate."""

    PASSED = "passed"
    FAILED = "failed"
    WAIVED = "waived"
    """The gate failed, and the caller of `tuneline release` waived it."""
    NOT_ASKED = "not asked"
    """The run does not have the stage or the setting that the gate is about."""


class Source(StrictModel):
    """The place that a figure or a gate comes from."""

    stage: str
    kind: str
    digest: str
    """Of the artifact."""
    file: str
    """Relative to the artifact's directory; `manifest.json` for figures that only the manifest
    has."""
    sha256: str
    """Of the file, as hexadecimal digits."""
    pointer: str = ""
    """JSON pointer into the file (RFC 6901); empty for the whole file."""


class Gate(StrictModel):
    """One condition of a release and its outcome."""

    name: str
    title: str
    """The question that the gate answers, in a few words."""
    outcome: Outcome
    required: str
    observed: str
    words: str
    """The outcome in one sentence."""
    hint: str = ""
    """The next command to type, if the gate failed."""
    reasons: list[str] = Field(default=[])
    """Short names of what failed, which waivers name."""
    why: str = ""
    """The reason of a waiver."""
    sources: list[Source] = Field(default=[])

    @property
    def passed(self) -> bool:
        """Return whether the gate does not stop the release."""
        return self.outcome is not Outcome.FAILED


class Figure(StrictModel):
    """One measured number."""

    name: str
    """Unique in a release, such as `evaluation.tuned.exact_match` or
    `load.open-poisson.ttft_s.p90`."""
    title: str
    value: float | int | str | None
    """Null if the measurement withholds the number."""
    unit: str = ""
    """`s`, `nats`, `tokens/s`, ...; empty for shares and counts."""
    interval: tuple[float | None, float | None] | None = None
    """At 95 %; a null bound is infinite."""
    source: Source


class Link(StrictModel):
    """One artifact of the chain from the data to the load report."""

    stage: str
    title: str
    kind: str
    digest: str
    directory: str
    """Name of its directory, which is next to the release in the run's directory."""
    manifest_sha256: str
    inputs: list[Input]
    size_bytes: int
    num_files: int
    created_at: str


class ReleasedModel(StrictModel):
    """The artifact that is served."""

    stage: str
    form: Literal["merged", "adapter"]
    """`adapter` if the server applies the adapter to the base model."""
    kind: str
    digest: str
    directory: str
    size_bytes: int
    served_name: str
    """The name that clients ask for."""
    weights: str
    """Number format of the weights, such as float32."""
    files: list[FileEntry]
    """Every file with its SHA-256, so that a copy can be checked without its manifest."""
    engine: str | None = None
    """A digest of the settings of the server that the load test measured."""


class Base(StrictModel):
    """A model that the released one was made from: its base, or the teacher of a distillation."""

    id: str
    """As run.yaml names it."""
    revision: str | None
    """Branch, tag or commit, for a model of the Hugging Face Hub."""
    digest: str
    license: str | None
    """SPDX identifier if there is one; None if it is not known, which fails a gate."""
    license_source: str = ""
    """Where the licence was found."""
    hub_id: str | None = None
    """Its name on the Hugging Face Hub; None for a folder."""


class Data(StrictModel):
    """The data that the model was trained on and evaluated with."""

    paths: list[str]
    """As run.yaml names them."""
    inputs: list[Input]
    """The files that were read, with their digests."""
    digest: str
    """Of the dataset artifact."""
    num_train: int
    num_heldout: int
    train_sha256: str
    heldout_sha256: str
    license: str | None
    license_source: str = ""


class Waiver(StrictModel):
    """A reason of a failed gate that does not stop the release."""

    gate: str
    reason: str = ""
    """The name of what failed; empty if an earlier Tuneline waived the whole gate."""
    why: str

    @property
    def said(self) -> str:
        """Return the gate and the reason, as a command names them."""
        return f"{self.gate}:{self.reason}" if self.reason else self.gate


class Reproduce(StrictModel):
    """How the line was run."""

    command: str
    python: str
    git_commit: str | None
    libraries: dict[str, str]
    hardware: dict[str, Any]


class Previous(StrictModel):
    """The earlier release that this one was compared with."""

    name: str
    digest: str
    """Of the release artifact."""
    model_digest: str
    created_at: str


class Release(StrictModel):
    """The content of `release.json`."""

    format_version: FormatVersion
    name: str
    """Of the run."""
    verdict: Literal[Verdict.PASS, Verdict.FAIL]
    """PASS if no gate failed; a waived gate does not fail."""
    created_at: str
    """UTC, ISO 8601."""
    tuneline_version: str
    model: ReleasedModel
    base: Base
    teacher: Base | None = None
    """The teacher of a distillation."""
    data: Data
    gates: list[Gate]
    figures: list[Figure]
    chain: list[Link]
    """In the order of the stages."""
    waivers: list[Waiver] = Field(default=[])
    reproduce: Reproduce
    previous: Previous | None = None
    config: dict[str, Any] = Field(default={})
    """The resolved run.yaml."""

    @model_validator(mode="after")
    def _consistent(self) -> Release:
        """Check that the gates and the waivers say the same as the verdict, a word in a file."""
        if self.verdict is Verdict.PASS and self.failed():
            names = ", ".join(gate.name for gate in self.failed())
            raise ValueError(f"the verdict PASS contradicts the failed gates: {names}")
        waived = {gate.name: gate for gate in self.gates if gate.outcome is Outcome.WAIVED}
        given = {(waiver.gate, waiver.reason) for waiver in self.waivers}
        needed = {(name, reason) for name, gate in waived.items() for reason in gate.reasons}
        if waived.keys() != set(self.waived) or not needed <= given:
            raise ValueError("the waivers are not those of the waived gates")
        return self

    def gate(self, name: str) -> Gate | None:
        """Return the gate of that name."""
        return next((gate for gate in self.gates if gate.name == name), None)

    def figure(self, name: str) -> Figure | None:
        """Return the figure of that name."""
        return next((figure for figure in self.figures if figure.name == name), None)

    def link(self, stage: str) -> Link | None:
        """Return the artifact of a stage."""
        return next((link for link in self.chain if link.stage == stage), None)

    @property
    def said_verdict(self) -> str:
        """Return the verdict with the gates that failed and were waived."""
        waived = ", ".join(self.waived)
        return f"{self.verdict}, waived: {waived}" if waived else str(self.verdict)

    @property
    def waived(self) -> list[str]:
        """Return the names of the waived gates."""
        return list(dict.fromkeys(waiver.gate for waiver in self.waivers))

    @property
    def task(self) -> str:
        """Return the Hub's name of what the model does."""
        return {
            "reward": "text-classification",
            "embedding": "feature-extraction",
            "reranker": "text-ranking",
        }.get(self.method, "text-generation")

    @property
    def gives(self) -> str:
        """Return what the model answers with."""
        return {"reward": "score", "embedding": "vector", "reranker": "score"}.get(
            self.method, "text"
        )

    @property
    def method(self) -> str:
        """Return the type of the training method."""
        return str(self.config.get("training", {}).get("method", {}).get("type"))

    def failed(self) -> list[Gate]:
        """Return the gates that stop the release."""
        return [gate for gate in self.gates if not gate.passed]


def read_release(path: Path) -> Release:
    """Read a release from its directory or from the file itself.

    The digest of the release is not checked here; `tuneline verify` does that.

    Raises:
        NotAnArtifactError: There is no such file.
        ArtifactError: It is not a release, or has another format version.
    """
    file = path / RELEASE_FILE if path.is_dir() else path
    if not file.is_file():
        raise NotAnArtifactError(
            f"{file}: no such file; expected the directory of a release",
            hint="Try: tuneline release RUN.yaml",
        )
    return read_versioned(
        file,
        Release,
        key="format_version",
        version=FORMAT_VERSION,
        what="a release",
        hint=f"Remove it and release again: {remove_command(file.parent)} "
        "&& tuneline release RUN.yaml",
    )

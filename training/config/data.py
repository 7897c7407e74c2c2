"""The `data` section."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from training.config.checks import ChecksConfig
from training.config.template import TemplateConfig
from tuneline.core.config import StrictModel

DEFAULT_HELDOUT_FRACTION = 0.1
UNKEYED: dict[str, Any] = {"keyed": False}
"""The digest of the files that were read is an input of the stage; their names are not."""

ShapeName = Literal[
    "alpaca",
    "prompt-completion",
    "messages",
    "sharegpt",
    "preference",
    "swift-preference",
    "gemini",
    "openai-preference",
    "compared",
    "arena",
    "label",
    "retrieval",
    "retrieval-lists",
    "triplet",
    "flag-embedding",
    "tevatron",
    "prompt",
    "text",
]


class ReadingConfig(StrictModel):
    """How the files of one source are found and read."""

    revision: str | None = Field(default=None, json_schema_extra=UNKEYED)
    """Branch, tag or commit of a Hugging Face dataset."""
    config: str | None = Field(default=None, json_schema_extra=UNKEYED)
    """Configuration (subset) of a Hugging Face dataset that has several."""
    split: str | None = Field(default=None, json_schema_extra=UNKEYED)
    """Split of a Hugging Face dataset or of a folder whose file names have splits; `train` if not
    given."""
    shape: ShapeName | None = None
    """The shape of every row, if the columns fit several; docs/data.md describes each."""
    columns: dict[str, str | None] = Field(default_factory=dict)
    """Our name of a column and the file's, such as `{prompt: question, completion: answer}`. A name
    that no shape has keeps the column under that name; null leaves our column out. A
    name such as `answers.text.0` is a place inside a column."""


class SourceConfig(ReadingConfig):
    """One of several sources of rows."""

    path: str = Field(json_schema_extra=UNKEYED)
    """As `data.path`."""
    weight: Annotated[float, Field(gt=0, le=1000)] = 1.0
    """How often each training row of the source is used: 2 is twice, 0.5 is a random half of the
    rows, 1.5 is each once and a random half again. Held-out rows are used once."""


class DataConfig(TemplateConfig, ReadingConfig):
    """The files with the rows, and how held-out rows are chosen."""

    path: str | None = Field(default=None, json_schema_extra=UNKEYED)
    """A file, a folder of files, or a Hugging Face dataset as `hf:owner/name`; relative to the
    run.yaml. JSON, JSON Lines, CSV, TSV or Parquet by its suffix, also compressed (.gz, .zst)."""
    sources: list[SourceConfig] = Field(default_factory=list)
    """Several sources in place of `path`."""
    heldout_path: str | None = Field(default=None, json_schema_extra=UNKEYED)
    """A second source, used for evaluation only; it is read as `path` is."""
    heldout_split: str | None = Field(default=None, json_schema_extra=UNKEYED)
    """The split of `heldout_path`, or of `path` if there is none, that is used for evaluation
    only."""
    heldout_fraction: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Share of the prompts that is held out when there is no `heldout_path` and no `heldout_split`;
    0.1 if nothing is given. Whole groups come as near to it as they fit."""
    system_prompt: Annotated[str, Field(min_length=1)] | None = None
    """Put before every row that has no system message."""
    bad_rows: Literal["refuse", "drop"] = "refuse"
    """A row that cannot be read is an error, or is dropped and counted."""
    seed: int = 0
    """Chooses which prompts are held out, and which rows a weight repeats or leaves out."""
    group_by: str | None = None
    """A column; the rows with one value of it are all trained on or all held out."""
    stratify_by: str | None = None
    """A column; `heldout_fraction` is held out of the prompts with each value of it, but at least
    one prompt of two or more."""
    checks: ChecksConfig = ChecksConfig()
    """Checks of the rows, and what happens to the rows that they find."""

    @model_validator(mode="before")
    @classmethod
    def _resolve_split(cls, values: Any) -> Any:
        if isinstance(values, dict):
            path, split, fraction = (
                values.get(name) is not None
                for name in ("heldout_path", "heldout_split", "heldout_fraction")
            )
            if (path or split) and fraction:
                other = "heldout_path" if path else "heldout_split"
                raise ValueError(f"give {other} or heldout_fraction, not both")
            for name in ("group_by", "stratify_by"):
                if (path or split) and values.get(name) is not None:
                    raise ValueError(f"{name} needs heldout_fraction; held-out rows are given")
            if not path and not split and not fraction:
                return {**values, "heldout_fraction": DEFAULT_HELDOUT_FRACTION}
        return values

    @model_validator(mode="after")
    def _check_sources(self) -> Self:
        if (self.path is None) == (not self.sources):
            raise ValueError("give either path or sources")
        if self.sources:
            own = [
                name
                for name in ("revision", "config", "split")
                if getattr(self, name) is not None and self.heldout_path is None
            ]
            if own:
                raise ValueError(f"{own[0]}: belongs to an entry of sources")
            if self.heldout_split and self.heldout_path is None:
                raise ValueError("heldout_split needs path or heldout_path")
        return self

    def train_sources(self) -> list[SourceConfig]:
        """Return the sources of training rows, in order."""
        if self.path is None:
            return self.sources
        return [SourceConfig(path=self.path, **self._reading())]

    def heldout_source(self) -> SourceConfig | None:
        """Return the source of held-out rows; None if they are a share of the training rows."""
        path = self.heldout_path or (self.path if self.heldout_split else None)
        if path is None:
            return None
        split = self.heldout_split or (self.split if self.heldout_path is None else None)
        return SourceConfig(path=path, **{**self._reading(), "split": split})

    def recorded(self) -> dict[str, Any]:
        """Return what the manifest records: all but the paths, whose digests are inputs."""
        values = self.model_dump(mode="json", exclude={"path", "heldout_path"})
        for source in values["sources"]:
            del source["path"]
        return values

    def _reading(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ReadingConfig.model_fields}

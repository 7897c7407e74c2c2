"""Check data files as intake does; only a picture is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from training.config.checks import ChecksConfig
from training.config.data import ReadingConfig, SourceConfig
from training.data.checks.length import LengthLimit
from training.data.checks.picture import draw_checks
from training.data.checks.report import describe_checks, report_of
from training.data.checks.run import check_rows, require_accepted
from training.data.checks.spool import Spool
from training.data.rows import Counts, stream_rows
from training.data.sources import open_source
from tuneline.core.disk import cannot_write
from tuneline.core.errors import ConfigError, DataError
from tuneline.models.source import ModelSource

PICTURES = (".png", ".svg")


@dataclass(frozen=True)
class FileReport:
    """The findings in data files."""

    document: dict[str, Any]
    lines: list[str]
    refusal: DataError | None
    """The error with which intake ends, if a check with the action `refuse` has findings."""


def check_files(
    paths: Sequence[str],
    *,
    heldout: str | None = None,
    checks: ChecksConfig | None = None,
    base: ModelSource | None = None,
    max_length: int = 2048,
    reading: ReadingConfig | None = None,
    bad_rows: Literal["refuse", "drop"] = "refuse",
    picture: Path | None = None,
) -> FileReport:
    """Run every check on data files, and return what intake would drop, change and refuse.

    Args:
        paths: Training rows, each as `data.path`, relative to the current folder.
        heldout: Held-out rows; without them, there are no leaks to find.
        checks: The section `data.checks`.
        base: The model whose tokenizer counts tokens; without it, lengths are not checked.
        max_length: The most tokens of a row.
        reading: How the files are read.
        bad_rows: Whether a row that cannot be read is an error, or is dropped and counted.
        picture: A PNG or SVG file to draw.

    Raises:
        ConfigError: The picture is of another type.
        DataError: Rows cannot be read.
    """
    if picture is not None and picture.suffix.lower() not in PICTURES:
        raise ConfigError(f"--picture {picture}: expected a name that ends in .png or .svg")
    checks = checks or ChecksConfig()
    given = {} if reading is None else reading.model_dump()
    limit = None if base is None else LengthLimit(base.path, max_length, checks.length)
    counts = {"train": Counts(), "heldout": Counts()}
    with (
        TemporaryDirectory(prefix="tuneline-") as folder,
        Spool(Path(folder) / "rows.jsonl") as spool,
    ):
        for path in paths:
            source = open_source(SourceConfig(path=path, **given), Path(), "FILE")
            spool.add(stream_rows([source], counts["train"], bad_rows=bad_rows))
        if heldout is not None:
            one = {**given, "split": None} if heldout not in paths else given
            source = open_source(SourceConfig(path=heldout, **one), Path(), "--eval")
            rows = stream_rows([source], counts["heldout"], bad_rows=bad_rows)
            spool.add(rows, heldout=True)
        checked = check_rows(spool, checks, limit=limit)
        document = report_of(checked)
        for side, read in counts.items():
            found = document["rows"][side]
            found |= {"num_read": read.num_read, "dropped": read.dropped | found["dropped"]}
        if picture is not None:
            try:
                draw_checks(checked, document, picture)
            except OSError as error:
                raise cannot_write(picture, error) from None
    refusal = None
    try:
        require_accepted(checked)
    except DataError as error:
        refusal = error
    return FileReport(document, describe_checks(document), refusal)

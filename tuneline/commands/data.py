"""The commands on data files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tuneline.commands.options import AsJson
from tuneline.commands.printing import emit
from tuneline.core.errors import ConfigError

DataFile = Annotated[
    str, typer.Argument(metavar="FILE", help="A data file, a folder of them, or hf:owner/name.")
]
Columns = Annotated[
    list[str] | None,
    typer.Option("--column", metavar="OURS=THEIRS", help="Our name of a column and the file's."),
]
Shape = Annotated[str | None, typer.Option(help="The shape of every row, if several fit.")]
Split = Annotated[str | None, typer.Option(help="Split of a folder or of a Hub dataset.")]
Configuration = Annotated[
    str | None, typer.Option("--config", help="Configuration of a Hub dataset.")
]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a Hub dataset.")]


def data_convert(
    file: DataFile,
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The new JSON Lines file.")],
    to: Annotated[
        str | None,
        typer.Option(help="messages, prompt-completion, preference, label, prompt or text."),
    ] = None,
    columns: Columns = None,
    shape: Shape = None,
    split: Split = None,
    configuration: Configuration = None,
    revision: Revision = None,
    drop_bad_rows: Annotated[
        bool, typer.Option("--drop-bad-rows", help="Drop and count rows that cannot be read.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Convert a file, a folder or a Hub dataset to JSON Lines of one form, and count its rows."""
    from training import convert_data
    from training.config.data import ReadingConfig
    from tuneline.core.config import validate_config

    values = {
        "columns": column_map(columns or []),
        "shape": shape,
        "split": split,
        "config": configuration,
        "revision": revision,
    }
    reading = validate_config(ReadingConfig, values, "options")
    counts = convert_data(
        file, out, to=to, reading=reading, bad_rows="drop" if drop_bad_rows else "refuse"
    )
    num_written = counts.num_read - sum(counts.dropped.values())
    dropped = [f"{count:,} dropped: {reason}" for reason, count in counts.dropped.items()]
    emit(
        {
            "path": str(out),
            "num_read": counts.num_read,
            "num_written": num_written,
            "dropped": counts.dropped,
        },
        [f"written: {out}", f"{counts.num_read:,} rows read, {num_written:,} written", *dropped],
        as_json,
    )


def column_map(columns: list[str]) -> dict[str, str | None]:
    """Return the names of columns that options give as `ours=theirs`.

    Raises:
        ConfigError: An option has no `=`.
    """
    found: dict[str, str | None] = {}
    for column in columns:
        ours, equals, theirs = column.partition("=")
        if not equals or not ours:
            raise ConfigError(
                f"--column {column}: expected OURS=THEIRS", hint="Try: --column prompt=question"
            )
        found[ours] = theirs or None
    return found

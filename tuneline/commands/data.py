"""The commands on data files."""

from __future__ import annotations

import json
import os
import sys
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tuneline.commands.option_values import endpoint_of, refuse, required, section_of
from tuneline.commands.options import AsJson, KeyEnv, ModelName, Overrides, Url
from tuneline.commands.printing import emit, set_goes_on
from tuneline.core.errors import ConfigError

if TYPE_CHECKING:
    from training import ShownToken

DataFile = Annotated[
    str, typer.Argument(metavar="FILE", help="A data file, a folder of them, or hf:owner/name.")
]
Columns = Annotated[
    list[str] | None,
    typer.Option("--column", metavar="OURS=THEIRS", help="Our name of a column and the file's."),
]
NewRows = Annotated[Path, typer.Option("--out", metavar="FILE", help="The new JSON Lines file.")]
Shape = Annotated[str | None, typer.Option(help="The shape of every row, if several fit.")]
Split = Annotated[str | None, typer.Option(help="Split of a folder or of a Hub dataset.")]
Configuration = Annotated[
    str | None, typer.Option("--config", help="Configuration of a Hub dataset.")
]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a Hub dataset.")]
DropBadRows = Annotated[
    bool, typer.Option("--drop-bad-rows", help="Drop and count rows that cannot be read.")
]


def data_convert(
    file: DataFile,
    out: NewRows,
    to: Annotated[
        str | None,
        typer.Option(help="messages, prompt-completion, preference, label, prompt or text."),
    ] = None,
    columns: Columns = None,
    shape: Shape = None,
    split: Split = None,
    configuration: Configuration = None,
    revision: Revision = None,
    drop_bad_rows: DropBadRows = False,
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
    dropped = [f"{count:,} dropped: {reason}" for reason, count in counts.dropped.items()]
    emit(
        {
            "path": str(out),
            "num_read": counts.num_read,
            "num_written": counts.num_kept,
            "dropped": counts.dropped,
        },
        [
            f"written: {out}",
            f"{counts.num_read:,} rows read, {counts.num_kept:,} written",
            *dropped,
        ],
        as_json,
    )


def data_check(
    files: Annotated[list[str], typer.Argument(metavar="FILE", help="Training rows.")],
    heldout: Annotated[
        str | None, typer.Option("--eval", metavar="FILE", help="Held-out rows, for leaks.")
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Base model, whose tokenizer counts the tokens."),
    ] = None,
    max_length: Annotated[
        int | None, typer.Option(min=1, help="With --base, most tokens of a row (2048).")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="A key of the checks: data.checks.refusals=fix"
        ),
    ] = None,
    picture: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw the findings: a .png or .svg file.")
    ] = None,
    columns: Columns = None,
    shape: Shape = None,
    split: Split = None,
    configuration: Configuration = None,
    revision: Revision = None,
    drop_bad_rows: DropBadRows = False,
    as_json: AsJson = False,
) -> None:
    """Find duplicates, leaks, bad answers, personal data and more in data files.

    Only the picture is written. The counts are what the intake of a run drops and changes.
    Exit code 2 if a check with the action refuse has findings.
    """
    from training import check_files
    from training.config.checks import ChecksConfig
    from training.config.data import ReadingConfig
    from tuneline.core.config import validate_config
    from tuneline.models.source import resolve_model

    if base is None:
        refuse("without --base", {"--max-length": max_length})
    values = section_of(overrides, "data.checks", "a data file", "refusals=fix")
    given = {"shape": shape, "split": split, "config": configuration, "revision": revision}
    reading = {"columns": column_map(columns or []), **given}
    report = check_files(
        files,
        heldout=heldout,
        checks=validate_config(ChecksConfig, values, "--set: data.checks"),
        base=None if base is None else resolve_model(base),
        max_length=max_length or 2048,
        reading=validate_config(ReadingConfig, reading, "options"),
        bad_rows="drop" if drop_bad_rows else "refuse",
        picture=picture,
    )
    drawn = [] if picture is None else ["", f"written: {picture}"]
    emit(report.document, [*report.lines, *drawn], as_json)
    if report.refusal is not None:
        raise report.refusal


def data_suspects(
    evaluation: Annotated[
        Path, typer.Argument(metavar="DIR", help="An evaluation of the trained model.")
    ],
    num_rows: Annotated[int, typer.Option("--rows", min=1, help="Most rows to list.")] = 20,
    as_json: AsJson = False,
) -> None:
    """List rows that may be mislabelled, by the trained model's loss."""
    from training import find_suspects
    from tuneline.core.artifact import open_artifact

    found = find_suspects(open_artifact(evaluation, kind="evaluation"), num_rows)
    lines = [
        f"line {row.line}: {row.nats_per_token:.2f} nats per token: expected {row.expected!r}, "
        f"the model answers {row.answer!r}: {row.prompt}"
        for row in found
    ]
    document = {"suspects": [asdict(row) for row in found]}
    emit(document, lines or ["no row: the model gives every expected answer"], as_json)


def data_augment(
    dataset: Annotated[Path, typer.Argument(metavar="DIR", help="A dataset artifact of a run.")],
    out: NewRows,
    function: Annotated[
        str | None, typer.Option("--with", metavar="FILE.py:FUNCTION", help="Makes the rows.")
    ] = None,
    url: Url = None,
    model: ModelName = None,
    api_key_env: KeyEnv = None,
    copies: Annotated[int, typer.Option(min=1, max=20, help="With --url, rewrites per row.")] = 1,
    num_rows: Annotated[int, typer.Option("--rows", min=1, help="Most rows to start from.")] = 1000,
    as_json: AsJson = False,
) -> None:
    """Write more training rows, by a Python function or a model that rewrites prompts.

    Rows start from the dataset's training rows. Rows that repeat a row or resemble a held-out
    prompt are dropped. The same command continues after an interruption.
    """
    from training import augment_data, endpoint_writer, function_writer, writer_name
    from tuneline.core.artifact import open_artifact

    if (function is None) == (url is None):
        raise ConfigError("give --with or --url, one of the two")
    endpoint = None
    with ExitStack() as stack:
        if url is not None:
            endpoint = endpoint_of(url, model, api_key_env)
            write = stack.enter_context(endpoint_writer(endpoint, copies))
        else:
            write = function_writer(required(function, "--with"))
        set_goes_on()
        counts = augment_data(
            open_artifact(dataset, kind="dataset"),
            write,
            out,
            origin=writer_name(function, endpoint, copies),
            max_rows=num_rows,
            endpoint=endpoint,
            copies=0 if endpoint is None else copies,
        )
    dropped = [f"{count:,} dropped: {reason}" for reason, count in counts.dropped.items()]
    if counts.num_unmade:
        dropped.append(f"{counts.num_unmade:,} rewrites cut off, empty or equal to the original")
    lines = [f"written: {out}", f"{counts.num_made:,} rows made, {counts.num_written:,} written"]
    # With the same held-out rows, no rewriting of a held-out prompt is trained.
    sources = f"[{{path: {dataset / 'train.jsonl'}}}, {{path: {out}}}]"
    held = dataset / "heldout.jsonl"
    use = f"Next, in run.yaml: data: {{sources: {sources}, heldout_path: {held}}}"
    emit({"path": str(out), **asdict(counts)}, [*lines, *dropped, use], as_json)


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


def data_show(
    file: DataFile,
    row: Annotated[int, typer.Option("--row", min=1, help="The row, from 1.")] = 1,
    base: Annotated[
        str, typer.Option(metavar="MODEL", help="The base model: a folder, an id, or tiny-base.")
    ] = "tiny-base",
    overrides: Overrides = None,
    columns: Columns = None,
    shape: Shape = None,
    split: Split = None,
    configuration: Configuration = None,
    revision: Revision = None,
    as_json: AsJson = False,
) -> None:
    """Print a row token by token, with the tokens that training learns marked."""
    from training import show_data
    from training.config import DataConfig, TrainingConfig
    from tuneline.core.config import apply_override, validate_config
    from tuneline.models.source import resolve_model

    given = {"shape": shape, "split": split, "config": configuration, "revision": revision}
    data = {"path": file, "columns": column_map(columns or []), **given}
    sections: dict[str, Any] = {"data": data, "training": {}}
    for override in overrides or []:
        apply_override(sections, override)
    if unknown := sections.keys() - {"data", "training"}:
        raise ConfigError(
            f"--set {sorted(unknown)[0]}: expected a key of data or training",
            hint="Try: --set data.chat_template_kwargs.enable_thinking=false",
        )
    examples = show_data(
        validate_config(DataConfig, sections["data"], "data"),
        validate_config(TrainingConfig, sections["training"], "training"),
        resolve_model(base),
        row,
        Path(),
    )
    in_colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    lines: list[str] = []
    for example in examples:
        num_trained = sum(token.is_trained for token in example.tokens)
        lines.append(f"{example.side}: {len(example.tokens)} tokens, {num_trained} trained (*)")
        lines += [
            _token_line(place, token, in_colour) for place, token in enumerate(example.tokens)
        ]
    document = {"file": file, "row": row, "base": base, "examples": [asdict(e) for e in examples]}
    emit(document, lines, as_json)


def _token_line(place: int, token: ShownToken, in_colour: bool) -> str:
    """Return a line with mark, position, id and text; the text is quoted as JSON."""
    text = json.dumps(token.text, ensure_ascii=False)
    line = f"{'*' if token.is_trained else ' '} {place:>6} {token.id:>8}  {text}"
    return typer.style(line, fg="green") if in_colour and token.is_trained else line

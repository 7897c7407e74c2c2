"""The command that writes a first run.yaml."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tuneline.commands.data import (
    Columns,
    Configuration,
    DropBadRows,
    Revision,
    Shape,
    Split,
    column_map,
)
from tuneline.commands.option_values import refuse
from tuneline.commands.options import AsJson
from tuneline.commands.printing import emit
from tuneline.core.errors import ConfigError

if TYPE_CHECKING:
    from training import DataFacts


def init(
    data: Annotated[
        str | None, typer.Option(help="A data file, a folder of them, or hf:owner/name.")
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="tiny-base, a model folder, or a Hugging Face id.")
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="FILE",
            help="A YAML, JSON or shell file of Axolotl, LLaMA-Factory, TRL, ms-swift or "
            "torchtune.",
        ),
    ] = None,
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The new file.")] = Path(
        "run.yaml"
    ),
    columns: Columns = None,
    shape: Shape = None,
    split: Split = None,
    configuration: Configuration = None,
    revision: Revision = None,
    drop_bad_rows: DropBadRows = False,
    as_json: AsJson = False,
) -> None:
    """Write a run.yaml with choices that fit the data, the base model and this machine.

    With --from, take over the configuration of another trainer.
    """
    from tuneline.pipeline.choices import require_new

    require_new(out)  # a download and a look at all rows take minutes
    done = [f"written: {out}", f"Next: tuneline check {out}"]
    if source is not None:
        given = {"--data": data, "--base": base, "--shape": shape, "--split": split}
        given |= {"--config": configuration, "--revision": revision}
        refuse(
            "with --from", {**given, "--column": columns, "--drop-bad-rows": drop_bad_rows or None}
        )
        _take_over(source, out, done, as_json)
        return
    from tuneline.models.source import resolve_model
    from tuneline.pipeline.first_run import write_first_run

    file, name = _both(data, base)
    model = resolve_model(name, relative_to=Path())
    written_name = os.path.relpath(name, out.parent) if Path(name).is_dir() else name
    options = {"columns": column_map(columns or []), "shape": shape, "split": split}
    options |= {"config": configuration, "revision": revision}
    options |= {"bad_rows": "drop"} if drop_bad_rows else {}
    facts = write_first_run(file, model, written_name, out, options)
    document = {
        "path": str(out),
        "num_rows": facts.counts.num_kept,
        "kind": facts.kind,
        "longest_row_tokens": facts.longest,
        "columns_not_trained_on": list(facts.other_columns),
    }
    found = f"{facts.counts.num_kept:,} rows of kind {facts.kind}"
    found += f"; the longest has {facts.longest:,} tokens"
    emit(document, [found, *_left_out(facts, out), *done], as_json)


def _left_out(facts: DataFacts, out: Path) -> list[str]:
    """Return the lines about columns that are not trained on."""
    lines = [f"not trained on: {', '.join(facts.other_columns)}"] if facts.other_columns else []
    if (column := facts.answer_column) is not None:
        lines.append(
            f"prompts without an answer are trained with rewards (GRPO). If {column} is the answer "
            f"to learn, remove {out} and add: --column {shlex.quote(f'completion={column}')}"
        )
    return lines


def _both(data: str | None, base: str | None) -> tuple[str, str]:
    """Return data and base model.

    Raises:
        ConfigError: One of them is not given.
    """
    if data is not None and base is not None:
        return data, base
    missing = [name for name, value in (("--data", data), ("--base", base)) if value is None]
    raise ConfigError(
        f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} required here",
        hint="Try: tuneline init --data rows.jsonl --base Qwen/Qwen3-0.6B, or with the shipped "
        "small model --base tiny-base. For the file of another trainer: tuneline init --from FILE",
    )


def _take_over(source: Path, out: Path, done: list[str], as_json: bool) -> None:
    """Write the run.yaml of another trainer's configuration, and name what it leaves out."""
    from tuneline.pipeline.foreign import write_foreign_run

    title, notes = write_foreign_run(source, out)
    lines = [f"not taken over: {note}" for note in notes]
    emit(
        {"path": str(out), "trainer": title, "not_taken_over": notes},
        [f"{source} is a configuration of {title}", *lines, *done],
        as_json,
    )

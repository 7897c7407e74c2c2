"""One row of any data file, token by token, as a base model is trained on it."""

from __future__ import annotations

import datetime
from pathlib import Path

from training.config import DataConfig, TrainingConfig
from training.data.rows import Counts, stream_rows
from training.data.sources import open_sources
from training.model import quiet_libraries
from training.rendering.show import ShownExample, show_pairs, show_row, show_texts
from tuneline.core.errors import DataError
from tuneline.models.chat import set_template
from tuneline.models.pairs import pair_reader
from tuneline.models.source import ModelSource
from tuneline.models.stop_tokens import served_stop_ids
from tuneline.models.tokenizer import load_tokenizer


def show_data(
    data: DataConfig, training: TrainingConfig, base: ModelSource, number: int, relative_to: Path
) -> list[ShownExample]:
    """Return the examples of one row, with its trained tokens marked.

    Args:
        number: The row among the rows of the sources, those that cannot be read included, from 1.
        relative_to: The folder that paths start from.

    Raises:
        ConfigError: The base model has no chat template, or cannot train on it.
        DataError: There is no such row, or it cannot be read or rendered.
    """
    quiet_libraries()
    sources, _ = open_sources(data, relative_to)
    counts = Counts()
    rows = stream_rows(sources, counts, system_prompt=data.system_prompt, bad_rows=data.bad_rows)
    row = next((row for row in rows if counts.num_read >= number), None)
    where = ", ".join(source.config.path for source in sources)
    if row is None and counts.num_read < number:
        raise DataError(
            f"{where}: has no row {number:,}; expected a row from 1 to {counts.num_read:,}"
        )
    if row is None or counts.num_read > number:
        for _ in rows:  # its problem is raised after the last row
            pass
        raise DataError(f"{where}: row {number:,} cannot be read, and data.bad_rows drops it")
    tokenizer = load_tokenizer(base.path)
    if row.is_query and training.method.makes == "relevance":
        return show_pairs(pair_reader(base.path, tokenizer), tokenizer, row)
    if row.is_query:
        return show_texts(tokenizer, row, training.method.prompts(base.path))
    today = datetime.datetime.now(datetime.UTC).date()
    set_template(tokenizer, base.name, data.template_settings(today))
    stop_ids = served_stop_ids(base.path, tokenizer, training.eos_token)
    return show_row(
        tokenizer, row, stop_ids=stop_ids, file=row.file or where, train_on=training.train_on
    )

"""Checks of data and chat template that need no training step."""

from __future__ import annotations

from pathlib import Path

from training.config import DataConfig, TrainingConfig
from training.data.rows import Counts, stream_rows
from training.data.sources import open_sources
from training.methods import find_method
from training.model import quiet_libraries
from tuneline.models.chat import require_chat_template
from tuneline.models.source import ModelSource
from tuneline.models.stop_tokens import served_stop_ids
from tuneline.models.tokenizer import load_tokenizer


def check_data(
    config: TrainingConfig,
    base: ModelSource,
    data: DataConfig,
    relative_to: Path,
) -> dict[str, str]:
    """Read and render every row of the data as training does, and return what was found.

    Raises:
        TunelineError: The first file, template or row that cannot be used.
    """
    quiet_libraries()
    tokenizer = load_tokenizer(base.path)
    require_chat_template(tokenizer, base.name)
    stop_ids = served_stop_ids(base.path, tokenizer, config.eos_token)
    method = find_method(config.method)
    found: dict[str, str] = {}
    longest = 0
    last: set[str] = set()
    train, heldout = open_sources(data, relative_to)
    for source in [*train, *filter(None, [heldout])]:
        name = source.config.path + (f" {source.config.split}" if source.config.split else "")
        rows = list(
            stream_rows(
                [source], Counts(), system_prompt=data.system_prompt, bad_rows=data.bad_rows
            )
        )
        rendered = method.render(config, tokenizer, rows, stop_ids, name)
        longest = max(longest, *(len(row.input_ids) for row in rendered))
        last |= {tokenizer.decode(row.input_ids[-1]) for row in rendered}
        found[f"data {name}"] = f"{len(rows):,} rows"
    found["chat template"] = "every prompt is a prefix of its row"
    found["stop tokens"] = f"every answer ends with {' or '.join(sorted(last))}"
    found["longest row"] = f"{longest:,} of at most {config.max_length:,} tokens"
    return found

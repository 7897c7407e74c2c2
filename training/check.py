"""Checks of data, chat template and targets that need no training step."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from training.adapters.tokens import require_trained_tokens
from training.config import DataConfig, TrainingConfig
from training.config.launch import launch_line
from training.data.checks.length import LengthLimit, limit_of
from training.data.checks.repairs import repair_row
from training.data.row import Row
from training.data.rows import Counts, stream_rows
from training.data.sources import open_sources
from training.hardware import require_hardware
from training.heldout import require_heldout
from training.loop.arguments import require_schedule
from training.loop.best import require_metric
from training.methods import find_method, require_kinds
from training.methods.trial import require_trainer
from training.model import quiet_libraries
from training.tracking.reporting import chosen_trackers
from tuneline.core.digests import short_digest
from tuneline.models.chat import chosen_template, set_template, writes_date
from tuneline.models.context import require_context
from tuneline.models.source import ModelSource
from tuneline.models.stop_tokens import served_stop_ids
from tuneline.models.tokenizer import load_tokenizer


def check_data(
    config: TrainingConfig,
    base: ModelSource,
    data: DataConfig,
    relative_to: Path,
    require_fit: Callable[[int], dict[str, str]] = lambda _longest: {},
) -> dict[str, str]:
    """Read and render every row of the data as training does, and return what was found.

    Args:
        relative_to: The directory that paths of the data and of the method's files start from.
        require_fit: Checks the length of the longest row, in tokens, and returns what it found.

    Raises:
        TunelineError: The first file, template or row that cannot be used.
    """
    quiet_libraries()
    require_hardware(config)
    require_schedule(config)
    tokenizer = load_tokenizer(base.path)
    template, stop_ids = _set_template(config, base, data, tokenizer)
    config = config.model_copy(update={"method": config.method.resolved(relative_to)})
    method = find_method(config.method)
    require_metric(config, method)
    method.check_models(config, base, tokenizer)
    chosen_trackers(config)
    found = {}
    for model in config.method.models():
        found["teacher"] = f"{model.name} ({short_digest(model.digest)})"
    limit = limit_of(data, base.path, config) if data.checks.length.action == "fix" else None
    longest, dated = 0, False
    last: set[str] = set()
    train, heldout = open_sources(data, relative_to)
    train_rows: list[Row] = []
    some: list[Any] = []
    seen: set[int] = set()
    for source in [*train, *filter(None, [heldout])]:
        name = source.config.path + (f" {source.config.split}" if source.config.split else "")
        rows = list(_kept(source, data, limit))
        require_kinds(config.method, rows, name)
        if source is heldout:
            require_heldout(config, rows, name)
        train_rows += rows if source is not heldout else []
        rendered = method.render(config, tokenizer, rows, stop_ids, name)
        some += rendered[:2]
        for example in rendered:
            for token_ids in method.sequences(example):
                longest = max(longest, len(token_ids))
                if source is not heldout:
                    seen.update(token_ids)
                if template is not None and example.num_trained_tokens:
                    last.add(tokenizer.decode(token_ids[-1]))
        if template is not None and not dated:
            dated = writes_date(tokenizer, template, (row.prompt for row in rows))
        examples = "" if len(rendered) == len(rows) else f", {len(rendered):,} examples"
        found[f"data {name}"] = f"{len(rows):,} rows{examples}"
    method.check(config, train_rows, ", ".join(source.config.path for source in train))
    require_trained_tokens(config, tokenizer, [list(seen)])
    require_trainer(config, tokenizer, some[:2])
    found |= _template_said(data, sorted(last), dated=dated)
    found["method"] = f"{config.method.type}: {method.result}"
    if processes := launch_line(config):
        found["processes"] = processes
    found["longest row"] = f"{longest:,} of at most {config.max_length:,} tokens"
    require_context(base, longest, config.method.num_sampled_tokens)
    return found | require_fit(longest)


def _set_template(
    config: TrainingConfig, base: ModelSource, data: DataConfig, tokenizer: Any
) -> tuple[str | None, Sequence[int]]:
    """Give the tokenizer the chat template of the run, and return it with the stop tokens; None
    for a method without conversations."""
    if not config.method.renders_chats:
        return None, ()
    settings = data.template_settings(datetime.datetime.now(datetime.UTC).date())
    template = chosen_template(tokenizer, base.name, settings)
    set_template(tokenizer, base.name, settings)
    return template, served_stop_ids(base.path, tokenizer, config.eos_token)


def _kept(source: Any, data: DataConfig, limit: LengthLimit | None) -> Iterator[Row]:
    """Return a source's rows as the intake keeps them: changed, and without too long ones."""
    for row in stream_rows(
        [source], Counts(), system_prompt=data.system_prompt, bad_rows=data.bad_rows
    ):
        repaired = repair_row(row, data.checks, limit)
        if not repaired.is_dropped:
            yield repaired.row


def _template_said(data: DataConfig, last: Sequence[str], *, dated: bool) -> dict[str, str]:
    found = {}
    if last:
        found["chat template"] = "every prompt is a prefix of its row"
        found["stop tokens"] = f"every answer ends with {' or '.join(last)}"
    if data.chat_template_kwargs:
        found["template variables"] = json.dumps(data.chat_template_kwargs)
    if dated:
        found["date"] = _date_said(data.chat_template_date)
    return found


def _date_said(date: datetime.date | None) -> str:
    if date is not None:
        return f"the chat template writes today's date; in this run and its model {date}"
    return (
        "the chat template writes today's date; training, evaluation and proofs use the day on "
        "which the dataset is made, and the served model writes the day of the request. "
        "data.chat_template_date fixes the day everywhere"
    )

"""Facts about data that the choices of a first run.yaml depend on."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.config import DataConfig
from training.data.formats import row_place
from training.data.row import Kind, Row
from training.data.rows import Counts, stream_rows
from training.data.shapes.advice import ANSWERS
from training.data.sources import open_sources
from tuneline.core.errors import DataError
from tuneline.models.chat import conversation_token_ids, prompt_token_ids, set_template
from tuneline.models.named_templates import FOR_A_BASE_WITHOUT
from tuneline.models.source import ModelSource
from tuneline.models.template import TemplateSettings
from tuneline.models.tokenizer import load_tokenizer
from tuneline.models.tool_calls import tool_call_parser

NUM_MEASURED = 20_000
"""Rows whose tokens are counted; of a larger file, a random sample."""


@dataclass(frozen=True)
class DataFacts:
    """Kind and number of the rows, and their lengths in tokens of the base model.

    Attributes:
        counts: The rows read and dropped.
        kind: The kind of all rows.
        longest: Tokens of the longest row, prompt and answer.
        usual: Tokens of a row at the 95th percentile.
        longest_prompt: Tokens of the longest prompt.
        longest_answer: Tokens of the longest answer.
        num_measured: Rows whose tokens were counted.
        chat_template: `data.chat_template` for a base model that has none; else None.
        other_columns: Columns of the measured rows that are not trained on.
        answer_column: Of prompts without an answer, the other column whose name is that of answers.
        has_tools: Whether a measured row has tools or calls.
        tool_call_parser: vLLM's parser for the calls of the base model's template; None if no
            parser is known, or no row has tools.
    """

    counts: Counts
    kind: Kind
    longest: int
    usual: int
    longest_prompt: int
    longest_answer: int
    num_measured: int
    chat_template: str | None = None
    other_columns: tuple[str, ...] = ()
    answer_column: str | None = None
    has_tools: bool = False
    tool_call_parser: str | None = None


def measure_data(config: DataConfig, base: ModelSource, relative_to: Path) -> DataFacts:
    """Read the rows and count the tokens that the base model's template makes of them.

    Counts and kind are of the training rows; the lengths are of the held-out rows too.

    Raises:
        DataError: Rows cannot be read or rendered, or are of several kinds.
        ArtifactError: The base model has several chat templates and no default.
    """
    sources, heldout = open_sources(config, relative_to)
    counts = Counts()
    kinds: Counter[Kind] = Counter()
    rows = _sampled(stream_rows(sources, counts, bad_rows=config.bad_rows), kinds)
    if len(kinds) > 1:
        found = ", ".join(f"{count:,} of kind {kind}" for kind, count in kinds.items())
        raise DataError(
            f"{config.path}: has rows of several kinds: {found}; a method trains one kind",
            hint="Give each kind a file of its own, or set data.shape.",
        )
    [kind] = kinds
    tokenizer = load_tokenizer(base.path)  # takes seconds: rows that cannot be read come first
    named: str | None = config.chat_template
    if kind not in ("text", "retrieval"):
        if tokenizer.chat_template is None and named is None:
            named = FOR_A_BASE_WITHOUT
        set_template(tokenizer, base.name, TemplateSettings(named=named))
    num_measured = len(rows)
    if heldout is not None:
        rows += _sampled(stream_rows([heldout], Counts(), bad_rows=config.bad_rows), Counter())
    has_tools = any(row.tools or any("tool_calls" in m for m in row.messages) for row in rows)
    others = tuple(dict.fromkeys(name for row in rows for name in row.fields))
    answers = [name for name in others if name.casefold() in (*ANSWERS, "answers")]
    lengths = [_lengths(tokenizer, row) for row in rows]
    totals = sorted(prompt + answer for prompt, answer in lengths)
    return DataFacts(
        counts,
        kind,
        longest=totals[-1],
        usual=totals[max(-(-95 * len(totals) // 100) - 1, 0)],
        longest_prompt=max(prompt for prompt, _ in lengths),
        longest_answer=max(answer for _, answer in lengths),
        num_measured=num_measured,
        chat_template=named,
        other_columns=others,
        answer_column=answers[0] if answers and kind == "prompt" else None,
        has_tools=has_tools,
        tool_call_parser=tool_call_parser(tokenizer) if has_tools else None,
    )


def _sampled(rows: Iterable[Row], kinds: Counter[Kind]) -> list[Row]:
    """Return all rows, or a random sample of `NUM_MEASURED`; count the kind of each row."""
    kept: list[Row] = []
    draw = random.Random(0)
    for index, row in enumerate(rows):
        kinds[row.kind] += 1
        if index < NUM_MEASURED:
            kept.append(row)
        elif (place := draw.randrange(index + 1)) < NUM_MEASURED:
            kept[place] = row
    return kept


def _lengths(tokenizer: Any, row: Row) -> tuple[int, int]:
    """Return the tokens of a row's prompt, and of its longest answer."""
    from jinja2 import TemplateError

    if row.is_query:
        sizes = [len(tokenizer(text)["input_ids"]) for side in row.passages for text in side]
        longest, query = max(sizes), len(tokenizer(row.query)["input_ids"])
        # The texts are sequences of their own; the longest one counts.
        return query, max(longest - query, 0)
    if row.text is not None:
        return 0, len(tokenizer(row.text)["input_ids"]) + 1
    try:
        prompt = len(prompt_token_ids(tokenizer, row.prompt, row.tools))
        answers = [answer for answer in (row.completion, row.rejected) if answer]
        wholes = [
            len(conversation_token_ids(tokenizer, [*row.prompt, *answer], row.tools))
            for answer in answers
        ]
    except TemplateError as error:
        raise DataError(
            f"{row_place(row.file, row.line)}: the chat template refuses the row: {error}"
        ) from None
    return prompt, max([whole - prompt for whole in wholes], default=0)

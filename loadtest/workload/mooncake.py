"""`source: mooncake`: a trace with times, lengths and prefix blocks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np

from loadtest.workload.content import (
    MAX_PROBLEMS,
    Content,
    Prompt,
    Wanted,
    file_of,
    numbered_lines,
    read_text,
    token_ids,
)
from loadtest.workload_config import WorkloadConfig
from tuneline.core.errors import DataError

BLOCK_TOKENS = 512


def read(wanted: Wanted) -> Content:
    """Return the trace's requests in the order of their times."""
    prompts, trace_s = mooncake(wanted.workload, file_of(wanted.workload))
    return Content(prompts, trace_s)


class _TraceLine(msgspec.Struct):
    """A request of a Mooncake trace."""

    timestamp: Annotated[float, msgspec.Meta(ge=0, le=1e14)]
    """Milliseconds, also since 1970."""
    input_length: Annotated[int, msgspec.Meta(ge=0, le=10**7)]
    output_length: Annotated[int, msgspec.Meta(ge=0, le=10**8)]
    hash_ids: list[Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]] | None = None


@dataclass(frozen=True)
class TraceRequest:
    """A request of a trace, before it has tokens."""

    number: int
    """Line in the file."""
    time_s: float
    length: int
    answer_length: int
    hashes: list[int] | None


def mooncake(workload: WorkloadConfig, path: Path) -> tuple[list[Prompt], list[float]]:
    """Return the prompts of a trace and their times, in the order of the times.

    Equal hash ids become equal tokens, so requests share the prefixes that the trace shares.

    Raises:
        DataError: A line is not such a record; every such line is named.
    """
    lines = read_lines(path)
    times_s = [line.time_s for line in lines]
    order = np.argsort(times_s, kind="stable")
    found = [lines[place] for place in order]
    prompts = [Prompt(tokens_of(line, workload), max(line.answer_length, 1)) for line in found]
    return prompts, [line.time_s for line in found]


def read_lines(path: Path) -> list[TraceRequest]:
    """Read a Mooncake trace (Qin et al., FAST 2025): JSON Lines with `timestamp`
    in milliseconds, `input_length`, `output_length`, and `hash_ids` of its 512-token blocks.

    Raises:
        DataError: A line is not such a record; up to MAX_PROBLEMS such lines are named.
    """
    found, problems = [], []
    for number, line in numbered_lines(read_text(path)):
        try:
            record = msgspec.json.decode(line, type=_TraceLine)
        except (msgspec.DecodeError, RecursionError) as error:
            problems.append(f"{path}: line {number}: {error}")
            continue
        found.append(
            TraceRequest(
                number,
                record.timestamp / 1000,
                record.input_length,
                record.output_length,
                record.hash_ids,
            )
        )
    if problems:
        raise DataError(problems[:MAX_PROBLEMS])
    return found


def tokens_of(request: TraceRequest, workload: WorkloadConfig) -> list[int]:
    """Return token ids for a request's blocks. A request of no tokens has one, because a server
    takes no empty prompt."""
    hashes = request.hashes or [request.number]
    length = max(request.length, 1)
    ids: list[int] = []
    for place in range(-(-length // BLOCK_TOKENS)):
        # A block beyond the listed blocks belongs to this request only.
        key = [hashes[place]] if place < len(hashes) else [request.number, place, 1]
        rng = np.random.default_rng(key)
        ids += token_ids(rng, BLOCK_TOKENS, workload)
    return ids[:length]

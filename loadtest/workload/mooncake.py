"""`source: mooncake`: a trace with times, lengths and prefix blocks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np

from loadtest.config import WorkloadConfig
from loadtest.workload.content import Content, Prompt, Wanted, file_of, read_text, token_ids
from tuneline.core.errors import DataError

BLOCK_TOKENS = 512


def read(wanted: Wanted) -> Content:
    """Return the trace's requests in the order of their times."""
    prompts, trace_s = mooncake(wanted.workload, file_of(wanted.workload))
    return Content(prompts, trace_s)


class _TraceLine(msgspec.Struct):
    """A request of a Mooncake trace."""

    timestamp: Annotated[float, msgspec.Meta(ge=0, le=1e12)]
    """Milliseconds."""
    input_length: Annotated[int, msgspec.Meta(ge=0, le=10**8)]
    output_length: Annotated[int, msgspec.Meta(ge=0, le=10**8)]
    hash_ids: list[Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]] | None = None


def mooncake(workload: WorkloadConfig, path: Path) -> tuple[list[Prompt], list[float]]:
    """Read a Mooncake trace (Qin et al., FAST 2025): JSON Lines with `timestamp`
    in milliseconds, `input_length`, `output_length`, and `hash_ids` of its 512-token blocks.

    Equal hash ids become equal tokens, so requests share the prefixes that the trace shares.

    Raises:
        DataError: A line is not such a record; every such line is named.
    """
    prompts, times_s, problems = [], [], []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = msgspec.json.decode(line, type=_TraceLine)
        except (msgspec.DecodeError, RecursionError) as error:
            problems.append(f"{path}: line {number}: {error}")
            continue
        length, hashes = record.input_length, record.hash_ids or [number]
        ids: list[int] = []
        for place in range(-(-length // BLOCK_TOKENS)):
            # A block beyond the listed blocks belongs to this request only.
            key = [hashes[place]] if place < len(hashes) else [number, place, 1]
            rng = np.random.default_rng(key)
            ids += token_ids(rng, BLOCK_TOKENS, workload)
        prompts.append(Prompt(ids[: max(length, 1)], max(record.output_length, 1)))
        times_s.append(record.timestamp / 1000)
    if problems:
        raise DataError(problems[:20])
    order = np.argsort(times_s, kind="stable")
    return [prompts[place] for place in order], [times_s[place] for place in order]

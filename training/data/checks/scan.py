"""One pass over the rows on disk: each row's findings, keys and signatures, in two processes."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from training.config.checks import ChecksConfig
from training.data.checks.keys import (
    claim_keys,
    content_key,
    exchange_keys,
    prompt_key,
    short_key,
    spelling_key,
    tools_key,
    turn_keys,
)
from training.data.checks.languages import NUM_SAMPLED, language_of
from training.data.checks.length import LengthLimit
from training.data.checks.minhash import bands_of, jaccard, own_shingles, signature
from training.data.checks.repairs import config_of, repair_row
from training.data.checks.spool import Spool
from training.data.checks.table import CHECKS, REPAIRING
from training.data.checks.texts import answers_text, prompt_text
from training.data.row import Kind, Row

CHUNK_ROWS = 4_000
NUM_PROCESSES = 2
# Two processes take two seconds to start, so a small file is read by this process.
MIN_ROWS_FOR_PROCESSES = 20_000
KINDS: tuple[Kind, ...] = ("answer", "preference", "label", "prompt", "text", "retrieval")


@dataclass(frozen=True)
class Settings:
    """The configuration of a scan."""

    checks: ChecksConfig
    common: npt.NDArray[np.bool_]
    seed: int = 0
    group_by: str | None = None
    stratify_by: str | None = None
    limit: LengthLimit | None = None


@dataclass
class Part:
    """The result of a scan of some rows, after the checks that change rows.

    Arrays have one entry per row.
    """

    flagged: dict[str, dict[str, npt.NDArray[np.int64]]]
    """The indices of the rows with findings, by check and kind of finding."""
    changed: dict[str, npt.NDArray[np.int64]]
    """The indices of the rows that a check changed."""
    languages: list[str]
    keys: npt.NDArray[np.uint64]
    """[n, 7]: content, prompt, question, answer, spelling, group, stratum."""
    turns: npt.NDArray[np.uint64]
    """[m, 2]: index of a row, and the key of a prompt before an earlier answer that it trains."""
    exchanges: npt.NDArray[np.uint64]
    """[m, 3]: index of a row, and the keys of a question and of its answer; its own is first."""
    kinds: npt.NDArray[np.uint8]
    row_bands: npt.NDArray[np.uint32]
    prompt_bands: npt.NDArray[np.uint32]
    characters: npt.NDArray[np.uint32]
    """[n, 2]: of prompt and answer."""


def scan_rows(spool: Spool, run: Callable[..., Iterator[Any]]) -> Iterator[Part]:
    """Return the parts of a scan of all rows, in order."""
    starts = range(0, len(spool), CHUNK_ROWS)
    tasks = [(start, min(start + CHUNK_ROWS, len(spool))) for start in starts]
    yield from run(_scan_part, tasks)


@contextmanager
def workers(spool: Spool, settings: Settings) -> Iterator[Callable[..., Iterator[Any]]]:
    """Return a function that maps a worker's function over tasks, in order.

    Many rows are shared between two processes. The processes are spawned: a fork of a process
    with threads may hang.
    """
    if len(spool) < MIN_ROWS_FOR_PROCESSES:
        _start(spool, settings)
        yield lambda work, tasks: map(work, tasks)
        return
    spool.detach()
    pool = ProcessPoolExecutor(
        min(NUM_PROCESSES, os.cpu_count() or 1),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start,
        initargs=(spool, settings),
    )
    try:
        yield pool.map
    finally:
        pool.shutdown(cancel_futures=True)


_spool: Spool
_settings: Settings


def _start(spool: Spool, settings: Settings) -> None:
    """Keep the rows and the settings for the tasks of this process."""
    global _spool, _settings
    _spool, _settings = spool, settings


def _scan_part(task: tuple[int, int]) -> Part:
    start, end = task
    flagged: dict[str, dict[str, list[int]]] = {}
    changed: dict[str, list[int]] = {}
    languages, keys, kinds, characters = [], [], [], []
    turns: list[tuple[int, int]] = []
    exchanges: list[tuple[int, int, int]] = []
    prompts, wholes = [], []
    checks, limit = _settings.checks, _settings.limit
    single = [
        (check.name, check.find, config_of(check, checks, limit))
        for check in CHECKS
        if check.find is not None and check not in REPAIRING
    ]
    single = [entry for entry in single if entry[2] is not None and entry[2].action != "ignore"]
    languages_config = _settings.checks.languages
    has_languages = languages_config.action != "ignore"
    step = 1 if languages_config.expected else max(len(_spool) // NUM_SAMPLED, 1)
    for index, read in enumerate(_spool.read_all(start, end), start=start):
        repaired = repair_row(read, checks, limit)
        row = repaired.row
        for name, kinds_found in repaired.kinds.items():
            for kind in kinds_found:
                flagged.setdefault(name, {}).setdefault(kind, []).append(index)
        for name in repaired.changed:
            changed.setdefault(name, []).append(index)
        for name, find, config in single:
            for kind in {found.kind for found in find(row, config)}:
                flagged.setdefault(name, {}).setdefault(kind, []).append(index)
        for key in ("group_by", "stratify_by"):
            column = getattr(_settings, key)
            if column is not None and row.column(column) is None:
                flagged.setdefault(key, {}).setdefault("missing", []).append(index)
        languages.append(
            language_of(row, script_only=index % step > 0) if has_languages else "none"
        )
        keys.append(_keys(row, _settings))
        turns += [(index, key) for key in turn_keys(row, _settings.seed)]
        exchanges += [(index, *keys) for keys in exchange_keys(row)]
        kinds.append(KINDS.index(row.kind))
        prompt, answer = prompt_text(row), answers_text(row)
        characters.append((len(prompt), len(answer)))
        prompts.append(signature(own_shingles(prompt, _settings.common)))
        wholes.append(np.minimum(prompts[-1], signature(own_shingles(answer, _settings.common))))
    return Part(
        flagged={
            name: {kind: np.array(rows, dtype=np.int64) for kind, rows in found.items()}
            for name, found in flagged.items()
        },
        changed={name: np.array(rows, dtype=np.int64) for name, rows in changed.items()},
        languages=languages,
        keys=np.array(keys, dtype=np.uint64),
        turns=np.array(turns, dtype=np.uint64).reshape(-1, 2),
        exchanges=np.array(exchanges, dtype=np.uint64).reshape(-1, 3),
        kinds=np.array(kinds, dtype=np.uint8),
        row_bands=bands_of(np.stack(wholes)),
        prompt_bands=bands_of(np.stack(prompts)),
        characters=np.array(characters, dtype=np.uint32),
    )


def _keys(row: Row, settings: Settings) -> tuple[int, ...]:
    prompt = prompt_key(row, settings.seed)
    columns = (settings.group_by, settings.stratify_by)
    # The seed is part of a group's key, by which groups are ranked for the split.
    group, stratum = (short_key(settings.seed, row.column(name)) if name else 0 for name in columns)
    claims = claim_keys(row, prompt)
    return (content_key(row), prompt, *claims, spelling_key(row), group, stratum)


def compare_texts(
    task: tuple[npt.NDArray[np.int64], frozenset[int]],
) -> npt.NDArray[np.float32]:
    """Return the similarities of pairs of rows, in a worker: [n, 2] -> [n, 2].

    A task is the pairs, and those of their rows that a check changed.

    Of each pair, the first number is the Jaccard similarity of the prompts, the second that of the
    answers. Prompts with other tools are not similar, and answers with another label are not. Of
    preference pairs, chosen is compared with chosen and rejected with rejected; the less similar
    two count. Rows are read again from disk.
    """
    pairs, changed = task

    @lru_cache(maxsize=256)
    def sets(index: int) -> tuple[frozenset[int], list[frozenset[int]], tuple[Any, int]]:
        row = _spool.read(index)
        if index in changed:
            row = repair_row(row, _settings.checks, _settings.limit).row
        sides = [row] if not row.rejected else [
            replace(row, rejected=()), replace(row, completion=()),
        ]  # fmt: skip
        texts = [prompt_text(row), *map(answers_text, sides)]
        prompt, *answers = (
            frozenset(own_shingles(text, _settings.common).tolist()) for text in texts
        )
        return prompt, answers, (row.label, tools_key(row))

    found = np.zeros((len(pairs), 2), dtype=np.float32)
    for place, (first, second) in enumerate(pairs.tolist()):
        one, other = sets(first), sets(second)
        (one_label, one_tools), (other_label, other_tools) = one[2], other[2]
        if one_tools == other_tools:
            found[place, 0] = jaccard(one[0], other[0])
        if one_label == other_label and len(one[1]) == len(other[1]):
            found[place, 1] = min(map(jaccard, one[1], other[1]))
    return found

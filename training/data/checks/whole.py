"""All rows as arrays: the view of the checks that compare rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from training.data.checks.check import Check
from training.data.checks.personal_data import without_personal_data
from training.data.checks.repairs import repair_row
from training.data.checks.scan import KINDS, Part, Settings, compare_texts
from training.data.checks.spool import Spool
from training.data.row import Row

PAIRS_PER_TASK = 2_000


@dataclass
class Whole:
    """Every row that was read; arrays have one entry per row, except `turns` and `exchanges`.

    Attributes:
        turns: [m, 2]: index of a row, and the key of a prompt before an earlier answer that the row
            trains.
        exchanges: [m, 3]: index of a row, and the keys of a question that it answers and of the
            answer; see `exchange_keys`.
        content, prompt, question, answer, spelling, group, stratum: Keys of eight bytes; see
            `keys`.
        heldout: Whether a row is held out.
        votes_heldout: Whether a row counts among the answers of held-out rows; so do dropped
            duplicates of held-out rows.
        votes: Whether a row's answer counts: it is kept, or a dropped duplicate.
        dropped: 0 for a row that is kept, else 1 + the index of its reason in `reasons`.
        languages: Indices in `language_names`.
    """

    spool: Spool
    settings: Settings
    run: Callable[..., Iterator[Any]]
    content: npt.NDArray[np.uint64]
    prompt: npt.NDArray[np.uint64]
    question: npt.NDArray[np.uint64]
    answer: npt.NDArray[np.uint64]
    spelling: npt.NDArray[np.uint64]
    group: npt.NDArray[np.uint64]
    stratum: npt.NDArray[np.uint64]
    kinds: npt.NDArray[np.uint8]
    heldout: npt.NDArray[np.bool_]
    votes_heldout: npt.NDArray[np.bool_]
    votes: npt.NDArray[np.bool_]
    dropped: npt.NDArray[np.uint8]
    row_bands: npt.NDArray[np.uint32]
    prompt_bands: npt.NDArray[np.uint32]
    characters: npt.NDArray[np.uint32]
    languages: npt.NDArray[np.uint16]
    language_names: list[str]
    turns: npt.NDArray[np.uint64]
    exchanges: npt.NDArray[np.uint64]
    flagged: dict[str, dict[str, npt.NDArray[np.int64]]]
    """The rows with findings of the checks of single rows, by check and kind of finding."""
    changed: dict[str, npt.NDArray[np.int64]]
    """The rows that a check changed, by check."""
    is_changed: npt.NDArray[np.bool_]
    reasons: list[str]

    def kept(
        self, heldout: bool | None = None, *, kinds: tuple[str, ...] = KINDS
    ) -> npt.NDArray[np.int64]:
        """Return the indices of the rows that are kept: all, or of one side; of some kinds."""
        wanted = self.dropped == 0
        if heldout is not None:
            wanted = wanted & (self.heldout == heldout)
        if kinds != KINDS:
            wanted = wanted & np.isin(self.kinds, [KINDS.index(kind) for kind in kinds])
        return np.flatnonzero(wanted)

    def read_rows(self, heldout: bool) -> npt.NDArray[np.int64]:
        """Return the indices of the rows of one side that were read, dropped rows included."""
        return np.flatnonzero(self.heldout == heldout)

    def read(self, index: int, until: Check | None = None) -> Row:
        """Return a row after the checks that change rows; `until` leaves out a check and later
        ones."""
        return self.repaired(index, self.spool.read(index), until)

    def repaired(self, index: int, row: Row, until: Check | None = None) -> Row:
        """Return a row of the spool after the checks that change rows."""
        if not self.is_changed[index]:
            return row
        return repair_row(row, self.settings.checks, self.settings.limit, until).row

    def masked(self, text: str) -> str:
        """Return a text on one line, with personal data masked as `data.checks` says."""
        regions = self.settings.checks.personal_data.regions
        return " ".join(without_personal_data(text, regions).split())

    def similarities(self, pairs: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Return the similarities of the prompts and of the answers of pairs: [n, 2] -> [n, 2]."""
        starts = range(0, len(pairs), PAIRS_PER_TASK)
        parts = [pairs[start : start + PAIRS_PER_TASK] for start in starts]
        tasks = [(part, frozenset(part[self.is_changed[part]].tolist())) for part in parts]
        found = list(self.run(compare_texts, tasks))
        return np.concatenate([np.zeros((0, 2), dtype=np.float32), *found])


def gather(
    spool: Spool, settings: Settings, parts: Iterator[Part], run: Callable[..., Iterator[Any]]
) -> Whole:
    """Return all rows as arrays. The arrays are made once, at their full size."""
    size = len(spool)
    keys = np.zeros((size, 7), dtype=np.uint64)
    kinds, languages = np.zeros(size, dtype=np.uint8), np.zeros(size, dtype=np.uint16)
    characters = np.zeros((size, 2), dtype=np.uint32)
    row_bands = prompt_bands = np.zeros((size, 0), dtype=np.uint32)
    names: dict[str, int] = {}
    flagged: dict[str, dict[str, list[npt.NDArray[np.int64]]]] = {}
    changed: dict[str, list[npt.NDArray[np.int64]]] = {}
    is_changed = np.zeros(size, dtype=np.bool_)
    turns = [np.zeros((0, 2), dtype=np.uint64)]
    exchanges = [np.zeros((0, 3), dtype=np.uint64)]
    at = 0
    for part in parts:
        turns.append(part.turns)
        exchanges.append(part.exchanges)
        end = at + len(part.keys)
        if not at:
            row_bands, prompt_bands = (
                np.zeros((size, part.row_bands.shape[1]), dtype=np.uint32) for _ in range(2)
            )
        keys[at:end], kinds[at:end], characters[at:end] = part.keys, part.kinds, part.characters
        row_bands[at:end], prompt_bands[at:end] = part.row_bands, part.prompt_bands
        languages[at:end] = [names.setdefault(name, len(names)) for name in part.languages]
        for check, found in part.flagged.items():
            for kind, rows in found.items():
                flagged.setdefault(check, {}).setdefault(kind, []).append(rows)
        for check, rows in part.changed.items():
            changed.setdefault(check, []).append(rows)
            is_changed[rows] = True
        at = end
    content, prompt, question, answer, spelling, group, stratum = (
        np.ascontiguousarray(column) for column in keys.T
    )
    return Whole(
        spool, settings, run, content, prompt, question, answer, spelling, group, stratum, kinds,
        heldout=np.array(spool.heldout, dtype=np.bool_),
        votes_heldout=np.array(spool.heldout, dtype=np.bool_),
        votes=np.ones(size, dtype=np.bool_),
        dropped=np.zeros(size, dtype=np.uint8),
        row_bands=row_bands, prompt_bands=prompt_bands, characters=characters,
        languages=languages, language_names=list(names), turns=np.concatenate(turns),
        exchanges=np.concatenate(exchanges),
        flagged={
            check: {kind: np.concatenate(rows) for kind, rows in found.items()}
            for check, found in flagged.items()
        },
        changed={check: np.concatenate(rows) for check, rows in changed.items()},
        is_changed=is_changed,
        reasons=[],
    )  # fmt: skip

"""Which rows are held out: seeded, in each stratum, and never part of a group."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Keys = npt.NDArray[np.uint64]


def choose_heldout(
    prompts: Keys, fraction: float, *, groups: Keys | None = None, strata: Keys | None = None
) -> npt.NDArray[np.bool_]:
    """Return whether each row is held out.

    Rows with one prompt, or of one group, are on the same side; so are rows that are tied through
    others. Such a unit is ranked by its least prompt key, which depends on the seed. In each
    stratum the first units are held out: `fraction` of the units, but at least one of two or more,
    and never all. A unit belongs to the stratum of its first row.

    Args:
        prompts: A key of each row's prompt, made with the seed; see `checks.keys.prompt_key`.
        fraction: Share of the units that is held out.
        groups: A key of each row's group.
        strata: A key of each row's stratum.
    """
    unit = _units(prompts, groups)
    num_units = int(unit.max(initial=-1)) + 1
    rank = np.full(num_units, np.iinfo(np.uint64).max, dtype=np.uint64)
    np.minimum.at(rank, unit, prompts)
    _, first = np.unique(unit, return_index=True)
    stratum = np.zeros(num_units, dtype=np.uint64) if strata is None else strata[first]
    held = np.zeros(num_units, dtype=np.bool_)
    for value in np.unique(stratum):
        members = np.flatnonzero(stratum == value)
        number = min(max(round(fraction * len(members)), 1), len(members) - 1)
        held[members[np.argsort(rank[members], kind="stable")[:number]]] = True
    return held[unit]


def count_units(prompts: Keys, groups: Keys | None = None) -> int:
    """Return the number of units: of rows that are on one side together."""
    return int(_units(prompts, groups).max(initial=-1)) + 1


def _units(prompts: Keys, groups: Keys | None) -> npt.NDArray[np.int64]:
    """Return the number of each row's unit: rows are tied by prompt, and by group."""
    _, prompt = np.unique(prompts, return_inverse=True)
    if groups is None:
        return prompt.astype(np.int64)
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    _, group = np.unique(groups, return_inverse=True)
    num_prompts = int(prompt.max(initial=-1)) + 1
    size = num_prompts + int(group.max(initial=-1)) + 1
    ties = coo_array((np.ones(len(prompts)), (prompt, num_prompts + group)), shape=(size, size))
    _, component = connected_components(ties, directed=False)
    _, unit = np.unique(component[prompt], return_inverse=True)
    return unit.astype(np.int64)

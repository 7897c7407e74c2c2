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
    others. Such a unit is ranked by its least key of a group, or by its prompt's; these depend on
    the seed, and not on the unit's size. In each stratum the first units are held out that fit into
    `fraction` of the stratum's prompts: at least one unit of two or more, and never all. A unit
    belongs to the stratum of most of its rows.

    Args:
        prompts: A key of each row's prompt, made with the seed; see `checks.keys.prompt_key`.
        fraction: Share of the prompts that is held out.
        groups: A key of each row's group, made with the seed.
        strata: A key of each row's stratum.
    """
    unit = _units(prompts, groups)
    num_units = int(unit.max(initial=-1)) + 1
    rank = np.full(num_units, np.iinfo(np.uint64).max, dtype=np.uint64)
    np.minimum.at(rank, unit, prompts if groups is None else groups)
    _, first = np.unique(prompts, return_index=True)
    num_prompts = np.bincount(unit[first], minlength=num_units)
    stratum = np.zeros(num_units, dtype=np.uint64) if strata is None else _strata(unit, strata)
    held = np.zeros(num_units, dtype=np.bool_)
    for value in np.unique(stratum):
        members = np.flatnonzero(stratum == value)
        ranked = members[np.argsort(rank[members], kind="stable")]
        held[_fitting(ranked, num_prompts[ranked], fraction)] = True
    return held[unit]


def _fitting(
    ranked: npt.NDArray[np.int64], num_prompts: npt.NDArray[np.int64], fraction: float
) -> npt.NDArray[np.int64]:
    """Return the first units that fit into a fraction of all prompts together."""
    if len(ranked) < 2:
        return ranked[:0]
    wanted = max(round(fraction * int(num_prompts.sum())), 1)
    if num_prompts.max() == 1:
        return ranked[: min(wanted, len(ranked) - 1)]
    chosen: list[int] = []
    left = wanted
    for place, number in enumerate(num_prompts.tolist()):
        if number <= left and len(chosen) < len(ranked) - 1:
            chosen.append(place)
            left -= number
    # Every unit is larger than the share: the smallest comes nearest to it.
    return ranked[chosen or [int(num_prompts.argmin())]]


def _strata(unit: npt.NDArray[np.int64], strata: Keys) -> Keys:
    """Return the stratum that most rows of each unit have; of several, that of the least key."""
    _, stratum = np.unique(strata, return_inverse=True)
    pairs, counts = np.unique(np.stack([unit, stratum], axis=1), axis=0, return_counts=True)
    order = np.lexsort((pairs[:, 1], -counts, pairs[:, 0]))
    _, first = np.unique(pairs[order, 0], return_index=True)
    most: Keys = pairs[order[first], 1].astype(np.uint64)
    return most


def untied_prompts(prompts: Keys, groups: Keys) -> Keys:
    """Return keys of prompts for a split by group, in which shared prompts do not tie the groups.

    Prompts such as a greeting may tie most groups into one unit, and no split is left. Then a
    prompt has a key of its own in each group; it may be on both sides, where the check of leaks
    finds it. Other prompts keep their keys.
    """
    unit = _units(prompts, groups)
    _, first = np.unique(prompts, return_index=True)
    if 2 * np.bincount(unit[first]).max(initial=0) <= len(first):
        return prompts
    pairs = np.unique(np.stack([prompts, groups], axis=1), axis=0)
    shared, counts = np.unique(pairs[:, 0], return_counts=True)
    is_shared = np.isin(prompts, shared[counts > 1])
    apart = (prompts ^ groups) * np.uint64(0x9E3779B97F4A7C15)
    return np.where(is_shared, apart, prompts)


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

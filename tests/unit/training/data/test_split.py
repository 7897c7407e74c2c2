"""Rows that are held out: by the seed's order of prompts, in groups and in strata."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.data.split import choose_heldout


def keys(values: list[int]) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    return np.array(values, dtype=np.uint64)


def test_the_prompts_with_the_least_keys_are_held_out() -> None:
    held = choose_heldout(keys([50, 10, 30, 10, 20]), 0.5)
    assert held.tolist() == [False, True, False, True, True]


def test_at_least_one_prompt_is_on_each_side() -> None:
    assert choose_heldout(keys([2, 1]), 0.01).tolist() == [False, True]
    assert choose_heldout(keys([2, 1]), 0.99).tolist() == [False, True]


def test_a_group_is_on_one_side_and_ties_prompts() -> None:
    held = choose_heldout(keys([1, 2, 2, 3, 4, 5]), 0.6, groups=keys([7, 7, 8, 8, 9, 9]))
    assert held.tolist() == [True, True, True, True, False, False]


@pytest.mark.parametrize("seed", range(5))
def test_large_groups_do_not_take_more_than_the_share(seed: int) -> None:
    sizes = [1000, 400, 200, *[10] * 40]
    draw = random.Random(seed)
    names = [draw.randrange(2**63) for _ in sizes]
    groups = keys([name for name, size in zip(names, sizes, strict=True) for _ in range(size)])
    held = choose_heldout(keys([draw.randrange(2**63) for _ in groups]), 0.1, groups=groups)
    assert held.sum() == 200
    assert set(groups[held]).isdisjoint(groups[~held])


def test_the_smallest_group_is_held_out_if_no_group_fits() -> None:
    held = choose_heldout(keys([1, 2, 3, 4, 5]), 0.1, groups=keys([7, 7, 7, 8, 8]))
    assert held.tolist() == [False, False, False, True, True]


def test_a_group_belongs_to_the_stratum_of_most_rows_in_any_order() -> None:
    # Group 1 has two rows of stratum 5 and one of stratum 6, which group 2 has.
    prompts, groups, strata = [10, 11, 12, 20, 30], [1, 1, 1, 2, 3], [6, 5, 5, 6, 5]
    order = [1, 2, 0, 4, 3]
    held = choose_heldout(keys(prompts), 0.4, groups=keys(groups), strata=keys(strata))
    moved = choose_heldout(
        keys([prompts[i] for i in order]),
        0.4,
        groups=keys([groups[i] for i in order]),
        strata=keys([strata[i] for i in order]),
    )
    # Stratum 6 has one unit, group 2, so it is trained; of stratum 5, group 3 fits.
    assert held.tolist() == [False, False, False, False, True]
    assert moved.tolist() == [held[i] for i in order]


def test_each_stratum_has_its_share() -> None:
    strata = keys([0] * 90 + [1] * 10)
    held = choose_heldout(keys(list(range(100))), 0.2, strata=strata)
    assert (held[:90].sum(), held[90:].sum()) == (18, 2)


def test_a_stratum_of_one_prompt_is_trained() -> None:
    assert not choose_heldout(keys([1, 2, 3]), 0.5, strata=keys([0, 0, 1]))[2]


@settings(derandomize=True, max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 12), st.integers(0, 3)), min_size=1),
    st.floats(0.05, 0.9),
)
def test_no_prompt_and_no_group_is_on_both_sides(
    rows: list[tuple[int, int, int]], fraction: float
) -> None:
    prompts, groups, strata = (keys(list(column)) for column in zip(*rows, strict=True))
    held = choose_heldout(prompts, fraction, groups=groups, strata=strata)
    assert set(prompts[held]).isdisjoint(prompts[~held])
    assert set(groups[held]).isdisjoint(groups[~held])
    assert not held.all()

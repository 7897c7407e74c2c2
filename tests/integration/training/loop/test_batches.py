from __future__ import annotations

import itertools

from training.loop.batches import GroupedByLength

LENGTHS = [5 + (37 * index) % 90 for index in range(403)]


def _batches(sampler: GroupedByLength) -> list[list[int]]:
    order = list(sampler)
    return [order[at : at + 8] for at in range(0, len(order), 8)]


def _padding(batches: list[list[int]]) -> float:
    padded = sum(len(batch) * max(LENGTHS[row] for row in batch) for batch in batches)
    return padded / sum(LENGTHS) - 1


def test_every_row_comes_once_and_only_the_last_batch_is_short() -> None:
    batches = _batches(GroupedByLength(LENGTHS, 8, seed=0))
    assert sorted(itertools.chain(*batches)) == list(range(403))
    assert [len(batch) for batch in batches] == [8] * 50 + [3]


def test_batches_have_little_padding_and_no_order_of_length() -> None:
    batches = _batches(GroupedByLength(LENGTHS, 8, seed=0))
    unsorted = [list(range(at, min(at + 8, 403))) for at in range(0, 403, 8)]
    assert _padding(batches) < 0.15 < 0.5 < _padding(unsorted)
    longest = [max(LENGTHS[row] for row in batch) for batch in batches[:-1]]
    rising = sum(a < b for a, b in itertools.pairwise(longest))
    assert 15 < rising < 35


def test_seed_and_epoch_determine_the_order() -> None:
    sampler = GroupedByLength(LENGTHS, 8, seed=1)
    first = list(sampler)
    assert list(sampler) == first == list(GroupedByLength(LENGTHS, 8, seed=1))
    sampler.set_epoch(1)
    assert list(sampler) != first
    assert list(GroupedByLength(LENGTHS, 8, seed=2)) != first


def test_fewer_rows_than_a_batch_are_one_batch() -> None:
    assert sorted(GroupedByLength([3, 1, 2], 8, seed=0)) == [0, 1, 2]

"""The shares of all processes are the batches of one process, in its order."""

from __future__ import annotations

import itertools

import pytest
from torch.utils.data import BatchSampler

from training.launch.shares import RankBatches


@pytest.mark.parametrize(
    ("num_rows", "batch_size", "size"),
    list(itertools.product((1, 2, 7, 8, 13), (1, 2, 5), (1, 2, 3))),
)
def test_each_row_is_in_one_share_and_counts_once(
    num_rows: int, batch_size: int, size: int
) -> None:
    batches = BatchSampler(range(num_rows), batch_size, drop_last=False)
    shares = [RankBatches(batches, rank, size) for rank in range(size)]
    taken = [list(share) for share in shares]
    assert len({len(share) for share in taken}) == 1
    assert all(len(share) == len(found) for share, found in zip(shares, taken, strict=True))
    in_order = [
        batch
        for position in range(len(taken[0]))
        for share, found in zip(shares, taken, strict=True)
        for batch in [found[position]]
        if not (share.is_padded and position == len(found) - 1)
    ]
    assert in_order == list(batches)
    counted = sum(
        share.num_rows(position, num_rows) for share in shares for position in range(len(share))
    )
    assert counted == num_rows

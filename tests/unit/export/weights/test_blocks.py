"""Blocks of rows."""

from __future__ import annotations

import pytest

from export.weights.blocks import BLOCK_BYTES, MIN_PRODUCT_ROWS, block_rows, product_rows


@pytest.mark.parametrize(
    ("num_rows", "num_columns"), [(1, 1), (127, 64), (129, 10**6), (4096, 4096), (300, 0), (7, 10)]
)
def test_blocks_cover_every_row_once(num_rows: int, num_columns: int) -> None:
    blocks = block_rows(num_rows, num_columns)
    rows = [row for start, stop in blocks for row in range(start, stop)]
    assert rows == list(range(num_rows))
    sizes = [stop - start for start, stop in blocks]
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) >= min(num_rows, MIN_PRODUCT_ROWS)
    assert max(sizes) * num_columns * 4 <= max(BLOCK_BYTES, 2 * MIN_PRODUCT_ROWS * num_columns * 4)


def test_no_rows_make_no_block() -> None:
    assert block_rows(0, 64) == []


@pytest.mark.parametrize(
    ("start", "stop", "num_rows", "expected"),
    [
        (0, 100, 1000, (0, 100)),
        (100, 110, 1000, (46, 110)),
        (0, 10, 1000, (0, 64)),
        (0, 10, 20, (0, 20)),
        (990, 1000, 1000, (936, 1000)),
        (10, 20, 20, (0, 20)),
    ],
)
def test_products_have_enough_rows(
    start: int, stop: int, num_rows: int, expected: tuple[int, int]
) -> None:
    assert product_rows(start, stop, num_rows) == expected

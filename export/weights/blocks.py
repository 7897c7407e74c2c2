"""Blocks of rows: how a tensor is cut to be computed in pieces, and the form of a change to it."""

from __future__ import annotations

import abc
import itertools
import math
from collections.abc import Callable

import torch

BLOCK_BYTES = 2 * 2**20
"""Size of one block in float32; a few blocks are held at a time. Larger blocks are not faster."""

MIN_PRODUCT_ROWS = 64
"""A matrix product of fewer rows uses other kernels, which sum in another order. From this number
of rows on, the product of a block has the bits of the whole product."""

RowFunction = Callable[[torch.Tensor, int, int], torch.Tensor]
"""`change(block, start, stop)`: rows `start` to `stop` of a tensor, in float32, changed."""


class Change(abc.ABC):
    """One change of one tensor, computed block by block."""

    @abc.abstractmethod
    def load(self, dtype: torch.dtype) -> RowFunction:
        """Read the matrices of the change, for a tensor that is kept in `dtype`."""

    def is_same(self, other: Change) -> bool:
        """Return whether a change of a tied output layer gives the values that this change gives
        to its embedding."""
        return self is other


def block_rows(num_rows: int, num_columns: int) -> list[tuple[int, int]]:
    """Return ranges of rows of nearly equal size; a range is small only if the tensor is."""
    most = max(2 * MIN_PRODUCT_ROWS, BLOCK_BYTES // (4 * max(num_columns, 1)))
    count = math.ceil(num_rows / most)
    bounds = [num_rows * index // count for index in range(count + 1)] if count else [0]
    return list(itertools.pairwise(bounds))


def product_rows(start: int, stop: int, num_rows: int) -> tuple[int, int]:
    """Return the rows to multiply for rows `start` to `stop`: at least `MIN_PRODUCT_ROWS` if
    the matrix of `num_rows` has that many."""
    low = max(0, min(start, stop - MIN_PRODUCT_ROWS))
    return low, min(num_rows, max(stop, low + MIN_PRODUCT_ROWS))

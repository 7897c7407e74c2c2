"""The order of rows: random, with rows of like length in the same batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler

WINDOW_BATCHES = 50
"""Batches that are sorted together: enough for little padding, few enough to stay random."""


class GroupedByLength(Sampler[int]):  # type: ignore[misc]
    """Rows in random order, sorted by length in windows, with the batches of a window shuffled.

    transformers' LengthGroupedSampler draws from the global generator, so a run that resumes inside
    an epoch gets another order; it also gives batches from long to short. Here seed and epoch
    determine the order.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self.lengths, self.batch_size, self.seed = lengths, batch_size, seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of an epoch; accelerate calls this before the epoch starts."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        order = torch.randperm(len(self.lengths), generator=generator).tolist()
        # At least four windows, so that the same rows do not meet in every epoch.
        num_batches = max(1, min(WINDOW_BATCHES, len(order) // (4 * self.batch_size)))
        window = num_batches * self.batch_size
        batches: list[list[int]] = []
        for start in range(0, len(order), window):
            rows = sorted(order[start : start + window], key=lambda row: self.lengths[row])
            batches += [
                rows[at : at + self.batch_size] for at in range(0, len(rows), self.batch_size)
            ]
        # A short batch stays last: the loader cuts the sequence of rows into batches again.
        short = [batches.pop()] if batches and len(batches[-1]) < self.batch_size else []
        for index in torch.randperm(len(batches), generator=generator).tolist():
            yield from batches[index]
        for batch in short:
            yield from batch

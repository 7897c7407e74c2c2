"""The share of a process in every batch, so that all together compute what one process computes.

One process goes through batches 0, 1, 2, … and accumulates A of them in a step. Of W processes,
process r takes batches r, r + W, r + 2W, … and accumulates A / W: a step has the same batches.
Where the batches of an epoch are not a multiple of W, some processes get a batch of others again;
its loss counts 0, and its tokens are not counted.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch.utils.data import Sampler

from training.loop.ranks import num_ranks, this_rank
from training.rendering.chat import IGNORED


class RankBatches(Sampler[list[int]]):  # type: ignore[misc]
    """The batches of one process, equally many for each."""

    def __init__(self, batches: Any, rank: int, num_ranks: int) -> None:
        self.batches, self.rank, self.num_ranks = batches, rank, num_ranks
        self.batch_size: int = batches.batch_size
        self.drop_last = False

    @property
    def is_padded(self) -> bool:
        """Whether the last batch of an epoch is another process's, for the number only."""
        number = len(self.batches)
        return number % self.num_ranks != 0 and self.rank >= number % self.num_ranks

    def num_rows(self, position: int, total: int) -> int:
        """Return the rows of this process's batch at a position that count, of `total` rows."""
        before = (position * self.num_ranks + self.rank) * self.batch_size
        return max(0, min(self.batch_size, total - before))

    def __len__(self) -> int:
        return math.ceil(len(self.batches) / self.num_ranks)

    def __iter__(self) -> Iterator[list[int]]:
        first = None
        for number, batch in enumerate(self.batches):
            first = first or batch
            if number % self.num_ranks == self.rank:
                yield batch
        if first is not None and self.is_padded:
            yield first


def share_batches(trainer: Any, *, heldout: bool) -> None:
    """Let a trainer train on this process's share of the batches, and weigh their losses.

    Args:
        heldout: Whether the held-out rows are shared too; else each process measures all of them,
            and no figure of a method depends on how many processes there are.
    """
    if num_ranks() == 1:
        return
    weights = _Weights(trainer)
    train_loader, compute_loss = trainer.get_train_dataloader, trainer.compute_loss
    heldout_loader = trainer.get_eval_dataloader

    def get_train_dataloader() -> Any:
        loader = train_loader()
        weights.train = _take_share(loader, this_rank(), num_ranks())
        return loader

    def get_eval_dataloader(*args: Any) -> Any:
        loader = heldout_loader(*args)
        rank, size = (this_rank(), num_ranks()) if heldout else (0, 1)
        shares = _take_share(loader, rank, size)
        trainer.gather_function = _HeldoutLosses(shares, len(trainer.eval_dataset))
        return loader

    def weighed_loss(model: Any, inputs: Any, return_outputs: bool = False, **rest: Any) -> Any:
        weight = weights.waiting.pop(0) if trainer.model.training else 1.0
        gathered = nullcontext() if heldout else _uneven(trainer, counts=weight > 0)
        with gathered:
            found = compute_loss(model, inputs, return_outputs=return_outputs, **rest)
        if return_outputs:
            return found[0] * weight, found[1]
        return found * weight

    trainer.get_train_dataloader = get_train_dataloader
    trainer.get_eval_dataloader = get_eval_dataloader
    trainer.get_batch_samples = weights.batch_samples
    trainer.compute_loss = weighed_loss


class _Weights:
    """The weights of the losses of this process's training batches."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.train: RankBatches
        self.waiting: list[float] = []

    def batch_samples(
        self, batches: Iterator[Any], num_batches: int, device: Any
    ) -> tuple[list[Any], Any]:
        """Return the batches of a step and the tokens that all processes train in it."""
        samples = [next(batches) for _ in range(num_batches)]
        steps = math.ceil(len(self.train) / self.trainer.args.gradient_accumulation_steps)
        is_last = self.trainer.state.global_step % steps == steps - 1
        padded = is_last and self.train.is_padded
        counted = [*samples[:-1], _without_labels(samples[-1])] if padded else samples
        num_tokens = self.trainer._get_num_items_in_batch(counted, device)
        self.waiting = [1.0] * len(samples)
        if num_tokens is None and is_last:
            self.waiting = self._last_weights(len(samples))
        if padded:
            self.waiting[-1] = 0.0
        return samples, num_tokens

    def _last_weights(self, num_batches: int) -> list[float]:
        """Return the weights with which each row of an epoch's last step counts alike.

        A batch's loss is a mean over its rows. The Trainer takes the mean over the batches of each
        process, and then over the processes.
        """
        shares, args = self.train, self.trainer.args
        last = len(shares.batches) - 1
        real = last % (args.gradient_accumulation_steps * num_ranks()) + 1
        short = len(self.trainer.train_dataset) - last * shares.batch_size
        per_row = num_batches * num_ranks() / ((real - 1) * shares.batch_size + short)
        weights = [shares.batch_size * per_row] * num_batches
        if last % num_ranks() == this_rank():
            weights[-1] = short * per_row
        return weights


class _HeldoutLosses:
    """Gathers the loss of each held-out row, once, from the process that has measured it.

    The Trainer repeats the mean loss of a batch for each row of a whole batch. accelerate would
    leave out rows at the end by a count that fits its own shares only.
    """

    def __init__(self, shares: RankBatches, num_rows: int) -> None:
        self.shares, self.num_rows = shares, num_rows
        self.num_measured = 0

    def __call__(self, losses: torch.Tensor) -> torch.Tensor:
        number = self.shares.num_rows(self.num_measured, self.num_rows)
        self.num_measured += 1
        return losses[:number] if self.shares.num_ranks == 1 else _rows(number, losses)


def _take_share(loader: Any, rank: int, size: int) -> RankBatches:
    """Put a process's share in place of accelerate's, which fills up with rows of the start."""
    shard = loader.batch_sampler
    batches = shard.batch_sampler
    shard.batch_sampler = RankBatches(batches, rank, size)
    shard.num_processes, shard.process_index, shard.even_batches = 1, 0, False
    # accelerate looks for the epoch's sampler here; without it, a run that resumes inside an epoch
    # goes on with the order of epoch 0.
    shard.sampler = batches.sampler
    return shard.batch_sampler  # type: ignore[no-any-return]


@contextmanager
def _uneven(trainer: Any, *, counts: bool) -> Iterator[None]:
    """Let the figures of a batch be gathered from processes with different numbers of rows.

    The preference methods gather one figure for each row. In the last step of an epoch, one process
    has the short last batch, and others have batches that do not count.
    """
    accelerator = trainer.accelerator
    if not trainer.model.training:
        yield
        return
    accelerator.gather = accelerator.gather_for_metrics = functools.partial(
        _rows, None if counts else 0
    )
    try:
        yield
    finally:
        del accelerator.gather, accelerator.gather_for_metrics


def _rows(number: int | None, tensor: torch.Tensor) -> torch.Tensor:
    """Return the rows of all processes, one after the other.

    Args:
        number: The rows of this process that count, from the first; all of them if None.
    """
    rows = tensor.detach().reshape(1, *tensor.shape) if tensor.ndim == 0 else tensor.detach()
    mine = torch.tensor([len(rows) if number is None else number], device=rows.device)
    numbers = [torch.zeros_like(mine) for _ in range(num_ranks())]
    dist.all_gather(numbers, mine)
    longest = max(int(found) for found in numbers)
    padded = rows.new_zeros(longest, *rows.shape[1:])
    padded[: int(mine)] = rows[: int(mine)]
    found = [torch.empty_like(padded) for _ in range(num_ranks())]
    dist.all_gather(found, padded)
    return torch.cat([part[: int(size)] for part, size in zip(found, numbers, strict=True)])


def _without_labels(batch: dict[str, Any]) -> dict[str, Any]:
    """Return a batch in which no token counts."""
    names = [name for name in ("labels", "shift_labels") if name in batch]
    return {**batch, **{name: batch[name].new_full(batch[name].shape, IGNORED) for name in names}}

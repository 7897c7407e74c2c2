"""Agreement between the processes of a training. One process agrees with itself."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist


def num_ranks() -> int:
    """Return the number of processes that train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def this_rank() -> int:
    """Return the number of this process, from 0 on."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_first() -> bool:
    """Return whether this process writes files and shows progress."""
    return this_rank() == 0


def any_rank(flag: bool) -> bool:
    """Return whether the flag is set in any process; each process must ask."""
    return bool(_reduced(float(flag), dist.ReduceOp.MAX)) if num_ranks() > 1 else flag


def total(value: float) -> float:
    """Return the sum of the processes' values."""
    return _reduced(value, dist.ReduceOp.SUM) if num_ranks() > 1 else value


def largest(value: float) -> float:
    """Return the largest of the processes' values."""
    return _reduced(value, dist.ReduceOp.MAX) if num_ranks() > 1 else value


def of_first(value: float) -> float:
    """Return the value of rank 0; decisions by a computed figure are the same in all processes."""
    return total(value if is_first() else 0.0)


def is_seen(path: Path) -> bool:
    """Return whether this host sees a path that another host may have made a moment ago."""
    # An NFS client remembers for a minute that a name is missing. Opening the folder renews that.
    return path.parent.is_dir() and path in path.parent.iterdir()


def add_up(tensor: torch.Tensor) -> torch.Tensor:
    """Return the sum of the processes' tensors."""
    if num_ranks() > 1:
        dist.all_reduce(tensor)
    return tensor


def whole(value: Any) -> Any:
    """Return a tensor whole, if it is spread over processes; each process must ask."""
    return value.full_tensor() if is_spread(value) else value


def is_spread(value: Any) -> bool:
    """Return whether a tensor is a DTensor, whose module is imported only if there are some."""
    return hasattr(value, "full_tensor")


def norms(tensors: Sequence[Any], like: torch.Tensor) -> torch.Tensor:
    """Return the norm of each tensor over all processes, and 0 for None.

    Args:
        like: A tensor on the device of the result.
    """
    if not any(is_spread(tensor) for tensor in tensors):
        found = [like.new_zeros(()) if t is None else t.float().norm() for t in tensors]
        return torch.stack(found)
    parts = [t.to_local() if is_spread(t) else t for t in tensors]
    squares = torch.stack(
        [like.new_zeros(()) if part is None else part.float().square().sum() for part in parts]
    )
    spread = torch.tensor([is_spread(t) for t in tensors], device=squares.device)
    return torch.where(spread, add_up(squares * spread), squares).sqrt()


def wait_for_all() -> None:
    """Wait until every process is here."""
    if num_ranks() > 1:
        total(0.0)


def _reduced(value: float, operation: Any) -> float:
    device = torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")
    tensor = torch.tensor(value, dtype=torch.float64, device=device)
    dist.all_reduce(tensor, op=operation)
    return float(tensor)

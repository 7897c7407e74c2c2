"""The parts of a training that only several processes need; for one process they do nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState
from transformers import TrainerCallback

from training.config import TrainingConfig
from training.launch.place import find_place
from training.launch.preflight import PeerLostError, join_processes
from training.launch.shares import share_batches
from training.loop.ranks import is_spread, num_ranks, this_rank
from tuneline.core.artifact import Artifact, canonical_digest
from tuneline.core.config import keyed_values
from tuneline.core.digests import short_digest
from tuneline.core.environment import library_versions
from tuneline.core.progress import logger
from tuneline.models.source import ModelSource

COMPARED_LIBRARIES = ("tuneline", "torch", "transformers", "trl", "peft", "accelerate")


@contextmanager
def joined(config: TrainingConfig, dataset: Artifact, base: ModelSource) -> Iterator[None]:
    """Be one of several processes within the block.

    Raises:
        ConfigError: The environment does not fit `training.launch`, or the processes differ.
        MissingError: Processes do not arrive, do not reach one another, or end during the block.
    """
    place = find_place(config.launch)
    assert config.launch is not None  # noqa: S101 (a place has a launch)
    versions = library_versions()
    facts = {name: versions.get(name) for name in COMPARED_LIBRARIES}
    settings = {**keyed_values(config), "launch": config.launch.model_dump(mode="json")}
    facts |= {
        "WORLD_SIZE": str(place.size),
        "settings": short_digest(canonical_digest(settings)),
        "dataset": short_digest(dataset.digest),
        "base model": short_digest(base.digest),
    }
    join_processes(place, config.launch.timeout_s, facts)
    try:
        yield
    except RuntimeError as error:
        # gloo raises RuntimeError with its name in the path of its source file.
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        # gloo writes its source file before the reason, and advice behind it.
        words = str(error).splitlines()[0].split("] ", 1)[-1].partition(". This")[0]
        raise PeerLostError(
            f"{place.title} lost another rank: {words}",
            hint="Look at the log of the rank that ended first. The same command continues from "
            "the newest checkpoint.",
        ) from error
    # After an error the others are gone, and there is nothing to leave together.
    AcceleratorState._reset_state(reset_partial_state=True)
    dist.destroy_process_group()


def share_training(trainer: Any, config: TrainingConfig, checkpoint: Path | None) -> dict[str, Any]:
    """Let a trainer train its share of the rows, and of the model under fsdp2.

    Returns:
        What the manifest says about it.
    """
    if num_ranks() == 1 or config.launch is None:
        return {}
    share_batches(trainer, heldout=config.method.type == "sft")
    trainer.add_callback(_OwnRandomNumbers())
    if config.launch.strategy == "fsdp2":
        from training.launch.fsdp import shard_trainer

        shard_trainer(trainer, config.launch, checkpoint)
    parameters = list(trainer.model.parameters())
    facts = {
        "num_processes": num_ranks(),
        "strategy": config.launch.strategy,
        "num_tensors": len(parameters),
        "num_tensors_spread": sum(is_spread(parameter) for parameter in parameters),
    }
    logger.info(
        "  %(num_processes)d processes by %(strategy)s; %(num_tensors_spread)d of %(num_tensors)d "
        "tensors are spread over them",
        facts,
    )
    return {"launch": facts}


def gather_training(trainer: Any, config: TrainingConfig) -> None:
    """Give rank 0 the whole model, if it is spread over processes."""
    if num_ranks() > 1 and config.launch is not None and config.launch.strategy == "fsdp2":
        from training.launch.fsdp import gather_on_first

        gather_on_first(trainer.model)


class _OwnRandomNumbers(TrainerCallback):  # type: ignore[misc]
    """Gives each process but the first other random numbers for dropout."""

    def on_train_begin(self, args: Any, *_: Any, **__: Any) -> None:
        """Seed after the order of rows was drawn, which is the same in all processes."""
        if this_rank() > 0:
            torch.manual_seed(args.seed + this_rank())

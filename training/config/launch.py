"""The keys of `training.launch`: several processes, on one host or several."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import field_validator, model_validator

from training.config.checkpoints import EXACT_MATCH
from training.config.types import PositiveFloat, PositiveInt
from tuneline.core.config import StrictModel

if TYPE_CHECKING:
    from training.config.training import TrainingConfig

ZERO_AS_FSDP2 = {
    "zero1": "strategy: ddp",
    "zero2": "strategy: fsdp2, reshard_after_forward: false",
    "zero3": "strategy: fsdp2",
}
"""For each stage of DeepSpeed's ZeRO, the keys that spread the same tensors over the processes."""
SHARDED_OPTIMIZERS = ("adamw_torch_fused", "adamw_torch")


class LaunchConfig(StrictModel):
    """Several processes that train one model, each on its share of every batch."""

    processes: PositiveInt
    """Processes on each host: one for each GPU, or for a group of CPU cores."""
    strategy: Literal["ddp", "fsdp2"] = "ddp"
    """`ddp` keeps the model in every process. `fsdp2` spreads weights, gradients and optimizer over
    the processes; it is for models that do not fit into one GPU."""
    nodes: PositiveInt = 1
    """Hosts. The same command runs on each of them, with the variable NODE_RANK from 0 on, and the
    hosts share the run's directory."""
    rendezvous: str | None = None
    """`host:port` of the first host, for several hosts; MASTER_ADDR and MASTER_PORT of the
    environment if not given."""
    timeout_s: PositiveFloat = 60.0
    """How long processes wait for one another before the model is loaded."""
    reshard_after_forward: bool = True
    """Under `fsdp2`, whether a layer's weights are freed between forward and backward pass. Without
    it a step exchanges less and takes more memory."""

    @property
    def world_size(self) -> int:
        """Processes on all hosts."""
        return self.processes * self.nodes

    @field_validator("strategy", mode="before")
    @classmethod
    def _refuse_zero(cls, value: Any) -> Any:
        name = str(value).lower().replace("-", "").replace("deepspeed", "zero3")
        if name in ZERO_AS_FSDP2:
            raise ValueError(
                f"the strategy {value} is not supported: DeepSpeed hides the gradients that the "
                f"proof of training reads. Set {ZERO_AS_FSDP2[name]}"
            )
        return value

    @model_validator(mode="after")
    def _check_rendezvous(self) -> Self:
        if self.rendezvous is None:
            return self
        host, colon, port = self.rendezvous.rpartition(":")
        if not (host and colon and port.isdecimal() and 0 < int(port) < 2**16):
            raise ValueError(f"rendezvous is {self.rendezvous!r}; expected host:port")
        return self


def launch_line(config: TrainingConfig) -> str | None:
    """Return what will run, for people; None for one process."""
    launch = config.launch
    if launch is None or launch.world_size == 1:
        return None
    hosts = f" on {launch.nodes} hosts" if launch.nodes > 1 else ""
    rows, steps = config.per_device_train_batch_size, config.gradient_accumulation_steps
    share = steps // launch.world_size
    return (
        f"{launch.world_size} processes{hosts} ({launch.strategy}): each takes {share} of the "
        f"{steps} batches of {rows} rows in a step"
    )


def launch_problem(config: TrainingConfig) -> str | None:
    """Return why a training cannot run in the processes of its `launch`; None if it can."""
    launch = config.launch
    if launch is None or launch.world_size == 1:
        return None
    size, method = launch.world_size, config.method
    if method.not_shared is not None:
        return f"{method.type} trains in one process: {method.not_shared}. Remove launch"
    if config.gradient_accumulation_steps % size:
        return (
            f"{size} processes do not divide gradient_accumulation_steps "
            f"{config.gradient_accumulation_steps}. {_nearest_batch(config, size)}"
        )
    return _unsharded(config) if launch.strategy == "fsdp2" else None


def _nearest_batch(config: TrainingConfig, size: int) -> str:
    """Return keys with which each process gets whole batches, of as many rows if possible."""
    rows = config.per_device_train_batch_size
    total = rows * config.gradient_accumulation_steps
    if total % size:
        steps = size * max(1, round(config.gradient_accumulation_steps / size))
        return f"Set gradient_accumulation_steps: {steps}, a step of {rows * steps} rows"
    share = total // size
    per_device = max(number for number in range(1, rows + 1) if share % number == 0)
    return (
        f"Set per_device_train_batch_size: {per_device}, gradient_accumulation_steps: "
        f"{total // per_device}, the same {total} rows in a step"
    )


def _unsharded(config: TrainingConfig) -> str | None:
    """Return what fsdp2 cannot spread over processes; None if there is nothing."""
    ddp = "Set launch.strategy: ddp"
    if config.method.type != "sft":
        return f"fsdp2 trains with sft; {config.method.type} compares with whole models. {ddp}"
    if config.load_in_4bit:
        return f"fsdp2 cannot cut the blocks of NF4 (load_in_4bit). {ddp}"
    if config.use_dora:
        return f"fsdp2 cannot cut the weights whose norm DoRA reads (use_dora). {ddp}"
    if config.optim not in SHARDED_OPTIMIZERS:
        return (
            f"fsdp2 trains with {' or '.join(SHARDED_OPTIMIZERS)}, found optim: {config.optim}. "
            f"{ddp}, or optim: adamw_torch_fused"
        )
    if config.load_best_model_at_end and config.metric_for_best_model == EXACT_MATCH:
        return f"fsdp2 answers no prompts while it trains ({EXACT_MATCH}). {ddp}"
    return None

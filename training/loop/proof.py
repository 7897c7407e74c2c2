"""The proof that training happened: each trained parameter got a gradient, and moved.

Gradients are read before each optimizer step, after clipping. Movement is measured on a whole
tensor, or on a sample of a large one that holds the entries with the largest first gradients.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from training.adapters.reach import pattern_of, plain_name, with_stars
from training.loop.ranks import is_first, norms, num_ranks, total, whole
from tuneline.core.errors import ConfigError
from tuneline.core.progress import logger

PROOF_FILE = "proof.json"
STATE_FILE = "proof.safetensors"
PATIENCE_STEPS = 10
"""Optimizer steps after which every trained parameter must have had a gradient, and the loss must
have changed. The factor A of LoRA has none in the first step, in which B is zero."""
SAMPLE = 2**16
"""Entries of a tensor that are watched; a smaller tensor is watched whole."""
PART_OF_LARGEST = 2**20
MAX_RELATIVE_LOSS_CHANGE = 1e-7
IN_EXPERT = ".experts."


@dataclass
class Moved:
    """The gradients and the movement of one parameter."""

    name: str
    num_parameters: int
    num_steps_with_gradient: int
    max_gradient_norm: float
    change: float
    """Root mean square of the change of the watched entries."""
    relative_change: float | None
    """`change`, relative to the root mean square at the start; None for a start of zero."""


class ProofOfTraining(TrainerCallback):  # type: ignore[misc]
    """Watches gradients, losses and values; ends a run that does not train what it names."""

    def __init__(self, resumed_from: Path | None, *, loss_must_change: bool = True) -> None:
        self.resumed_from = resumed_from
        self.loss_must_change = loss_must_change
        self.parameters: dict[str, torch.nn.Parameter] = {}
        self.starts: dict[str, torch.Tensor] = {}
        self.watched: dict[str, torch.Tensor] = {}
        self.num_steps = self.max_norms = torch.zeros(0)
        self.losses: list[float] = []
        self.micro_losses: list[torch.Tensor] = []
        self.trainer: Any = None

    def watch(self, trainer: Any) -> None:
        """Record the loss of every batch of a trainer, and check the batch's labels."""
        self.read_parameters(trainer.model)
        self.trainer = trainer
        step = trainer.training_step

        def training_step(model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            _check_labels(inputs, trainer.state.global_step + 1)
            loss = step(model, inputs, *args, **kwargs)
            self.micro_losses.append(loss.detach())
            return loss

        trainer.training_step = training_step

    def read_parameters(self, model: Any) -> None:
        """Watch the trained parameters of a model; they are other objects after it was gathered."""
        self.parameters = {
            plain_name(name): parameter
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        }

    def on_train_begin(self, _args: Any, _state: Any, _control: Any, **_: Any) -> None:
        """Note the values at the start of the run, or read them from the checkpoint."""
        device = next(iter(self.parameters.values())).device
        self.num_steps = torch.zeros(len(self.parameters), dtype=torch.int64, device=device)
        self.max_norms = torch.zeros(len(self.parameters), dtype=torch.float32, device=device)
        if self.resumed_from is None or not (self.resumed_from / STATE_FILE).is_file():
            return
        state = load_file(self.resumed_from / STATE_FILE, device=str(device))
        self.num_steps, self.max_norms = state.pop("num_steps"), state.pop("max_norms")
        self.losses = state.pop("losses").tolist()
        # The Trainer starts a new mean here; the next logged loss would leave out earlier steps.
        self.trainer._tr_loss += state.pop("unlogged_loss", 0.0)
        self.trainer._globalstep_last_logged = int(
            state.pop("last_logged_step", self.trainer._globalstep_last_logged)
        )
        for key, value in state.items():
            kind, _, name = key.partition(":")
            {"start": self.starts, "watched": self.watched}[kind][name] = value

    def on_pre_optimizer_step(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
        """Read the gradients.

        Raises:
            ConfigError: A gradient is not a number.
        """
        gradients = [parameter.grad for parameter in self.parameters.values()]
        if not self.starts:
            self._note_starts(gradients)
        found = norms(gradients, self.max_norms)
        broken = ~torch.isfinite(found)
        if bool(broken.any()):
            names = [
                name for name, bad in zip(self.parameters, broken.tolist(), strict=True) if bad
            ]
            raise ConfigError(
                f"training: the gradient of {_some(names)} is not a number at step "
                f"{state.global_step + 1}",
                hint="Lower training.learning_rate, set training.dtype: float32, or check the base "
                "model's weights.",
            )
        self.num_steps += found > 0
        self.max_norms = torch.maximum(self.max_norms, found)

    def on_step_end(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
        """Check gradients and losses once enough steps were taken.

        Raises:
            ConfigError: A parameter never had a gradient, or the loss never changed.
        """
        if len(self.losses) < PATIENCE_STEPS:
            loss = float(sum(self.micro_losses, self.max_norms.new_zeros(())))
            self.losses.append(total(loss) / num_ranks())
        self.micro_losses.clear()
        if state.global_step == PATIENCE_STEPS:
            self._check_gradients(state.global_step)
            self._check_losses()

    def on_save(self, args: Any, state: Any, _control: Any, **_: Any) -> None:
        """Write the state into the checkpoint."""
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        unlogged = self.trainer._tr_loss.detach()
        mean = torch.full_like(unlogged, total(float(unlogged)) / num_ranks())
        if not is_first():
            return
        tensors = {"num_steps": self.num_steps, "max_norms": self.max_norms}
        tensors["losses"] = torch.tensor(self.losses, dtype=torch.float64)
        tensors["unlogged_loss"] = mean if num_ranks() > 1 else unlogged.clone()
        tensors["last_logged_step"] = torch.tensor(self.trainer._globalstep_last_logged)
        tensors |= {f"start:{name}": value for name, value in self.starts.items()}
        tensors |= {f"watched:{name}": value for name, value in self.watched.items()}
        save_file(
            {name: value.contiguous() for name, value in tensors.items()}, folder / STATE_FILE
        )

    def finish(self, num_steps: int) -> list[Moved]:
        """Return what each trained parameter did, in the order of the model.

        Raises:
            ConfigError: A parameter never had a gradient, or its gradient did not move it.
        """
        # A warm-up takes the first step at a learning rate of 0: B of LoRA is still zero in the
        # second step, and A has no gradient.
        if num_steps > 2:
            self._check_gradients(num_steps)
        found = self.moved()
        still = [one.name for one in found if one.num_steps_with_gradient and not one.change]
        if still and num_steps > 1:
            raise ConfigError(
                f"training: {_some(still)} had gradients and did not move in {num_steps} steps: "
                "each change was smaller than the number format can hold",
                hint="Raise training.learning_rate, or set training.dtype: float32.",
            )
        return found

    def moved(self) -> list[Moved]:
        """Return what each trained parameter did until now, without the checks of `finish`."""
        found = []
        norms, counts = self.max_norms.tolist(), self.num_steps.tolist()
        for (name, parameter), norm, count in zip(
            self.parameters.items(), norms, counts, strict=True
        ):
            start = self.starts[name].float()
            change = float((self._values(name, parameter).float() - start).square().mean().sqrt())
            size = float(start.square().mean().sqrt())
            relative = change / size if size else None
            found.append(Moved(name, parameter.numel(), count, norm, change, relative))
        return found

    def _note_starts(self, gradients: Sequence[Any]) -> None:
        for (name, parameter), gradient in zip(self.parameters.items(), gradients, strict=True):
            if parameter.numel() > SAMPLE:
                stride = max(1, parameter.numel() // (SAMPLE // 2))
                places = torch.arange(0, parameter.numel(), stride, device=parameter.device)
                if gradient is not None:
                    places = torch.cat([places, _largest(whole(gradient).flatten())]).unique()
                self.watched[name] = places
            self.starts[name] = self._values(name, parameter).clone()

    def _values(self, name: str, parameter: torch.nn.Parameter) -> torch.Tensor:
        flat = whole(parameter.detach()).flatten()
        return flat[self.watched[name]] if name in self.watched else flat

    def _check_gradients(self, step: int) -> None:
        counts = self.num_steps.tolist()
        if not any(counts) and not self.loss_must_change:
            # Rewards that are equal in every group give no gradient; later groups may differ.
            logger.warning("  no parameter had a gradient in %d steps", step)
            return
        never = [name for name, n in zip(self.parameters, counts, strict=True) if n == 0]
        # A router may send no token to an expert that is a module of its own.
        used = {pattern_of(name) for name, n in zip(self.parameters, counts, strict=True) if n > 0}
        never = [n for n in never if IN_EXPERT not in n or pattern_of(n) not in used]
        if never:
            raise ConfigError(
                f"training: the gradient of {_some(never)} is zero in all of {step} steps: the "
                "loss does not depend on it",
                hint="Take it out of what is trained (training.exclude_modules, target_modules, "
                "modules_to_save or trainable_token_indices); a token's row needs the token in the "
                "data.",
            )

    def _check_losses(self) -> None:
        first = self.losses[0]
        spread = max(abs(loss - first) for loss in self.losses)
        if self.loss_must_change and spread <= MAX_RELATIVE_LOSS_CHANGE * abs(first):
            raise ConfigError(
                f"training: the loss is {first:.6g} in each of {len(self.losses)} steps: nothing "
                "is learned",
                hint="Raise training.learning_rate, and check that the data has different rows.",
            )


def _largest(values: torch.Tensor) -> torch.Tensor:
    """Return the places of the values with the largest magnitudes.

    By parts: torch's `topk` has 16 bytes of working memory for each value.
    """
    parts = [
        part.abs().topk(min(SAMPLE // 2, part.numel())) for part in values.split(PART_OF_LARGEST)
    ]
    places = torch.cat([top.indices + n * PART_OF_LARGEST for n, top in enumerate(parts)])
    return places[torch.cat([top.values for top in parts]).topk(SAMPLE // 2).indices]


def state_bytes(parameters: Sequence[torch.nn.Parameter]) -> int:
    """Return the size of the state in a checkpoint: the watched start values and their places."""
    return sum(
        parameter.numel() * parameter.element_size()
        if parameter.numel() <= SAMPLE
        else SAMPLE * (parameter.element_size() + 8)
        for parameter in parameters
    )


def by_pattern(moved: Sequence[Moved]) -> list[dict[str, Any]]:
    """Return one row for each pattern of names and each factor, for the manifest."""
    rows: dict[str, list[Moved]] = {}
    for one in moved:
        factor = with_stars(one.name.removesuffix(".weight")).rpartition(".")[2]
        pattern = pattern_of(one.name)
        name = pattern if pattern.endswith(factor) else f"{pattern} {factor}"
        rows.setdefault(name, []).append(one)
    return [
        {
            "pattern": pattern,
            "num_tensors": len(found),
            "num_parameters": sum(one.num_parameters for one in found),
            "num_without_gradient": sum(not one.num_steps_with_gradient for one in found),
            "max_gradient_norm": max(one.max_gradient_norm for one in found),
            "min_change": min(one.change for one in found),
            "max_change": max(one.change for one in found),
        }
        for pattern, found in rows.items()
    ]


def proof_table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return the lines of the table for people."""
    width = max(len(row["pattern"]) for row in rows)
    head = f"{'trained':<{width}}  tensors  max gradient  change"
    return [head] + [
        f"{row['pattern']:<{width}}  {row['num_tensors']:>7}  {row['max_gradient_norm']:>12.2g}"
        f"  {row['min_change']:.1g} to {row['max_change']:.1g}"
        for row in rows
    ]


def write_proof(moved: Sequence[Moved], folder: Path) -> None:
    """Write `proof.json`: one entry for each trained parameter."""
    text = json.dumps([asdict(one) for one in moved], indent=1) + "\n"
    (folder / PROOF_FILE).write_text(text, encoding="utf-8")


def _check_labels(inputs: Any, step: int) -> None:
    """Refuse a batch without a trained token; on a GPU, the check of the rows has to do.

    Raises:
        ConfigError: The batch has labels, and all of them are ignored.
    """
    labels = inputs.get("labels") if hasattr(inputs, "get") else None
    if labels is None or labels.device.type != "cpu" or labels.ndim != 2:
        return
    if not bool((labels[:, 1:] >= 0).any()):
        raise ConfigError(
            f"training: a batch of step {step} has {labels.shape[0]} rows and no trained token",
            hint="Each row needs a trained token behind its first; check training.max_length.",
        )


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more

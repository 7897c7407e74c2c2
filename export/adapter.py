"""A PEFT LoRA adapter as a list of changes to base tensors, each computed row by row.

For a weight W of shape (out, in), B of shape (out, r) and A of shape (r, in), LoRA is
W + s·BA with s = alpha/r (Hu et al., arXiv:2106.09685), or alpha/√r when rank-stabilized
(Kalajdzievski, arXiv:2312.03732). DoRA scales each row of that to a learnt length m:
m·(W + s·BA)/‖W + s·BA‖ (Liu et al., arXiv:2402.09353). All of these need one row of W at a time,
which is what lets the merge stream.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from export.model_folder import BaseModel, read_json
from export.tensor_file import (
    TORCH_DTYPES,
    TensorEntry,
    TensorFile,
    read_elements,
    read_tensor,
    read_tensor_file,
)
from tuneline.core.errors import ArtifactError

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."

CHECK_ELEMENTS = 2**21

# A matrix product of few rows goes through other kernels, which sum in another order. From this
# many rows on, a block has the bits that the whole product has.
MIN_PRODUCT_ROWS = 64

RowFunction = Callable[[torch.Tensor, int, int], torch.Tensor]
"""`change(block, start, stop)`: rows start to stop of a base tensor, in float32, changed."""

# Options that do not alter what merging means, whatever their value.
NEUTRAL_OPTIONS = frozenset({
    "auto_mapping", "base_model_name_or_path", "bias", "ensure_weight_tying", "eva_config",
    "exclude_modules", "fan_in_fan_out", "inference_mode", "init_lora_weights", "layers_pattern",
    "layers_to_transform", "lora_alpha", "lora_bias", "lora_dropout", "megatron_core",
    "alpha_pattern", "peft_type", "peft_version", "qalora_group_size", "r", "rank_pattern",
    "revision", "runtime_config", "target_modules", "task_type", "use_dora", "use_rslora",
})  # fmt: skip

# Initialisations that leave the base as it is. The others (pissa, olora, corda, loftq, ...) alter
# the base's weights at the start of training, so that the adapter does not fit the base on disk.
NEUTRAL_INITIALISATIONS = (True, False, None, "gaussian", "eva", "orthogonal")

# GPT-2 stores these as (in, out); their shapes alone cannot tell where both are equal.
CONV1D_MODULES = {
    model_type: frozenset({"c_attn", "q_attn", "c_proj", "c_fc"})
    for model_type in ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")
}


@dataclass(frozen=True)
class LowRankChange:
    """W + s·BA, or DoRA's rescaling of it where there is a magnitude."""

    a: TensorEntry
    b: TensorEntry
    magnitude: TensorEntry | None
    scale: float
    transposed: bool
    """Whether W is stored as (in, out)."""

    def load(self, file: TensorFile) -> RowFunction:
        a, b = read_tensor(file, self.a), read_tensor(file, self.b)
        magnitude = read_tensor(file, self.magnitude) if self.magnitude else None

        def change(block: torch.Tensor, start: int, stop: int) -> torch.Tensor:
            low = max(0, min(start, stop - MIN_PRODUCT_ROWS))
            product = (b @ a[:, low:stop]).T if self.transposed else b[low:stop] @ a
            total = block.add_(product[start - low :].mul_(self.scale))
            if magnitude is None:
                return total
            norm = torch.linalg.norm(total, dim=1)
            return total.mul_((magnitude[start:stop] / norm).unsqueeze(1))

        return change


@dataclass(frozen=True)
class BiasChange:
    """The bias that `lora_bias` adds, scaled as the product is."""

    bias: TensorEntry
    scale: float

    def load(self, file: TensorFile) -> RowFunction:
        delta = read_tensor(file, self.bias) * self.scale

        def change(block: torch.Tensor, start: int, stop: int) -> torch.Tensor:
            return block.add_(delta[start:stop].unsqueeze(1))

        return change


@dataclass(frozen=True)
class Replacement:
    """A tensor that was trained whole and stands in the adapter as it is to be."""

    tensor: TensorEntry

    def load(self, file: TensorFile) -> RowFunction:
        num_columns = math.prod(self.tensor.shape[1:])
        dtype = TORCH_DTYPES[self.tensor.dtype]

        def change(block: torch.Tensor, start: int, stop: int) -> torch.Tensor:
            stored = torch.empty((stop - start) * num_columns, dtype=dtype)
            with file.path.open("rb") as opened:
                read_elements(opened.fileno(), file, self.tensor, start * num_columns, stored)
            return block.copy_(stored.reshape(block.shape))

        return change


Change = LowRankChange | BiasChange | Replacement


@dataclass(frozen=True)
class Adapter:
    """An adapter's options and the header of its weights; no weight is held in memory."""

    path: Path
    config: dict[str, Any]
    weights: TensorFile


def read_adapter(path: Path) -> Adapter:
    """Open a PEFT LoRA folder and check that everything in it is something we merge.

    Raises:
        ArtifactError: Not a LoRA adapter, pickled, corrupt, with NaN or infinite values, or using
            an option that changes what merging means and is not supported; the option is named.
    """
    if not path.is_dir():
        raise ArtifactError(f"{path}: no such folder; expected a PEFT adapter folder")
    config = read_json(path / ADAPTER_CONFIG)
    if config.get("peft_type") != "LORA":
        raise ArtifactError(
            f"{path / ADAPTER_CONFIG}: peft_type is {config.get('peft_type')!r}; expected LORA"
        )
    _refuse_options(path, config)
    if not (path / ADAPTER_WEIGHTS).is_file():
        pickles = sorted(file.name for file in path.glob("*.bin"))
        if pickles:
            raise ArtifactError(
                f"{path}: holds only pickled weights ({', '.join(pickles)}); expected "
                f"{ADAPTER_WEIGHTS}",
                hint="A pickle can run code when it is read. Convert it once where you trust it: "
                "load it with peft and save it again.",
            )
    weights = read_tensor_file(path / ADAPTER_WEIGHTS)
    if not weights.entries:
        raise ArtifactError(f"{weights.path}: holds no tensors")
    _check_finite(weights)
    return Adapter(path, config, weights)


def plan_changes(adapter: Adapter, base: BaseModel) -> dict[str, list[Change]]:
    """Which base tensor each adapter tensor changes, and how.

    Every adapter tensor is used exactly once and every shape fits, or nothing is returned.

    Raises:
        ArtifactError: A tensor is of no known kind, has no counterpart, or does not fit; it is
            named.
    """
    where = adapter.weights.path
    parts: dict[str, dict[str, TensorEntry]] = {}
    changes: dict[str, list[Change]] = {}
    for entry in adapter.weights.entries:
        module, part = _parse_key(adapter, entry.name)
        if part in parts.setdefault(module, {}):
            raise ArtifactError(f"{where}: {entry.name} stands twice under two names")
        parts[module][part] = entry
    for module, found in parts.items():
        for part, name in (("bias", "bias"), ("base_layer", "weight")):
            if part in found:
                entry = found.pop(part)
                target = _target(base, f"{module}.{name}", adapter, entry)
                _check_shape(adapter, entry, target.shape, target)
                changes.setdefault(target.name, []).append(Replacement(entry))
        if found:
            for name, change in _low_rank_changes(adapter, base, module, found):
                changes.setdefault(name, []).append(change)
    _check_all_targets_present(adapter, base, parts.keys())
    return changes


def _low_rank_changes(
    adapter: Adapter, base: BaseModel, module: str, parts: dict[str, TensorEntry]
) -> list[tuple[str, Change]]:
    where = adapter.weights.path
    if not {"lora_A", "lora_B"} <= parts.keys():
        raise ArtifactError(
            f"{where}: {module}: has only {', '.join(sorted(parts))}; expected lora_A and lora_B"
        )
    a, b, magnitude = parts["lora_A"], parts["lora_B"], parts.get("magnitude")
    if bool(adapter.config.get("use_dora")) != (magnitude is not None):
        raise ArtifactError(
            f"{where}: {module}: "
            + ("has a magnitude vector but use_dora is off" if magnitude else "use_dora is on but "
               "there is no magnitude vector")
        )  # fmt: skip
    rank, scale = _rank_and_scale(adapter, module)
    target = _target(base, f"{module}.weight", adapter, a)
    transposed = module.rpartition(".")[2] in CONV1D_MODULES.get(base.config["model_type"], ())
    if len(target.shape) != 2:
        raise ArtifactError(
            f"{where}: {a.name}: changes {target.name} of shape {list(target.shape)}; only "
            "two-dimensional weights are supported"
        )
    num_in, num_out = target.shape if transposed else target.shape[::-1]
    _check_shape(adapter, a, (rank, num_in), target)
    _check_shape(adapter, b, (num_out, rank), target)
    if magnitude is not None:
        _check_shape(adapter, magnitude, (num_out,), target)
        if transposed:
            raise ArtifactError(
                f"{where}: {magnitude.name}: DoRA on a Conv1D weight is not supported"
            )
    found: list[tuple[str, Change]] = [
        (target.name, LowRankChange(a, b, magnitude, scale, transposed))
    ]
    if "lora_B.bias" in parts:
        bias = _target(base, f"{module}.bias", adapter, parts["lora_B.bias"])
        _check_shape(adapter, parts["lora_B.bias"], bias.shape, bias)
        found.append((bias.name, BiasChange(parts["lora_B.bias"], scale)))
    return found


SUFFIXES = {
    ".lora_A.weight": "lora_A",
    ".lora_B.weight": "lora_B",
    ".lora_B.bias": "lora_B.bias",
    ".lora_magnitude_vector": "magnitude",
    ".lora_magnitude_vector.weight": "magnitude",
    ".base_layer.bias": "bias",
    ".base_layer.weight": "base_layer",
    ".bias": "bias",
}

REFUSED_PARTS = {
    ".lora_embedding_A": "LoRA on an embedding",
    ".lora_embedding_B": "LoRA on an embedding",
    ".trainable_tokens_delta": "trainable tokens",
    ".weight": "a module saved whole (modules_to_save, or a resized embedding)",
}


def _parse_key(adapter: Adapter, key: str) -> tuple[str, str]:
    """The module (as the base names it) and the part of it that an adapter tensor is."""
    where = adapter.weights.path
    if key.startswith(PREFIX):
        for suffix, part in SUFFIXES.items():
            if key.endswith(suffix):
                allowed = part != "bias" or adapter.config.get("bias", "none") != "none"
                if not allowed:
                    raise ArtifactError(f"{where}: {key}: a bias, though the option bias is 'none'")
                return key.removeprefix(PREFIX).removesuffix(suffix), part
        for suffix, what in REFUSED_PARTS.items():
            if key.endswith(suffix):
                raise ArtifactError(f"{where}: {key}: merging {what} is not supported")
    raise ArtifactError(
        f"{where}: {key}: a tensor of an unknown kind; expected names such as "
        f"{PREFIX}model.layers.0.self_attn.q_proj.lora_A.weight"
    )


def _target(base: BaseModel, name: str, adapter: Adapter, source: TensorEntry) -> TensorEntry:
    """The base tensor called `name`; a base saved without its head drops the first component."""
    for candidate in (name, name.partition(".")[2]):
        if candidate in base.tensors:
            target = base.tensors[candidate]
            if target.dtype not in TORCH_DTYPES:
                raise ArtifactError(
                    f"{base.path}: {candidate} is stored as {target.dtype}; an adapter merges into "
                    f"{', '.join(TORCH_DTYPES)} alone"
                )
            return target
    raise ArtifactError(
        f"{adapter.weights.path}: {source.name}: the base {base.path} has no tensor {name}",
        hint=_tied_hint(base, name)
        or f"The adapter names {adapter.config.get('base_model_name_or_path')!r} as its base.",
    )


def _tied_hint(base: BaseModel, name: str) -> str | None:
    if name == "lm_head.weight" and base.config.get("tie_word_embeddings", True):
        return "The base ties its output layer to its embedding, which this merge cannot untie."
    return None


def _check_shape(
    adapter: Adapter, entry: TensorEntry, expected: Sequence[int], target: TensorEntry
) -> None:
    if tuple(entry.shape) != tuple(expected):
        raise ArtifactError(
            f"{adapter.weights.path}: {entry.name}: has shape {list(entry.shape)}; expected "
            f"{list(expected)} to fit {target.name} of shape {list(target.shape)}: an adapter of "
            "another base, or options that are not its own",
            hint=f"The adapter names {adapter.config.get('base_model_name_or_path')!r} as its "
            "base.",
        )


def _rank_and_scale(adapter: Adapter, module: str) -> tuple[int, float]:
    config = adapter.config
    rank = _for_module(adapter, "rank_pattern", module, config.get("r", 8))
    alpha = _for_module(adapter, "alpha_pattern", module, config.get("lora_alpha", 8))
    if type(rank) is not int or rank < 1 or type(alpha) not in (int, float):
        raise ArtifactError(
            f"{adapter.path / ADAPTER_CONFIG}: {module}: r is {rank!r} and lora_alpha {alpha!r}; "
            "expected numbers, r at least 1"
        )
    return rank, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _for_module(adapter: Adapter, option: str, module: str, default: Any) -> Any:
    """The first pattern that matches the end of the module's name decides, as in PEFT."""
    for pattern, value in (adapter.config.get(option) or {}).items():
        try:
            if re.match(rf"(.*\.)?({pattern})$", module):
                return value
        except re.error as error:
            raise ArtifactError(
                f"{adapter.path / ADAPTER_CONFIG}: {option}: {pattern!r}: not a pattern: {error}"
            ) from None
    return default


def _check_all_targets_present(
    adapter: Adapter, base: BaseModel, modules: Sequence[str] | Any
) -> None:
    """An adapter file that lost some of its tensors would merge without a word."""
    targets = adapter.config.get("target_modules")
    limited = any(
        adapter.config.get(option) for option in ("layers_to_transform", "exclude_modules")
    )
    if not isinstance(targets, list) or limited:
        return
    for name in base.tensors:
        module = name.removesuffix(".weight")
        if module == name:
            continue
        meant = any(module == target or module.endswith(f".{target}") for target in targets)
        have = module in modules or any(known.partition(".")[2] == module for known in modules)
        if meant and not have:
            raise ArtifactError(
                f"{adapter.weights.path}: has nothing for {module}, which target_modules in "
                f"{ADAPTER_CONFIG} names: the adapter is incomplete"
            )


def _refuse_options(path: Path, config: dict[str, Any]) -> None:
    refused = [
        f"{option}={value!r}"
        for option, value in config.items()
        if value and option not in NEUTRAL_OPTIONS
    ]
    initialisation = config.get("init_lora_weights")
    if initialisation not in NEUTRAL_INITIALISATIONS:
        refused.append(f"init_lora_weights={initialisation!r}")
    if refused:
        raise ArtifactError(
            f"{path / ADAPTER_CONFIG}: merging is not supported with {', '.join(refused)}",
            hint="Merge it with peft (merge_and_unload), or train without that option.",
        )


def _check_finite(weights: TensorFile) -> None:
    with weights.path.open("rb") as opened:
        for entry in weights.entries:
            if entry.dtype not in TORCH_DTYPES:
                raise ArtifactError(
                    f"{weights.path}: {entry.name}: is stored as {entry.dtype}; expected one of "
                    f"{', '.join(TORCH_DTYPES)}"
                )
            for start in range(0, entry.num_elements, CHECK_ELEMENTS):
                count = min(CHECK_ELEMENTS, entry.num_elements - start)
                chunk = torch.empty(count, dtype=TORCH_DTYPES[entry.dtype])
                read_elements(opened.fileno(), weights, entry, start, chunk)
                if not is_finite(chunk):
                    raise ArtifactError(f"{weights.path}: {entry.name}: holds NaN or infinity")


def is_finite(values: torch.Tensor) -> bool:
    """Whether no value is NaN or infinite; far faster than `isfinite().all()` on a CPU."""
    if values.numel() == 0:
        return True
    low, high = torch.aminmax(values)
    return math.isfinite(low) and math.isfinite(high)

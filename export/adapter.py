"""A PEFT LoRA adapter, and what it makes of each tensor of its base.

Names first: every tensor of the adapter is mapped to the base tensor that it changes or replaces,
every shape is checked, and every tensor is used once; nothing is computed here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from export.changes import (
    CHECK_ELEMENTS,
    BiasChange,
    Change,
    ExpertChange,
    Factors,
    LowRankChange,
    TokenRows,
    is_finite,
    same_values,
)
from export.model_folder import EMBEDDINGS, HEAD, BaseModel, read_json
from export.tensor_file import (
    TORCH_DTYPES,
    Stored,
    TensorEntry,
    TensorFile,
    read_elements,
    read_tensor_file,
)
from tuneline.core.errors import ArtifactError

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."

# Options that do not alter what merging means, whatever their value, or that are merged.
KNOWN_OPTIONS = frozenset({
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "ensure_weight_tying",
    "eva_config", "exclude_modules", "fan_in_fan_out", "inference_mode", "init_lora_weights",
    "layers_pattern", "layers_to_transform", "lora_alpha", "lora_bias", "lora_dropout",
    "megatron_core", "modules_to_save", "peft_type", "peft_version", "qalora_group_size", "r",
    "rank_pattern", "revision", "runtime_config", "target_modules", "target_parameters",
    "task_type", "trainable_token_indices", "use_dora", "use_rslora",
})  # fmt: skip

# Initialisations that leave the base as it is. The others (pissa, olora, corda, loftq, ...) alter
# the base's weights at the start of training, so that the adapter does not fit the base on disk.
NEUTRAL_INITIALISATIONS = (True, False, None, "gaussian", "eva", "orthogonal")

# GPT-2 stores these as (in, out); their shapes alone cannot tell where both are equal.
CONV1D_MODULES = {
    model_type: frozenset({"c_attn", "q_attn", "c_proj", "c_fc"})
    for model_type in ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")
}

EXPERT_LAYOUTS = (
    (r"(.+)\.mlp\.experts", "{}.mlp.experts", ("gate_proj", "up_proj", "down_proj")),
    (r"(.+)\.mlp\.experts", "{}.block_sparse_moe.experts", ("w1", "w3", "w2")),
)
"""How transformers 5 names a layer's experts in memory, how they are named on disk, and what the
halves of its `gate_up_proj` and its `down_proj` are called there."""


@dataclass(frozen=True)
class Adapter:
    """An adapter's options and the header of its weights; no weight is held in memory."""

    path: Path
    config: dict[str, Any]
    weights: TensorFile
    weight: float | None = None
    """Its share where several adapters are summed; None for one adapter as it is."""

    @property
    def named_base(self) -> str:
        base = self.config.get("base_model_name_or_path")
        return f"The adapter names {base!r} as its base."


@dataclass
class Edit:
    """What becomes of one tensor: taken whole from elsewhere, changed, or both in this order."""

    whole: Stored | None = None
    changes: list[Change] = field(default_factory=list)


@dataclass(frozen=True)
class Planned:
    """A changed tensor of the result: where its bytes come from and what is done to its rows."""

    source: Stored
    changes: tuple[Change, ...]


@dataclass(frozen=True)
class MergePlan:
    """The tensors that differ from the base's, by name; all others pass as they are."""

    tensors: dict[str, Planned]
    untied: str | None
    """Name of the output layer that the base ties to its embedding and the result does not."""
    num_tokens: int | None
    """Rows of a resized embedding."""


def read_adapter(path: Path, weight: float | None = None) -> Adapter:
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
    return Adapter(path, config, weights, weight)


def plan_merge(adapters: Sequence[Adapter], base: BaseModel) -> MergePlan:
    """Which base tensor each adapter tensor changes, and how.

    Every adapter tensor is used exactly once and every shape fits, or nothing is returned. Where
    the base ties its output layer to its embedding, the result is what the live adapter model
    computes: as long as both come out equal they stay tied, else the output layer is written too.

    Raises:
        ArtifactError: A tensor is of no known kind, has no counterpart, or does not fit; or
            several adapters cannot be summed. What is wrong is named.
    """
    edits: dict[str, Edit] = {}
    for adapter in adapters:
        for name, edit in _edits(adapter, base).items():
            if len(adapters) > 1 or adapter.weight is not None:
                _check_summable(adapter, base, name, edit)
            edits[name] = _sum(edits[name], edit) if name in edits else edit
    embedding, head = base.embedding, f"{HEAD}.weight"
    untied = None
    if base.is_tied and embedding is not None and {embedding, head} & edits.keys():
        untied = _settle_tied(adapters, base, edits, embedding)
    tensors = {}
    for name, edit in edits.items():
        tied_name = embedding if name == untied and embedding else name
        stored = edit.whole or base.stored(tied_name)
        tensors[name] = Planned(stored, tuple(edit.changes))
    return MergePlan(tensors, untied, _num_tokens(base, tensors))


def _edits(adapter: Adapter, base: BaseModel) -> dict[str, Edit]:
    """One adapter's edits by the name of the tensor, as the base names it."""
    parts: dict[str, dict[str, Stored]] = {}
    edits: dict[str, Edit] = {}
    names = {entry.name for entry in adapter.weights.entries}
    for entry in adapter.weights.entries:
        stored = Stored(adapter.weights, entry)
        if _is_wrapped_copy(adapter, stored, names):
            continue
        module, part = _parse_key(adapter, entry.name)
        if part == "whole":
            target = _target(base, module, adapter, stored)
            _check_whole(adapter, stored, target)
            edits.setdefault(target.name, Edit()).whole = stored
            continue
        if part in parts.setdefault(module, {}):
            raise ArtifactError(f"{adapter.weights.path}: {entry.name} stands twice")
        parts[module][part] = stored
    recent: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    for module, found in parts.items():
        if "base_layer" in found:
            whole = found.pop("base_layer")
            target = _target(base, f"{module}.weight", adapter, whole)
            _check_whole(adapter, whole, target)
            edits.setdefault(target.name, Edit()).whole = whole
        if "bias" in found:
            whole = found.pop("bias")
            target = _target(base, f"{module}.bias", adapter, whole)
            _check_shape(adapter, whole, target.shape, target)
            edits.setdefault(target.name, Edit()).whole = whole
        if not found:
            continue
        changes = (
            _token_rows(adapter, base, module, found, edits)
            if "tokens" in found
            else _expert_changes(adapter, base, module, found, recent)
            or _low_rank_changes(adapter, base, module, found, edits)
        )
        for name, change in changes:
            edits.setdefault(name, Edit()).changes.append(change)
    _check_complete(adapter, base, parts.keys(), edits)
    return edits


SUFFIXES = {
    ".lora_A.weight": "lora_A",
    ".lora_B.weight": "lora_B",
    ".lora_B.bias": "lora_B.bias",
    ".lora_embedding_A": "embedding_A",
    ".lora_embedding_B": "embedding_B",
    ".lora_magnitude_vector": "magnitude",
    ".lora_magnitude_vector.weight": "magnitude",
    ".token_adapter.trainable_tokens_delta": "tokens",
    ".token_adapter.base_layer.weight": "base_layer",
    ".base_layer.bias": "bias",
    ".base_layer.weight": "base_layer",
}


def _parse_key(adapter: Adapter, key: str) -> tuple[str, str]:
    """The module (as the base names it) and the part of it that an adapter tensor is; for a tensor
    that was saved whole, its own name and `whole`."""
    where = adapter.weights.path
    if key.startswith(PREFIX):
        name = key.removeprefix(PREFIX)
        for suffix, part in SUFFIXES.items():
            if name.endswith(suffix):
                return name.removesuffix(suffix), part
        if _is_saved_whole(adapter, name):
            return name, "whole"
        if name.endswith(".bias"):
            if adapter.config.get("bias", "none") == "none":
                raise ArtifactError(f"{where}: {key}: a bias, though the option bias is 'none'")
            return name.removesuffix(".bias"), "bias"
        if name.endswith(".weight") and ".lora_" not in name:
            raise ArtifactError(
                f"{where}: {key}: a module saved whole that modules_to_save in {ADAPTER_CONFIG} "
                "does not name"
            )
    raise ArtifactError(
        f"{where}: {key}: a tensor of an unknown kind; expected names such as "
        f"{PREFIX}model.layers.0.self_attn.q_proj.lora_A.weight"
    )


def _is_wrapped_copy(adapter: Adapter, stored: Stored, names: set[str]) -> bool:
    """Whether a tensor is one of the two that PEFT saves beside a module of `modules_to_save` where
    the vocabulary was resized: the trained tensor again, which is checked to be the same, and the
    one it was trained from, which the live model does not use."""
    for wrapper in (".modules_to_save.", ".original_module."):
        before, found, after = stored.name.partition(wrapper)
        if not found or f"{before}.{after}" not in names:
            continue
        if wrapper == ".modules_to_save.":
            (trained,) = (e for e in adapter.weights.entries if e.name == f"{before}.{after}")
            if not same_values(stored, Stored(adapter.weights, trained)):
                raise ArtifactError(
                    f"{adapter.weights.path}: {stored.name} differs from {trained.name}; expected "
                    "the same tensor twice"
                )
        return True
    return False


def _is_saved_whole(adapter: Adapter, name: str) -> bool:
    """Whether a tensor belongs to a module of `modules_to_save`, or to an embedding or output
    layer, which PEFT saves whole of its own accord where the vocabulary was resized."""
    path = name.split(".")[:-1]
    if path and path[-1] in (*EMBEDDINGS, HEAD):
        return True
    modules = [".".join(path[: length + 1]) for length in range(len(path))]
    saved = adapter.config.get("modules_to_save") or []
    return any(module.endswith(target) for module in modules for target in saved)


def _check_whole(adapter: Adapter, whole: Stored, target: TensorEntry) -> None:
    """A whole tensor has the shape of the base's, but for the rows of a resized vocabulary."""
    module, _, _ = target.name.rpartition(".")
    resizable = module.rpartition(".")[2] in (*EMBEDDINGS, HEAD)
    rows = whole.shape[0] if resizable and whole.shape else None
    expected = target.shape if rows is None else (rows, *target.shape[1:])
    _check_shape(adapter, whole, expected, target)


def _low_rank_changes(
    adapter: Adapter,
    base: BaseModel,
    module: str,
    parts: dict[str, Stored],
    edits: dict[str, Edit],
) -> list[tuple[str, Change]]:
    where = adapter.weights.path
    on_embedding = bool({"embedding_A", "embedding_B"} & parts.keys())
    name_a, name_b = ("embedding_A", "embedding_B") if on_embedding else ("lora_A", "lora_B")
    unknown = parts.keys() - {name_a, name_b, "magnitude", "lora_B.bias"}
    if not {name_a, name_b} <= parts.keys() or unknown:
        kinds = {"embedding_A": "lora_embedding_A", "embedding_B": "lora_embedding_B"}
        names = ", ".join(sorted(kinds.get(part, part) for part in parts))
        raise ArtifactError(
            f"{where}: {module}: has only {names}; expected lora_A and lora_B"
            if not unknown
            else f"{where}: {module}: has {names}, which do not go together"
        )
    a, b, magnitude = parts[name_a], parts[name_b], parts.get("magnitude")
    if bool(adapter.config.get("use_dora")) != (magnitude is not None):
        raise ArtifactError(
            f"{where}: {module}: "
            + ("has a magnitude vector but use_dora is off" if magnitude else "use_dora is on but "
               "there is no magnitude vector")
        )  # fmt: skip
    rank, scale = _rank_and_scale(adapter, module)
    target = _target(base, f"{module}.weight", adapter, a)
    shape = _edited_shape(edits, target)
    conv1d = module.rpartition(".")[2] in CONV1D_MODULES.get(base.config["model_type"], ())
    if len(shape) != 2:
        raise ArtifactError(
            f"{where}: {a.name}: changes {target.name} of shape {list(shape)}; only "
            "two-dimensional weights are supported"
        )
    transposed = conv1d or on_embedding
    num_in, num_out = shape if transposed else shape[::-1]
    _check_shape(adapter, a, (rank, num_in), target)
    _check_shape(adapter, b, (num_out, rank), target)
    if magnitude is not None:
        _check_shape(adapter, magnitude, (num_out,), target)
        if transposed:
            what = "an embedding" if on_embedding else "a Conv1D weight"
            raise ArtifactError(f"{where}: {magnitude.name}: DoRA on {what} is not supported")
    as_parameter = _matches(adapter.config.get("target_parameters"), f"{module}.weight")
    found: list[tuple[str, Change]] = [
        (
            target.name,
            LowRankChange(
                (Factors(a, b, scale, adapter.weight),),
                magnitude,
                transposed,
                rounded=(on_embedding or as_parameter) and adapter.weight is None,
            ),
        )
    ]
    if "lora_B.bias" in parts:
        delta = parts["lora_B.bias"]
        bias = _target(base, f"{module}.bias", adapter, delta)
        _check_shape(adapter, delta, bias.shape, bias)
        found.append((bias.name, BiasChange(delta, scale)))
    return found


def _expert_changes(
    adapter: Adapter,
    base: BaseModel,
    module: str,
    parts: dict[str, Stored],
    recent: dict[str, tuple[torch.Tensor, torch.Tensor]],
) -> list[tuple[str, Change]]:
    """LoRA on a layer's fused experts (`target_parameters`): one change for each tensor on disk.

    PEFT nests the wrappers of `gate_up_proj` and `down_proj`, so that names such as
    `experts.base_layer.lora_A` do not say which is which; their shapes do.
    """
    name = module
    while name.endswith(".base_layer"):
        name = name.removesuffix(".base_layer")
    experts = _experts_on_disk(base, name)
    if experts is None:
        return []
    stem, (gate, up, down), num_experts = experts
    where = adapter.weights.path
    if parts.keys() != {"lora_A", "lora_B"}:
        raise ArtifactError(
            f"{where}: {module}: has {', '.join(sorted(parts))}; expected lora_A and lora_B"
        )
    a, b = parts["lora_A"], parts["lora_B"]
    first = base.tensors[f"{stem}.0.{gate}.weight"]
    last = base.tensors[f"{stem}.0.{down}.weight"]
    shapes = {
        "gate_up_proj": (2 * first.shape[0], first.shape[1]),
        "down_proj": (last.shape[0], last.shape[1]),
    }
    fits = [key for key, shape in shapes.items() if (*b.shape[:1], *a.shape[1:]) == shape]
    rank, scale = _rank_and_scale(adapter, f"{name}.{fits[0]}" if fits else name)
    if not fits or a.shape[0] != rank * num_experts or b.shape[1] != rank * num_experts:
        raise ArtifactError(
            f"{where}: {a.name} of shape {list(a.shape)} and {b.name} of shape {list(b.shape)} do "
            f"not fit {num_experts} experts of {stem} at rank {rank}",
            hint=adapter.named_base,
        )
    tensors = ((gate, 0), (up, first.shape[0])) if fits[0] == "gate_up_proj" else ((down, 0),)
    factors = Factors(a, b, scale, adapter.weight)
    return [
        (
            _target(base, f"{stem}.{expert}.{part}.weight", adapter, a).name,
            ExpertChange(factors, expert, num_experts, first_row, recent),
        )
        for expert in range(num_experts)
        for part, first_row in tensors
    ]


def _experts_on_disk(base: BaseModel, module: str) -> tuple[str, tuple[str, str, str], int] | None:
    """Where a module of fused experts lies in the base's files, and how many experts it has."""
    for in_memory, on_disk, parts in EXPERT_LAYOUTS:
        match = re.fullmatch(in_memory, module)
        stem = on_disk.format(match[1]) if match else ""
        if f"{stem}.0.{parts[0]}.weight" in base.tensors:
            count = 0
            while f"{stem}.{count}.{parts[0]}.weight" in base.tensors:
                count += 1
            return stem, parts, count
    return None


def _token_rows(
    adapter: Adapter,
    base: BaseModel,
    module: str,
    parts: dict[str, Stored],
    edits: dict[str, Edit],
) -> list[tuple[str, Change]]:
    """Rows trained by `trainable_token_indices`."""
    rows = parts["tokens"]
    if len(parts) > 1:
        raise ArtifactError(
            f"{adapter.weights.path}: {module}: has trained tokens and a low-rank change; they do "
            "not go together"
        )
    indices = adapter.config.get("trainable_token_indices")
    if isinstance(indices, dict):
        indices = next((value for key, value in indices.items() if module.endswith(key)), None)
    target = _target(base, f"{module}.weight", adapter, rows)
    shape = _edited_shape(edits, target)
    if (
        not isinstance(indices, list)
        or not all(type(index) is int and 0 <= index < shape[0] for index in indices)
        or len(set(indices)) != len(indices)
    ):
        raise ArtifactError(
            f"{adapter.path / ADAPTER_CONFIG}: trainable_token_indices: {indices!r} for {module}; "
            f"expected different row numbers below {shape[0]}"
        )
    _check_shape(adapter, rows, (len(indices), *shape[1:]), target)
    return [(target.name, TokenRows(rows, tuple(indices)))]


def _settle_tied(
    adapters: Sequence[Adapter], base: BaseModel, edits: dict[str, Edit], embedding: str
) -> str | None:
    """Decide what a tied output layer becomes; its name is returned where it comes untied.

    In the live adapter model the output layer multiplies by the base's own weight, unless it is
    itself adapted, or PEFT ties the adapters: `ensure_weight_tying`, and trained tokens always.
    """
    head = f"{HEAD}.weight"
    of_input = edits.setdefault(embedding, Edit())
    of_output = edits.setdefault(head, Edit())
    ensured = all(adapter.config.get("ensure_weight_tying") for adapter in adapters)
    # A copy of the base layer is loaded into the one tensor that both share.
    for one, other in ((of_input, of_output), (of_output, of_input)):
        if one.whole is not None and other.whole is None and "base_layer" in one.whole.name:
            other.whole = one.whole
    tokens = [change for change in of_input.changes if isinstance(change, TokenRows)]
    if tokens and not of_output.changes:
        of_output.changes.extend(tokens)
    if ensured and of_output.whole is None and not of_output.changes:
        of_output.whole, of_output.changes = of_input.whole, list(of_input.changes)
    if _same_edit(of_input, of_output, base.stored(embedding)):
        del edits[head]
        if not of_input.changes and of_input.whole is None:
            del edits[embedding]
        return None
    if not of_input.changes and of_input.whole is None:
        del edits[embedding]
    if embedding.count(".") < 2:
        raise ArtifactError(
            f"{base.path}: {embedding}: the output layer comes to differ from the embedding, and "
            "this base is stored without its head, so that there is no place for one",
            hint="Save the base whole: AutoModelForCausalLM.from_pretrained(BASE)"
            ".save_pretrained(OUT)",
        )
    return head


def _same_edit(one: Edit, other: Edit, base: Stored) -> bool:
    """Whether two edits of a shared tensor come to the same values."""
    sources = [edit.whole or base for edit in (one, other)]
    if sources[0] is not sources[1] and not same_values(*sources):
        return False
    if len(one.changes) != len(other.changes):
        return False
    for change, counterpart in zip(one.changes, other.changes, strict=True):
        if change is counterpart:
            continue
        if isinstance(change, LowRankChange) and isinstance(counterpart, LowRankChange):
            if not _transposes(change, counterpart):
                return False
        elif not (
            isinstance(change, TokenRows)
            and isinstance(counterpart, TokenRows)
            and change.indices == counterpart.indices
            and same_values(change.rows, counterpart.rows)
        ):
            return False
    return True


def _transposes(one: LowRankChange, other: LowRankChange) -> bool:
    """Whether a change of an embedding and one of an output layer have the same product."""
    if one.magnitude or other.magnitude or len(one.factors) != len(other.factors):
        return False
    return all(
        mine.scale == its.scale
        and mine.weight == its.weight
        and torch.equal(mine.a.read(), its.b.read().T)
        and torch.equal(mine.b.read(), its.a.read().T)
        for mine, its in zip(one.factors, other.factors, strict=True)
    )


def _check_summable(adapter: Adapter, base: BaseModel, name: str, edit: Edit) -> None:
    """A weighted sum is of low-rank products alone; nothing else has a share that can be taken."""
    where = adapter.weights.path
    if edit.whole is not None:
        shared = base.embedding if name == f"{HEAD}.weight" and base.is_tied else name
        if not same_values(edit.whole, base.stored(shared or name)):
            raise ArtifactError(
                f"{where}: {edit.whole.name}: a tensor saved whole has no weighted share; an "
                "adapter that has one merges alone and without a weight"
            )
        edit.whole = None
    for change in edit.changes:
        if not isinstance(change, LowRankChange) or change.magnitude is not None:
            what = {
                LowRankChange: "DoRA",
                ExpertChange: "LoRA on fused experts",
                BiasChange: "a LoRA bias",
                TokenRows: "trained tokens",
            }[type(change)]
            raise ArtifactError(
                f"{where}: {name}: {what} has no weighted share; an adapter that has it merges "
                "alone and without a weight"
            )


def _sum(one: Edit, other: Edit) -> Edit:
    if not one.changes or not other.changes:
        return one if one.changes else other
    (mine,), (its,) = one.changes, other.changes
    assert isinstance(mine, LowRankChange) and isinstance(its, LowRankChange)  # noqa: S101
    return Edit(None, [replace(mine, factors=(*mine.factors, *its.factors))])


def _num_tokens(base: BaseModel, tensors: dict[str, Planned]) -> int | None:
    """The rows of a resized vocabulary, on which embedding and output layer must agree."""
    embedding, head = base.embedding, f"{HEAD}.weight"
    rows = {}
    for name in (embedding, head, f"{HEAD}.bias"):
        if name in tensors:
            rows[name] = tensors[name].source.shape[0]
        elif name in base.tensors:
            rows[name] = base.tensors[name].shape[0]
    if len(set(rows.values())) > 1:
        found = ", ".join(f"{name} has {count}" for name, count in rows.items())
        raise ArtifactError(
            f"{base.path}: the vocabulary is resized in part: {found} rows",
            hint="Save the adapter with save_embedding_layers=True.",
        )
    resized = embedding in tensors and tensors[embedding].source.shape[0]
    if not resized or embedding is None or resized == base.tensors[embedding].shape[0]:
        return None
    return resized


def _target(base: BaseModel, name: str, adapter: Adapter, source: Stored) -> TensorEntry:
    """The base tensor called `name`.

    A base saved without its head drops the first component; Mixtral's files name its block
    otherwise than its memory does; and a tied output layer stands for its embedding.
    """
    for candidate in (
        name,
        name.partition(".")[2],
        name.replace(".mlp.", ".block_sparse_moe."),
    ):
        if candidate in base.tensors:
            target = base.tensors[candidate]
            if target.dtype not in TORCH_DTYPES:
                raise ArtifactError(
                    f"{base.path}: {candidate} is stored as {target.dtype}; an adapter merges into "
                    f"{', '.join(TORCH_DTYPES)} alone"
                )
            return target
    if name == f"{HEAD}.weight" and base.is_tied and base.embedding is not None:
        return replace(base.tensors[base.embedding], name=name)
    raise ArtifactError(
        f"{adapter.weights.path}: {source.name}: the base {base.path} has no tensor {name}",
        hint=adapter.named_base,
    )


def _edited_shape(edits: dict[str, Edit], target: TensorEntry) -> tuple[int, ...]:
    edit = edits.get(target.name)
    return edit.whole.shape if edit and edit.whole else target.shape


def _check_shape(
    adapter: Adapter, stored: Stored, expected: Sequence[int], target: TensorEntry
) -> None:
    if tuple(stored.shape) != tuple(expected):
        raise ArtifactError(
            f"{adapter.weights.path}: {stored.name}: has shape {list(stored.shape)}; expected "
            f"{list(expected)} to fit {target.name} of shape {list(target.shape)}: an adapter of "
            "another base, or options that are not its own",
            hint=adapter.named_base,
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


def _matches(targets: Any, name: str) -> bool:
    return isinstance(targets, list) and any(
        name == target or name.endswith(f".{target}") for target in targets
    )


def _check_complete(
    adapter: Adapter, base: BaseModel, modules: Sequence[str] | Any, edits: dict[str, Edit]
) -> None:
    """An adapter file that lost some of its tensors would merge without a word."""
    config = adapter.config
    where = adapter.weights.path
    limited = any(config.get(option) for option in ("layers_to_transform", "exclude_modules"))
    saved = config.get("modules_to_save") or []
    if not limited:
        for name in base.tensors:
            module = name.removesuffix(".weight")
            if module == name or any(module.endswith(target) for target in saved):
                continue
            have = module in modules or any(known.partition(".")[2] == module for known in modules)
            if _matches(config.get("target_modules"), module) and not have:
                raise ArtifactError(
                    f"{where}: has nothing for {module}, which target_modules in "
                    f"{ADAPTER_CONFIG} names: the adapter is incomplete"
                )
    for name in base.tensors:
        if _matches(config.get("target_parameters"), _in_memory(name)) and name not in edits:
            raise ArtifactError(
                f"{where}: has nothing for {name}, which target_parameters in {ADAPTER_CONFIG} "
                "names: the adapter is incomplete"
            )
    for target in saved:
        stands_in = config.get("ensure_weight_tying") and target.endswith(HEAD)
        found = any(
            edit.whole is not None and f"{target}." in f"{edit.whole.name}"
            for edit in edits.values()
        )
        if not found and not stands_in:
            raise ArtifactError(
                f"{where}: has nothing for {target}, which modules_to_save in {ADAPTER_CONFIG} "
                "names: the adapter is incomplete"
            )


def _in_memory(name: str) -> str:
    """What transformers 5 calls a tensor on disk once it is loaded, for the experts' tensors."""
    for _, on_disk, parts in EXPERT_LAYOUTS:
        pattern = re.escape(on_disk.format("@")).replace("@", r"(.+)") + r"\.\d+\.(\w+)\.weight"
        match = re.fullmatch(pattern, name)
        if match and match[2] in parts:
            fused = "down_proj" if match[2] == parts[2] else "gate_up_proj"
            return f"{match[1]}.mlp.experts.{fused}"
    return name


def _refuse_options(path: Path, config: dict[str, Any]) -> None:
    refused = [
        f"{option}={value!r}"
        for option, value in config.items()
        if value and option not in KNOWN_OPTIONS
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

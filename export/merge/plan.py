"""What an adapter makes of each tensor of its base.

Names first: every tensor of the adapter is mapped to the base tensor that it changes or replaces,
every shape is checked, and every tensor is used once; nothing is computed here.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import torch

from export.merge.adapter import Adapter, matches, parse_key, rank_and_scale
from export.merge.completeness import check_complete
from export.merge.deltas import (
    BiasChange,
    Edit,
    ExpertChange,
    Factors,
    LowRankChange,
    StackedExpertsChange,
    TokenRows,
)
from export.merge.naming import Naming, namings, without_wrappers
from export.merge.tied_head import check_copies, check_no_bias, check_plain, settle_tied
from export.weights.blocks import Change
from export.weights.families import EMBEDDINGS, HEAD, NEOX_HEAD, is_conv1d
from export.weights.model_folder import ModelFolder
from export.weights.tensor_file import TORCH_DTYPES, Stored, TensorEntry, same_values
from tuneline.core.errors import ArtifactError
from tuneline.models.adapter_config import ADAPTER_CONFIG


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


def plan_merge(adapters: Sequence[Adapter], base: ModelFolder) -> MergePlan:
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
    embedding, head = base.embedding, base.head
    check_no_bias(base, edits)
    untied = None
    if base.is_tied:
        check_copies(base)
        if embedding is None:
            check_plain(base, edits)
        elif {embedding, head} & edits.keys():
            untied = settle_tied(adapters, base, edits, embedding)
    tensors = {}
    for name, edit in edits.items():
        tied_name = embedding if name == untied and embedding else name
        stored = edit.whole or base.stored(tied_name)
        tensors[name] = Planned(stored, tuple(edit.changes))
    return MergePlan(tensors, untied, _num_tokens(base, tensors))


def _edits(adapter: Adapter, base: ModelFolder) -> dict[str, Edit]:
    """One adapter's edits by the name of the tensor, as the base names it."""
    candidates = namings(adapter, base)
    try:
        return _edits_by(adapter, base, next(candidates))
    except ArtifactError:
        for naming in candidates:
            with suppress(ArtifactError):
                return _edits_by(adapter, base, naming)
        raise


def _edits_by(adapter: Adapter, base: ModelFolder, naming: Naming) -> dict[str, Edit]:
    parts: dict[str, dict[str, Stored]] = {}
    edits: dict[str, Edit] = {}
    names = {entry.name for entry in adapter.weights.entries}
    for entry in adapter.weights.entries:
        stored = Stored(adapter.weights, entry)
        if _is_wrapped_copy(adapter, stored, names):
            continue
        module, part = parse_key(adapter, entry.name)
        if part == "whole":
            target = _target(base, naming, module, adapter, stored)
            _check_whole(adapter, stored, target)
            _replace(adapter, edits, target.name, stored)
            continue
        if part in parts.setdefault(module, {}):
            raise ArtifactError(f"{adapter.weights.path}: {entry.name} stands twice")
        parts[module][part] = stored
    recent: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    for module, found in parts.items():
        if "base_layer" in found:
            whole = found.pop("base_layer")
            target = _target(base, naming, f"{module}.weight", adapter, whole)
            _check_whole(adapter, whole, target)
            _replace(adapter, edits, target.name, whole)
        if "bias" in found:
            whole = found.pop("bias")
            target = _target(base, naming, f"{module}.bias", adapter, whole)
            _check_shape(adapter, whole, target.shape, target)
            _replace(adapter, edits, target.name, whole)
        if not found:
            continue
        changes = (
            _token_rows(adapter, base, naming, module, found, edits)
            if "tokens" in found
            else _expert_changes(adapter, base, naming, module, found, recent)
            or _low_rank_changes(adapter, base, naming, module, found, edits)
        )
        for name, change in changes:
            edit = edits.setdefault(name, Edit())
            if edit.changes:
                raise ArtifactError(
                    f"{adapter.weights.path}: {module}: changes {name}, which another module of "
                    "the adapter changes too"
                )
            edit.changes.append(change)
    check_complete(adapter, base, naming, edits)
    return edits


def _replace(adapter: Adapter, edits: dict[str, Edit], name: str, whole: Stored) -> None:
    """Take a tensor whole from the adapter."""
    edit = edits.setdefault(name, Edit())
    if edit.whole is not None:
        raise ArtifactError(
            f"{adapter.weights.path}: {edit.whole.name} and {whole.name} both stand for {name}; "
            "expected one of them"
        )
    edit.whole = whole


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


def _check_whole(adapter: Adapter, whole: Stored, target: TensorEntry) -> None:
    """A whole tensor has the shape of the base's, but for the rows of a resized vocabulary."""
    module, _, _ = target.name.rpartition(".")
    resizable = module.rpartition(".")[2] in (*EMBEDDINGS, HEAD, NEOX_HEAD)
    rows = whole.shape[0] if resizable and whole.shape else None
    expected = target.shape if rows is None else (rows, *target.shape[1:])
    _check_shape(adapter, whole, expected, target)


def _low_rank_changes(
    adapter: Adapter,
    base: ModelFolder,
    naming: Naming,
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
    as_parameter = matches(adapter.config.get("target_parameters"), f"{module}.weight")
    # PEFT holds its patterns against the name of what it targets.
    rank, scale = rank_and_scale(adapter, f"{module}.weight" if as_parameter else module)
    target = _target(base, naming, f"{module}.weight", adapter, a)
    shape = _edited_shape(edits, target)
    conv1d = is_conv1d(base.config, module)
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
        bias = _target(base, naming, f"{module}.bias", adapter, delta)
        _check_shape(adapter, delta, bias.shape, bias)
        found.append((bias.name, BiasChange(delta, scale)))
    return found


def _expert_changes(
    adapter: Adapter,
    base: ModelFolder,
    naming: Naming,
    module: str,
    parts: dict[str, Stored],
    recent: dict[str, tuple[torch.Tensor, torch.Tensor]],
) -> list[tuple[str, Change]]:
    """LoRA on a layer's fused experts (`target_parameters`): one change for each tensor on disk.

    PEFT nests the wrappers of `gate_up_proj` and `down_proj`, so that names such as
    `experts.base_layer.lora_A` do not say which is which; their shapes do.
    """
    name = without_wrappers(module)
    candidates = naming.fused_in(name)
    if not candidates:
        return []
    where = adapter.weights.path
    if parts.keys() != {"lora_A", "lora_B"}:
        raise ArtifactError(
            f"{where}: {module}: has {', '.join(sorted(parts))}; expected lora_A and lora_B"
        )
    a, b = parts["lora_A"], parts["lora_B"]
    fits = [
        (key, experts)
        for key, experts in candidates.items()
        if (*b.shape[:1], *a.shape[1:]) == (experts.num_out, experts.num_in)
    ]
    rank, scale = rank_and_scale(adapter, f"{name}.{fits[0][0]}" if fits else name)
    num_experts = next(iter(candidates.values())).num_experts
    if not fits or a.shape[0] != rank * num_experts or b.shape[1] != rank * num_experts:
        raise ArtifactError(
            f"{where}: {a.name} of shape {list(a.shape)} and {b.name} of shape {list(b.shape)} do "
            f"not fit {num_experts} experts of {name} at rank {rank}",
            hint=adapter.named_base,
        )
    experts = fits[0][1]
    factors = Factors(a, b, scale, adapter.weight)
    changes: list[tuple[str, Change]] = []
    for piece in experts.pieces:
        _check_format(base, piece.name)
        changes.append(
            (
                piece.name,
                StackedExpertsChange(factors, experts.num_experts, experts.transposed)
                if piece.expert is None
                else ExpertChange(factors, piece.expert, num_experts, piece.first_row, recent),
            )
        )
    return changes


def _token_rows(
    adapter: Adapter,
    base: ModelFolder,
    naming: Naming,
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
    target = _target(base, naming, f"{module}.weight", adapter, rows)
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


def _check_summable(adapter: Adapter, base: ModelFolder, name: str, edit: Edit) -> None:
    """A weighted sum is of low-rank products alone; nothing else has a share that can be taken."""
    where = adapter.weights.path
    if edit.whole is not None:
        shared = base.embedding if name == base.head and base.is_tied else name
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
                StackedExpertsChange: "LoRA on fused experts",
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


def _num_tokens(base: ModelFolder, tensors: dict[str, Planned]) -> int | None:
    """The rows of a resized vocabulary, on which embedding and output layer must agree."""
    embedding, head = base.embedding, base.head
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


def _target(
    base: ModelFolder, naming: Naming, name: str, adapter: Adapter, source: Stored
) -> TensorEntry:
    """The base tensor that is called `name` in memory; a tied output layer that is not stored has
    the shape of its embedding."""
    stored = naming.tensors.get(name)
    if stored in base.tensors:
        _check_format(base, stored)
        return base.tensors[stored]
    if stored is not None and stored == base.head and base.embedding is not None:
        return replace(base.tensors[base.embedding], name=stored)
    raise ArtifactError(
        f"{adapter.weights.path}: {source.name}: the base {base.path} has no tensor {name}",
        hint=adapter.named_base,
    )


def _check_format(base: ModelFolder, name: str) -> None:
    if base.tensors[name].dtype not in TORCH_DTYPES:
        raise ArtifactError(
            f"{base.path}: {name} is stored as {base.tensors[name].dtype}; an adapter merges into "
            f"{', '.join(TORCH_DTYPES)} alone"
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

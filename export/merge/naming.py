"""What the tensors of a model's files are called once they are loaded.

An adapter names modules as they are called in memory, in the release that wrote it; the files may
call them otherwise, and may store a layer's experts one by one where memory holds one tensor. Most
families need a few rules and no import. For the others transformers is asked, which knows how it
renames and joins what it loads: its own class is built without weights, and its own rules are
applied to the names in the files.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from export.merge.adapter import PREFIX, Adapter, parse_key
from export.weights.families import HEAD
from export.weights.model_folder import ModelFolder
from tuneline.core.environment import require
from tuneline.core.progress import logger

EXPERT_LAYOUTS = tuple(
    (f"{{}}.{block}.experts", f"{{}}.{stored}.experts", parts)
    for block, stored in (
        ("mlp", "mlp"), ("mlp", "block_sparse_moe"), ("feed_forward", "feed_forward"),
    )
    for parts in (("gate_proj", "up_proj", "down_proj"), ("w1", "w3", "w2"))
)  # fmt: skip
"""How transformers 5 names a layer's experts in memory, how they are named on disk, and what the
halves of its `gate_up_proj` and its `down_proj` are called there."""

BUFFERS = ("inv_freq", "masked_bias")
"""Tensors in files of old releases that are no parameters."""

TEXT_HALF = re.compile(r"(^|\.)language_model\.")
IN_EXPERT = re.compile(r"(.+\.experts)\.(\d+)\.(\w+)\.weight")


@dataclass(frozen=True)
class Piece:
    """A tensor of the files that is part of a layer's fused experts, or all of them."""

    name: str
    expert: int | None
    """Whose it is; None where it holds all experts, as memory does."""
    first_row: int
    """Where its rows begin among those of its expert: 0, or behind the gate's for the up half."""


@dataclass(frozen=True)
class FusedExperts:
    """A parameter that holds the experts of a layer, of shape (experts, out, in); transposed,
    (experts, in, out)."""

    num_experts: int
    num_out: int
    num_in: int
    pieces: tuple[Piece, ...]
    transposed: bool = False
    """Whether the files hold (experts, in, out)."""


@dataclass(frozen=True)
class Naming:
    """By the name in memory, the tensor of the files, or the several that are one in memory."""

    tensors: dict[str, str]
    fused: dict[str, FusedExperts] = field(default_factory=dict)

    def fused_in(self, module: str) -> dict[str, FusedExperts]:
        """The fused parameters of a module, by their own names."""
        return {
            name.rpartition(".")[2]: experts
            for name, experts in self.fused.items()
            if name.rpartition(".")[0] == module
        }

    def by_file(self) -> dict[str, str]:
        """What each tensor of the files is called in memory, or is part of there."""
        found = {stored: name for name, stored in self.tensors.items()}
        for name, experts in self.fused.items():
            found |= {piece.name: name for piece in experts.pieces}
        return found


def namings(adapter: Adapter, base: ModelFolder) -> Iterator[Naming]:
    """First the names under which everything in the adapter has a counterpart; where there are
    none, those under which most of it has, so that what is named as missing is what is. Then others
    under which everything has one: rules may give the files names that memory does not have.

    Raises:
        ArtifactError: A tensor of the adapter is of no known kind.
    """
    parsed = {parse_key(adapter, entry.name) for entry in adapter.weights.entries}
    plain = plain_naming(adapter, base)
    if "text_config" not in base.config and not _num_missing(plain, parsed):
        yield plain
        yield from (one for one in _library_namings(base) if not _num_missing(one, parsed))
        return
    # Of a model of text and pictures, rules know too little of what is not text.
    known = [*_library_namings(base), plain]
    known.sort(key=lambda naming: _num_missing(naming, parsed))
    yield known[0]
    yield from (one for one in known[1:] if one is not plain and not _num_missing(one, parsed))


def _num_missing(naming: Naming, parsed: set[tuple[str, str]]) -> int:
    count = 0
    for name, part in parsed:
        if part == "whole" and re.search(r"\.(modules_to_save|original_module)\.", name):
            continue  # a copy of what stands beside it
        ending = {"whole": "", "bias": ".bias", "lora_B.bias": ".bias"}.get(part, ".weight")
        in_experts = part in ("lora_A", "lora_B") and naming.fused_in(without_wrappers(name))
        count += f"{name}{ending}" not in naming.tensors and not in_experts
    return count


def without_wrappers(module: str) -> str:
    """PEFT nests a wrapper for each parameter of a module: `experts.base_layer` is `experts`."""
    return re.sub(r"(\.base_layer)+$", "", module)


def plain_naming(adapter: Adapter, base: ModelFolder) -> Naming:
    """Names by rules alone. A base saved without its head drops the first component; an adapter of
    the text half of a model of text and pictures leaves that out of its names; the files of Mixtral
    and of GPT-NeoX name a block or the output layer otherwise than memory does; experts are fused
    in memory unless the adapter names them one by one, as transformers 4 did; a tied output layer
    stands for its embedding."""
    names = [entry.name.removeprefix(PREFIX) for entry in adapter.weights.entries]
    files = _text_half(base) if not any(TEXT_HALF.search(name) for name in names) else {}
    files = files or {name: name for name in base.tensors}
    with_prefix = (name for name in names if _weight_of(name) not in files)
    prefix = next(
        (
            f"{name.partition('.')[0]}."
            for name in with_prefix
            if _weight_of(name.partition(".")[2]) in files
        ),
        "",
    )
    old_blocks = any(".block_sparse_moe." in name for name in names)
    one_by_one = any(re.search(r"\.experts\.\d+\.", name) for name in names)
    stored_head = base.head.removesuffix(".weight")
    head = stored_head if any(name.startswith(f"{stored_head}.") for name in names) else HEAD
    tensors: dict[str, str] = {}
    experts: dict[str, dict[str, list[tuple[int, str]]]] = {}
    for name, stored in files.items():
        is_matrix_bias = name.endswith(".bias") and len(base.tensors[stored].shape) != 1
        if name.endswith(BUFFERS) or is_matrix_bias:
            continue
        fused = None if one_by_one else _fused_name(name)
        if fused is not None:
            parameter, number, part = fused
            parts = experts.setdefault(f"{prefix}{parameter}", {})
            parts.setdefault(part, []).append((number, stored))
        elif stored == base.head:
            tensors[f"{head}.weight"] = stored
        else:
            called = name if old_blocks else name.replace(".block_sparse_moe.", ".mlp.")
            tensors[f"{prefix}{called}"] = stored
    if base.is_tied and base.embedding is not None:
        tensors.setdefault(f"{head}.weight", base.head)
    joined = {
        name: _joined(base, [parts[part] for part in order if part in parts])
        for name, parts in experts.items()
        for order in [next(three for _, _, three in EXPERT_LAYOUTS if parts.keys() <= set(three))]
    }
    return Naming(tensors, {name: one for name, one in joined.items() if one is not None})


def _text_half(base: ModelFolder) -> dict[str, str]:
    """The tensors of a model's text half, as a class of that half alone calls them; none where the
    files do not set it apart."""
    found = {
        TEXT_HALF.sub(r"\1", name, count=1): name for name in base.tensors if TEXT_HALF.search(name)
    }
    return {**found, base.head: base.head} if found and base.stores_head else found


def _weight_of(name: str) -> str:
    """The weight that an adapter's tensor belongs to."""
    return re.sub(
        r"(\.base_layer|\.token_adapter|\.lora_|\.trainable_tokens|\.weight$|\.bias$).*", "", name
    ) + ".weight"  # fmt: skip


def _fused_name(name: str) -> tuple[str, int, str] | None:
    """The fused parameter that one expert's tensor is part of, the expert's number, and which part
    it is."""
    match = IN_EXPERT.fullmatch(name)
    if match is None:
        return None
    for in_memory, on_disk, parts in EXPERT_LAYOUTS:
        ending = on_disk.format("")
        if match[1].endswith(ending) and match[3] in parts:
            fused = "down_proj" if match[3] == parts[2] else "gate_up_proj"
            stem = in_memory.format(match[1].removesuffix(ending))
            return f"{stem}.{fused}", int(match[2]), match[3]
    return None


def _joined(base: ModelFolder, parts: list[list[tuple[int, str]]]) -> FusedExperts | None:
    """Experts that are stored one by one, as memory holds them: all of them, alike in shape."""
    numbers = [sorted(number for number, _ in part) for part in parts]
    shapes = [{base.tensors[name].shape for _, name in part} for part in parts]
    if any(one != list(range(len(numbers[0]))) for one in numbers) or any(
        len(found) != 1 or len(next(iter(found))) != 2 for found in shapes
    ):
        return None
    (first, *others) = [next(iter(found)) for found in shapes]
    if any(other[1] != first[1] for other in others):
        return None
    pieces = []
    num_out = 0
    for part, shape in zip(parts, [first, *others], strict=True):
        pieces += [Piece(name, number, num_out) for number, name in sorted(part)]
        num_out += shape[0]
    return FusedExperts(len(numbers[0]), num_out, first[1], tuple(pieces))


def _library_namings(base: ModelFolder) -> Iterator[Naming]:
    """The names of transformers: of the class that config.json names, then of the one that
    `AutoModelForCausalLM` loads, which may be the text half of a model of text and pictures."""
    transformers, torch = require("transformers", "export"), require("torch", "export")
    named = getattr(transformers, (base.config.get("architectures") or [""])[0], None)
    builders = [getattr(named, "_from_config", None), transformers.AutoModelForCausalLM.from_config]
    for build in builders:
        try:
            config = transformers.AutoConfig.from_pretrained(
                base.path, local_files_only=True, trust_remote_code=False
            )
            with torch.device("meta"):
                network = build(config) if build else None
        except Exception as error:  # noqa: BLE001  # configurations fail in every way
            logger.debug("%s: transformers cannot build it: %s", base.path, error)
            continue  # no family of this release: the plain rules say what is missing
        if network is not None:
            yield _naming_of(base, network)


def _naming_of(base: ModelFolder, network: Any) -> Naming:
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    transforms = get_model_conversion_mapping(network)
    renamings = [one for one in transforms if isinstance(one, WeightRenaming)]
    converters = {
        pattern: one
        for one in transforms
        if isinstance(one, WeightConverter)
        for pattern in one.source_patterns
    }
    in_memory = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    tensors: dict[str, str] = {}
    fused: dict[str, FusedExperts] = {}
    parts: dict[str, dict[str, list[tuple[int, str]]]] = {}
    for stored, entry in base.tensors.items():
        name, pattern = rename_source_key(
            stored, renamings, list(dict.fromkeys(converters.values())),
            network.base_model_prefix, in_memory,
        )  # fmt: skip
        if name not in in_memory or (pattern is None and entry.shape != in_memory[name]):
            continue
        kind = _kind(converters[pattern]) if pattern else "renamed"
        match = IN_EXPERT.fullmatch(stored)
        if kind == "joined" and match is not None and pattern is not None:
            parts.setdefault(name, {}).setdefault(pattern, []).append((int(match[2]), stored))
        elif len(entry.shape) == 3 and ".experts." in name and kind in ("renamed", "turned"):
            module = network.get_submodule(name.rpartition(".")[0])
            as_in_memory = kind == "renamed" or (
                entry.shape == in_memory[name] and converters[str(pattern)].operations[0].check_dims
            )
            fused[name] = _stacked(base, stored, module, as_in_memory)
        elif kind == "renamed":
            tensors[name] = stored
    for name, found in parts.items():
        order = [
            found[one] for one in converters[next(iter(found))].source_patterns if one in found
        ]
        joined = _joined(base, order)
        if joined is not None and in_memory[name] == (
            joined.num_experts, joined.num_out, joined.num_in
        ):  # fmt: skip
            fused[name] = joined
    if base.is_tied and base.embedding is not None and f"{HEAD}.weight" in in_memory:
        tensors.setdefault(f"{HEAD}.weight", base.head)
    return Naming(tensors, fused)


def _kind(converter: Any) -> str:
    """Whether a converter joins experts that are stored one by one, turns their matrices round, or
    does something else."""
    kinds = [type(operation).__name__ for operation in converter.operations]
    first = converter.operations[0]
    if kinds == ["Transpose"] and {first.dim0, first.dim1} == {1, 2}:
        return "turned"
    dimensions = [getattr(operation, "dim", None) for operation in converter.operations]
    joins = kinds in (["MergeModulelist"], ["MergeModulelist", "Concatenate"])
    return "joined" if joins and dimensions == [0, 1][: len(kinds)] else "other"


def _stacked(base: ModelFolder, stored: str, module: Any, as_in_memory: bool) -> FusedExperts:
    """Experts that the files hold in one tensor, as memory does or the other way round."""
    num_experts, rows, columns = base.tensors[stored].shape
    # What memory holds the other way round, the files hold straight where they differ from it.
    transposed = bool(getattr(module, "is_transposed", False)) == as_in_memory
    num_out, num_in = (columns, rows) if transposed else (rows, columns)
    return FusedExperts(num_experts, num_out, num_in, (Piece(stored, None, 0),), transposed)

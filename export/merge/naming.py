"""The names that the tensors of a model's files have in memory.

An adapter names modules by their names in memory, in the release of transformers that wrote it. The
files may use other names, and may store a layer's experts one by one where memory holds one tensor.
For most families, a few rules suffice and nothing is imported. For the others, transformers renames
and joins the tensors: its own class is built without weights, and its own rules are applied to the
names in the files.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from export.merge.adapter import PREFIX, Adapter, AdapterTensor
from export.merge.methods.saved_modules import WRAPPER
from export.merge.methods.targets import without_wrappers
from export.weights.families import HEAD
from export.weights.memory_names import memory_names
from export.weights.model_folder import ModelFolder
from tuneline.core.environment import require
from tuneline.core.errors import ArtifactError
from tuneline.core.progress import logger
from tuneline.models.load import damage_named

EXPERT_LAYOUTS = tuple(
    (f"{{}}.{block}.experts", f"{{}}.{stored}.experts", parts)
    for block, stored in (
        ("mlp", "mlp"), ("mlp", "block_sparse_moe"), ("feed_forward", "feed_forward"),
    )
    for parts in (("gate_proj", "up_proj", "down_proj"), ("w1", "w3", "w2"))
)  # fmt: skip
"""For a layer's experts: their name in memory (transformers 5), their name on disk, and the names
on disk of the two halves of `gate_up_proj` and of `down_proj`."""

BUFFERS = ("inv_freq", "masked_bias")
"""Tensors in the files of old releases that are not parameters."""


TEXT_HALF = re.compile(r"(^|\.)language_model\.")
IN_EXPERT = re.compile(r"(.+\.experts)\.(\d+)\.(\w+)\.weight")


@dataclass(frozen=True)
class Piece:
    """A tensor of the files that holds one of a layer's fused experts, or all of them."""

    name: str
    expert: int | None
    """The number of the expert; None if the tensor holds all experts."""
    first_row: int
    """Its first row among those of its expert: 0, or the row after the gate for the up half."""


@dataclass(frozen=True)
class FusedExperts:
    """A parameter that holds all experts of a layer."""

    num_experts: int
    num_out: int
    num_in: int
    pieces: tuple[Piece, ...]
    is_transposed: bool = False
    """Whether the files hold the shape (experts, in, out) instead of (experts, out, in)."""


@dataclass(frozen=True)
class Naming:
    """The tensors of the files, by their names in memory."""

    tensors: dict[str, str]
    """Name in memory to name in the files."""
    fused: dict[str, FusedExperts] = field(default_factory=dict)
    """Parameters that are one tensor in memory and may be several in the files."""

    def fused_in(self, module: str) -> dict[str, FusedExperts]:
        """Return the fused parameters of a module, by their own names."""
        return {
            name.rpartition(".")[2]: experts
            for name, experts in self.fused.items()
            if name.rpartition(".")[0] == module
        }

    def by_file(self) -> dict[str, str]:
        """Return the name in memory of each tensor of the files; of the whole, if it is a part."""
        found = {stored: name for name, stored in self.tensors.items()}
        for name, experts in self.fused.items():
            found |= {piece.name: name for piece in experts.pieces}
        return found


def namings(adapter: Adapter, base: ModelFolder) -> Iterator[Naming]:
    """Yield the namings to try, the best one first.

    Under the first, every tensor of the adapter has a counterpart in the base. If there is no such
    naming, the first is the one under which most tensors have one, so that an error names a tensor
    that is really missing. The others have a counterpart for every tensor: the rules may give the
    files names that memory does not have.

    Raises:
        ArtifactError: A tensor of the adapter has a name of no known kind.
    """
    tensors = adapter.tensors()
    plain = plain_naming(adapter, base)
    if "text_config" not in base.config and not _num_missing(plain, tensors):
        yield plain
        yield from (one for one in library_namings(base) if not _num_missing(one, tensors))
        return
    # The rules know the text half of a model of text and pictures, and not enough of the other.
    known = [*library_namings(base), plain]
    known.sort(key=lambda naming: _num_missing(naming, tensors))
    yield known[0]
    yield from (one for one in known[1:] if one is not plain and not _num_missing(one, tensors))


def _num_missing(naming: Naming, tensors: Sequence[AdapterTensor]) -> int:
    """Return how many tensors of the adapter have no counterpart in the base."""
    count = 0
    for tensor in tensors:
        if tensor.part.is_copy and WRAPPER.search(tensor.target):
            continue  # the file holds the same tensor under a plain name
        is_expert = not tensor.part.is_copy and naming.fused_in(without_wrappers(tensor.module))
        count += tensor.target not in naming.tensors and not is_expert
    return count


def plain_naming(adapter: Adapter, base: ModelFolder) -> Naming:
    """Return the names by rules only.

    A base that was saved without its head drops the first component of each name, and an adapter
    that was trained without the head, such as an embedding model's, does not know it. An adapter of
    the text half of a model of text and pictures does not name that half. The files of Mixtral and
    of GPT-NeoX have other names for a block or the output layer than memory has. Experts are fused
    in memory unless the adapter names them one by one, as transformers 4 did. A tied output layer
    has a name in memory too.
    """
    names = [entry.name.removeprefix(PREFIX) for entry in adapter.weights.entries]
    weights = [_weight_of(tensor) for tensor in adapter.tensors()]
    files = _text_half(base) if not any(TEXT_HALF.search(name) for name in names) else {}
    files = files or {name: name for name in base.tensors}
    prefix = next(
        (
            f"{weight.partition('.')[0]}."
            for weight in weights
            if weight not in files and weight.partition(".")[2] in files
        ),
        "",
    )
    backbone = _first_component(files, weights) if not prefix else ""
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
            parts = experts.setdefault(f"{prefix}{parameter.removeprefix(backbone)}", {})
            parts.setdefault(part, []).append((number, stored))
        elif stored == base.head:
            tensors[f"{head}.weight"] = stored
        else:
            called = name if old_blocks else name.replace(".block_sparse_moe.", ".mlp.")
            tensors[f"{prefix}{called.removeprefix(backbone)}"] = stored
    if base.is_tied and base.embedding is not None:
        tensors.setdefault(f"{head}.weight", base.head)
    joined = {
        name: _joined(base, [parts[part] for part in order if part in parts])
        for name, parts in experts.items()
        for order in [next(three for _, _, three in EXPERT_LAYOUTS if parts.keys() <= set(three))]
    }
    return Naming(tensors, {name: one for name, one in joined.items() if one is not None})


def _first_component(files: Collection[str], weights: Sequence[str]) -> str:
    """Return the first component of the names in the files that an adapter's names lack, with its
    dot; empty if they lack none."""
    first = {f"{name.partition('.')[0]}." for name in files}
    lacking = (
        one
        for weight in weights
        if weight not in files
        for one in sorted(first)
        if f"{one}{weight}" in files
    )
    return next(lacking, "")


def _text_half(base: ModelFolder) -> dict[str, str]:
    """Return the tensors of a model's text half by the names that a class of that half gives them;
    nothing if the files have no such half."""
    found = {
        TEXT_HALF.sub(r"\1", name, count=1): name for name in base.tensors if TEXT_HALF.search(name)
    }
    return {**found, base.head: base.head} if found and base.stores_head else found


def _weight_of(tensor: AdapterTensor) -> str:
    """Return the name of the weight of the module that an adapter tensor belongs to."""
    module = re.sub(r"\.(weight|bias)$", "", tensor.module)
    return f"{without_wrappers(module)}.weight"


def _fused_name(name: str) -> tuple[str, int, str] | None:
    """Return the fused parameter that one expert's tensor is part of, the number of the expert, and
    the name of the part."""
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
    """Return experts that are stored one by one as the one parameter of memory; None if a number is
    missing or the shapes differ."""
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


def library_namings(base: ModelFolder) -> Iterator[Naming]:
    """Yield the names of transformers: of the class that config.json names, then of the class that
    `AutoModelForCausalLM` loads, which may be the text half of a model of text and pictures."""
    transformers, torch = require("transformers", "export"), require("torch", "export")
    named = getattr(transformers, (base.config.get("architectures") or [""])[0], None)
    builders = [getattr(named, "_from_config", None), transformers.AutoModelForCausalLM.from_config]
    for build in builders:
        try:
            with damage_named(f"{base.path}: transformers cannot build it"), torch.device("meta"):
                config = transformers.AutoConfig.from_pretrained(
                    base.path, local_files_only=True, trust_remote_code=False
                )
                network = build(config) if build else None
        except ArtifactError as error:
            logger.debug("%s", error.message)
            continue  # the plain rules say which tensors are missing
        if network is not None:
            yield _naming_of(base, network)


def _naming_of(base: ModelFolder, network: Any) -> Naming:
    memory_name = memory_names(network)
    in_memory = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    tensors: dict[str, str] = {}
    fused: dict[str, FusedExperts] = {}
    parts: dict[str, dict[str, list[tuple[int, str]]]] = {}
    patterns: dict[str, list[str]] = {}
    for stored, entry in base.tensors.items():
        name, pattern, converter = memory_name(stored)
        if name not in in_memory or (converter is None and entry.shape != in_memory[name]):
            continue
        kind = _kind(converter) if converter is not None else "renamed"
        match = IN_EXPERT.fullmatch(stored)
        if kind == "joined" and match is not None:
            patterns[name] = converter.source_patterns
            parts.setdefault(name, {}).setdefault(pattern, []).append((int(match[2]), stored))
        elif len(entry.shape) == 3 and ".experts." in name and kind in ("renamed", "turned"):
            module = network.get_submodule(name.rpartition(".")[0])
            as_in_memory = kind == "renamed" or (
                entry.shape == in_memory[name] and converter.operations[0].check_dims
            )
            fused[name] = _stacked(base, stored, module, as_in_memory)
        elif kind == "renamed":
            tensors[name] = stored
    for name, found in parts.items():
        joined = _joined(base, [found[one] for one in patterns[name] if one in found])
        if joined is not None and in_memory[name] == (
            joined.num_experts, joined.num_out, joined.num_in
        ):  # fmt: skip
            fused[name] = joined
    if base.is_tied and base.embedding is not None and f"{HEAD}.weight" in in_memory:
        tensors.setdefault(f"{HEAD}.weight", base.head)
    return Naming(tensors, fused)


def _kind(converter: Any) -> str:
    """Return `joined` for a converter that joins experts that are stored one by one, `turned` for
    one that transposes their matrices, else `other`."""
    kinds = [type(operation).__name__ for operation in converter.operations]
    first = converter.operations[0]
    if kinds == ["Transpose"] and {first.dim0, first.dim1} == {1, 2}:
        return "turned"
    dimensions = [getattr(operation, "dim", None) for operation in converter.operations]
    joins = kinds in (["MergeModulelist"], ["MergeModulelist", "Concatenate"])
    return "joined" if joins and dimensions == [0, 1][: len(kinds)] else "other"


def _stacked(base: ModelFolder, stored: str, module: Any, as_in_memory: bool) -> FusedExperts:
    """Return experts that the files hold in one tensor, like memory does or transposed."""
    num_experts, rows, columns = base.tensors[stored].shape
    # If memory holds them transposed and the files differ from it, the files hold (out, in).
    is_transposed = bool(getattr(module, "is_transposed", False)) == as_in_memory
    num_out, num_in = (columns, rows) if is_transposed else (rows, columns)
    return FusedExperts(num_experts, num_out, num_in, (Piece(stored, None, 0),), is_transposed)

"""Quantization of a model's linear layers from only their weights, tensor by tensor.

Tensors stream from file to file, as in the merge. `tuneline export merge --quantize` writes the
same bytes in one pass, without the merged model on the disk.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from export.config import GroupSize, QuantizeConfig, SchemeName
from export.quantize.schemes import Scheme, quantization_config
from export.weights.families import (
    EMBEDDINGS,
    HEAD,
    IN_DECODER_LAYER,
    NEOX_HEAD,
    OTHER_HEADS,
    is_in_text_half,
    is_router,
)
from export.weights.layout import OutputFile, PlannedTensor, lay_out
from export.weights.model_folder import ModelFolder, check_tensors, read_base, write_config
from export.weights.tensor_file import TORCH_DTYPES
from export.weights.writer import in_mib, require_free, write_files
from tuneline.core.artifact import Artifact, new_artifact, open_artifact
from tuneline.core.errors import ArtifactError
from tuneline.core.progress import progress
from tuneline.models.companion_files import check_companions, copy_companions
from tuneline.models.source import ModelSource

OF_TEXT = re.compile(r"^((model|language_model|text_model)\.)+")
LOOKED_UP = (*EMBEDDINGS, "embed_positions", "wpe")
"""Weights with two dimensions that no linear layer multiplies by."""
IN_EXPERTS = re.compile(r"(.+\.)?(experts|block_sparse_moe|moe)\..+")
MIXTURES = (
    "deepseek_v2", "deepseek_v3", "glm4_moe", "glm4_moe_lite", "mixtral", "olmoe", "qwen2_moe",
    "qwen3_moe", "qwen3_next",
)  # fmt: skip
ROUTED = (*MIXTURES, "gemma3n", "gemma3n_text")
"""Families with experts whose quantized models can be proven."""
STATE_GATES = frozenset({"in_proj_a", "in_proj_b", "in_proj_ba"})
"""Layers that gate the state of Qwen3-Next and Qwen3.5. They have a few rows, which vLLM's kernels
for four bits cannot split over GPUs."""
AS_IT_IS = "Try: leave the model in its own number format, with a merge without --quantize"
ONE_EXPERT = re.compile(r".+\.experts\.\d+\.(gate_proj|up_proj|down_proj|w1|w2|w3)\.weight")


def quantize_model(config: QuantizeConfig, model: ModelSource, out: Path) -> Artifact:
    """Quantize a model folder to compressed-tensors and write another.

    It quantizes the linear layers inside the decoder layers, experts one by one. Embeddings, the
    output layer, routers, norms and biases keep their number format.

    Returns:
        An artifact of kind `model` that vLLM loads. transformers loads it too if it has no experts.

    Raises:
        ArtifactError: The model is corrupt, is quantized already, is a mixture of experts of a
            family that is not supported, has no layer that can be quantized, or holds values that
            are not finite.
        MissingError: The model does not exist.
        DiskFullError: The disk has too little space for the result; checked before writing.
    """
    if model.kind == "adapter":
        raise ArtifactError(f"{model.path}: is an adapter; expected a model")
    opened = read_base(model.path)
    files, schemes, ignore = plan_quantized(opened, config.scheme, config.group_size)
    total_bytes = sum(file.size_bytes for file in files)
    require_free(out, total_bytes)
    check_companions(model.path, model.path)
    inputs = [model.as_input("model")]
    with new_artifact(
        out, "model", config=config.model_dump(), inputs=inputs, resumable=True
    ) as draft:
        with progress("quantize", total_bytes / 2**20, "MiB") as advance:
            hashes, resumed_bytes = write_files(files, draft.dir, draft.journal, in_mib(advance))
        draft.sha256.update(hashes)
        said = quantization_config(next(iter(schemes.values())), ignore)
        write_config(opened, files, draft.dir, {"quantization_config": said})
        copy_companions(model.path, model.path, draft.dir)
        check_tensors(files, draft.dir)
        draft.metrics.update(
            num_tensors=len(opened.tensors), num_quantized_tensors=len(schemes),
            size_bytes=total_bytes, resumed_bytes=resumed_bytes,
        )  # fmt: skip
    return open_artifact(out, kind="model")


def plan_quantized(
    opened: ModelFolder, name: SchemeName, group_size: GroupSize
) -> tuple[list[OutputFile], dict[str, Scheme], list[str]]:
    """Plan the files of a quantized model.

    Returns:
        Its files, shard by shard; the scheme of each quantized weight; and the names of the linear
        layers that keep their number format.

    Raises:
        ArtifactError: The model has nothing to quantize or cannot be quantized; see
            `choose_layers`.
    """
    tensors = {
        shard.path.name: [
            PlannedTensor(entry.name, opened.stored(entry.name), (), entry.dtype)
            for entry in shard.entries
        ]
        for shard in opened.shards
    }
    every = [tensor for group in tensors.values() for tensor in group]
    schemes, ignore = choose_layers(every, name, group_size, opened)
    files = [
        lay_out(shard.path.name, tensors[shard.path.name], shard, schemes)
        for shard in opened.shards
    ]
    return files, schemes, ignore


def choose_layers(
    tensors: Sequence[PlannedTensor], name: SchemeName, group_size: GroupSize, base: ModelFolder
) -> tuple[dict[str, Scheme], list[str]]:
    """Return the weights to quantize, and the names of the linear layers that stay unquantized.

    Raises:
        ArtifactError: The model has no such weight, rows do not divide into groups, or the experts
            are of a family or in a layout that is not supported.
    """
    where = base.path
    family = str(base.config.get("model_type"))
    scheme = Scheme(name, group_size if name == "w4a16" else None)
    schemes: dict[str, Scheme] = {}
    ignore = [HEAD] if "text_config" not in base.config else [HEAD, rf"re:.*\.{HEAD}"]
    if any(tensor.name == f"{NEOX_HEAD}.weight" for tensor in tensors):
        ignore.append(NEOX_HEAD)
    if family in OTHER_HEADS:
        ignore.append(OTHER_HEADS[family])
    for tensor in tensors:
        shape = tensor.source.shape
        if not is_in_text_half(base.config, tensor.name) or base.is_left_out(tensor.name):
            outside = _pattern_of(tensor.name, shape)
            if outside is not None and outside not in ignore:
                ignore.append(outside)
            continue
        module = tensor.name.removesuffix(".weight")
        last = module.rpartition(".")[2]
        stays = last in STATE_GATES or (family in ROUTED and is_router(tensor.name))
        if IN_EXPERTS.fullmatch(tensor.name) and not stays:
            _require_expert(tensor.name, shape, family, where)
        if not IN_DECODER_LAYER.fullmatch(tensor.name) or len(shape) != 2 or stays:
            is_linear = len(shape) == 2 and last not in LOOKED_UP
            if is_linear and module != tensor.name and module not in ignore:
                ignore.append(module)
            continue
        if tensor.dtype not in TORCH_DTYPES or tensor.dtype == "F64":
            raise ArtifactError(
                f"{where}: {tensor.name} is stored as {tensor.dtype}; expected a float of at most "
                "32 bits"
            )
        if scheme.group_size and shape[1] % scheme.group_size:
            fits = [size for size in (64, 32) if shape[1] % size == 0]
            raise ArtifactError(
                f"{where}: {tensor.name}: rows of {shape[1]} do not divide into groups of "
                f"{scheme.group_size}",
                hint=f"Try: --group-size {fits[0]}" if fits else "Try: the scheme int8",
            )
        schemes[tensor.name] = scheme
    if not schemes:
        raise ArtifactError(
            f"{where}: has no linear layer that can be quantized; expected weights with names such "
            "as model.layers.0.self_attn.q_proj.weight",
            hint=AS_IT_IS,
        )
    return schemes, ignore


def _pattern_of(name: str, shape: tuple[int, ...]) -> str | None:
    """Return the entry of `ignore` for a tensor outside the model's own decoder layers; None if no
    linear layer multiplies by it.

    Servers build the layers that predict further tokens in part without quantization (vLLM's
    `eh_proj`), and no proof sees these layers. In the half that reads pictures, only this part of a
    name is the same in the files, in memory and in servers.
    """
    half, _, within = OF_TEXT.sub("", name).partition(".")
    if half == "layers":
        number, _, within = within.partition(".")
        half = rf"layers\.{number}"
    if "." in within:
        return rf"re:(.*\.)?{half}\..*"
    is_linear = len(shape) == 2 and within == "weight" and half not in LOOKED_UP
    return rf"re:(.*\.)?{half}$" if is_linear else None


def _require_expert(name: str, shape: tuple[int, ...], family: str, where: Path) -> None:
    if family not in MIXTURES:
        raise ArtifactError(
            f"{where}: {name}: a mixture of experts of the family {family}; expected one of "
            f"{', '.join(MIXTURES)}",
            hint=AS_IT_IS,
        )
    if not ONE_EXPERT.fullmatch(name) or len(shape) != 2:
        raise ArtifactError(
            f"{where}: {name} of shape {list(shape)}: expected experts that are stored one by "
            "one, without biases",
            hint=AS_IT_IS,
        )

"""Merging an adapter into its base by streaming the base's safetensors.

Bytes flow from the base's shards to the output's through a few fixed buffers. Unchanged tensors
pass as they are; changed ones are computed in float32, in blocks of rows, and rounded once. Memory
is bounded by one module's adapter matrices and the buffers, whatever the size of the model or of
its shards. The result has the base's shards, tensor names and order.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from export.config import MergeConfig
from export.merge.adapter import Adapter, read_adapter, read_outline
from export.merge.plan import MergePlan, Planned, plan_merge
from export.merge.qlora_base import MergeBase, choose_base, through_four_bits
from export.merge.score import SCORE, score_settings, split_score, with_score
from export.quantize.quantize import choose_layers
from export.quantize.schemes import Scheme, quantization_config
from export.weights.layout import OutputFile, PlannedTensor, lay_out
from export.weights.model_folder import ModelFolder, check_tensors, read_base, write_config
from export.weights.tensor_file import SAFETENSORS_DTYPES, TORCH_DTYPES
from export.weights.writer import in_mib, require_free, write_files
from tuneline.core.artifact import Artifact, Input, new_artifact, only_writer, open_artifact
from tuneline.core.digests import short_digest
from tuneline.core.errors import ArtifactError
from tuneline.core.files import MANIFEST
from tuneline.core.progress import logger, progress
from tuneline.models.companion_files import (
    chat_template,
    check_companions,
    copy_companions,
    has_tokenizer,
    max_token_id,
)
from tuneline.models.folder import CONFIG, GENERATION_CONFIG, read_json
from tuneline.models.source import ModelSource, folder_digest

Adapters = Path | Artifact | Sequence[tuple[Path | Artifact, float]]
"""One adapter as it is, or one or more adapters with a weight each; none for a model that was
trained whole."""


def merge(config: MergeConfig, base: ModelSource, adapter: Adapters, out: Path) -> Artifact:
    """Merge a PEFT adapter, or a weighted sum of several, into the base; write a model folder.

    After a kill, the same merge (configuration, base and adapters) goes on after the last tensor
    that was finished.

    Args:
        config: The number format of the result, and whether it is quantized.
        base: The model that the adapter was trained on, not quantized. Without an adapter, a model
            that was trained whole: its weights are cast, and quantized if asked for.
        adapter: An artifact of kind `adapter` or any PEFT adapter folder; or a list of them with
            their weights. Tokenizer, chat template and stop tokens come from the first.
        out: The directory to write; it must not exist.

    Returns:
        An artifact of kind `model`. With dtype `auto` or `float32`, its weights have the bits of
        PEFT's `merge_and_unload` on the same base wherever PEFT's result is what the live adapter
        model computes.

    Raises:
        ArtifactError: The base or an adapter is corrupt or not supported, the two do not fit, or a
            value is or becomes NaN or infinite.
        MissingError: The base does not exist.
        DiskFullError: The disk has too little space for the result; checked before anything is
            written.
    """
    if base.kind == "adapter":
        raise ArtifactError(f"{base.path}: is an adapter; expected the base model")
    opened, inputs = _open_adapters(adapter, base)
    model = read_base(base.path)
    companions = opened[0].path if opened else base.path
    for one in opened:
        check_companions(base.path, one.path)
    _check_one_tokenizer(base.path, opened)
    plan = _plan_tensors(opened, model)
    _check_vocabulary(companions, model, plan)
    onto, figures = _merge_base(config, base, adapter, opened, out)
    if onto == "dequantized":
        plan = through_four_bits(plan, model, _four_bit_modules(opened[0].path))
    cast = config if opened else config.model_copy(update={"dtype": _whole_dtype(config, base)})
    files, schemes, changed = _plan_files(cast, model, plan)
    total_bytes = sum(file.size_bytes for file in files)
    require_free(out, total_bytes)

    recorded = config.model_dump()
    if any(one.weight is not None for one in opened):
        recorded["adapter_weights"] = [one.weight for one in opened]
    inputs = [base.as_input("base" if opened else "trained"), *inputs]
    with new_artifact(out, "model", config=recorded, inputs=inputs, resumable=True) as draft:
        with progress("merge", total_bytes / 2**20, "MiB") as advance:
            hashes, resumed_bytes = write_files(files, draft.dir, draft.journal, in_mib(advance))
        draft.sha256.update(hashes)
        write_config(model, files, draft.dir, changed)
        copy_companions(model.path, companions, draft.dir)
        check_tensors(files, draft.dir)
        draft.metrics.update(
            num_tensors=sum(len(file.outputs) for file in files),
            num_changed_tensors=len(plan.tensors), size_bytes=total_bytes,
            resumed_bytes=resumed_bytes, untied=plan.untied is not None,
        )  # fmt: skip
        draft.metrics.update(figures)
        if schemes:
            draft.metrics["num_quantized_tensors"] = len(schemes)
    logger.debug("merged %d of %d tensors into %s", len(plan.tensors), len(model.tensors), out)
    return open_artifact(out, kind="model")


def require_mergeable(
    config: MergeConfig, base: ModelSource, adapter: Path, four_bit_modules: Sequence[str] = ()
) -> None:
    """Check that an adapter of these names, shapes and options can be merged into a base.

    Args:
        adapter: A PEFT folder, whose values are not read.
        four_bit_modules: The layers that training keeps in NF4, as its manifest will name them.

    Raises:
        ArtifactError: It cannot be merged, for the reasons of `merge`.
    """
    model = read_base(base.path)
    plan = _plan_tensors([read_outline(adapter)], model)
    if four_bit_modules and config.merge_base != "original":
        plan = through_four_bits(plan, model, four_bit_modules)
    _plan_files(config, model, plan)


def _plan_tensors(adapters: Sequence[Adapter], base: ModelFolder) -> MergePlan:
    edited, score = split_score(adapters)
    return with_score(plan_merge(edited, base), score)


def _open_adapters(adapters: Adapters, base: ModelSource) -> tuple[list[Adapter], list[Input]]:
    """Return the adapters with their weights, and their records as inputs."""
    given: list[tuple[Path | Artifact, float | None]] = (
        [(adapters, None)] if isinstance(adapters, Path | Artifact) else list(adapters)
    )
    opened, inputs = [], []
    for source, weight in given:
        folder, adapter_input = _open_adapter(source, base)
        one = read_adapter(folder, weight)
        if not (folder / MANIFEST).is_file():
            _compare_names(one, base)
        opened.append(one)
        inputs.append(adapter_input)
    return opened, inputs


def _compare_names(adapter: Adapter, base: ModelSource) -> None:
    """Warn of an adapter whose options name another base: only a manifest has the base's digest.

    Two models of one family, such as a base model and its chat model, have the same shapes.
    """
    named = str(adapter.config.get("base_model_name_or_path") or "")
    folder = base.path.absolute()
    in_cache = folder.parent.parent.name.removeprefix("models--").replace("--", "/")
    names = {base.name.partition("@")[0], folder.name, in_cache}
    if named and Path(named).name.lower() not in {Path(name).name.lower() for name in names}:
        logger.warning(
            "  %s names %s as its base, and is merged into %s: expected the same weights",
            adapter.path, named, base.name,
        )  # fmt: skip


def _open_adapter(adapter: Path | Artifact, base: ModelSource) -> tuple[Path, Input]:
    """Return an adapter's folder and its record as an input; refuse one of another base."""
    if isinstance(adapter, Path):
        if not (adapter / MANIFEST).is_file():
            if not adapter.is_dir():
                raise ArtifactError(f"{adapter}: no such folder; expected a PEFT adapter folder")
            digest = folder_digest(adapter)
            return adapter, Input(role="adapter", kind="peft-adapter", digest=digest)
        adapter = open_artifact(adapter, kind="adapter")
    if adapter.kind != "adapter":
        raise ArtifactError(f"{adapter.path}: has the kind {adapter.kind!r}; expected an adapter")
    for recorded in adapter.manifest.inputs:
        if recorded.role == "base" and recorded.digest != base.digest:
            raise ArtifactError(
                f"{adapter.path}: was trained on a base with digest "
                f"{short_digest(recorded.digest)}; {base.name} has {short_digest(base.digest)}",
                hint="Try: merge into the base that the adapter was trained on.",
            )
    return adapter.path, adapter.as_input("adapter")


def _merge_base(
    config: MergeConfig, base: ModelSource, adapter: Adapters, opened: Sequence[Adapter], out: Path
) -> tuple[MergeBase, dict[str, Any]]:
    """Return which weights the adapter is merged into, and the figures that decided it."""
    if not opened:
        return "original", {}
    if config.merge_base != "auto":
        return config.merge_base, {"merge_base": config.merge_base}
    if len(opened) > 1 or not _trained_in_four_bits(opened[0].path):
        return "original", {}
    if "text_config" in read_json(base.path / CONFIG):
        logger.info("  merge base: original; a model of text and pictures cannot be measured")
        return "original", {"merge_base": "original"}

    def merge_onto(side: MergeBase, folder: Path) -> Artifact:
        plain = config.model_copy(update={"merge_base": side, "quantize": None})
        return merge(plain, base, adapter, folder)

    work = out.parent / f".{out.name}.work"
    with only_writer(out):
        shutil.rmtree(work, ignore_errors=True)  # of a merge that was killed
        try:
            closer, figures = choose_base(base.path, opened[0].path, merge_onto, work)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return closer, {"merge_base": closer, **figures}


def _whole_dtype(config: MergeConfig, trained: ModelSource) -> str:
    """Return the number format of a model that was trained whole, which is stored in float32.

    `auto` is the format of the base that the training started from.
    """
    if config.dtype != "auto" or not (trained.path / MANIFEST).is_file():
        return config.dtype
    return str(open_artifact(trained.path).manifest.metrics.get("base_dtype", config.dtype))


def _trained_in_four_bits(adapter: Path) -> bool:
    if not (adapter / MANIFEST).is_file():
        return False
    return bool(open_artifact(adapter).manifest.config.get("load_in_4bit"))


def _four_bit_modules(adapter: Path) -> list[str]:
    """Return the layers that training kept in NF4; none if the manifest says nothing."""
    if not (adapter / MANIFEST).is_file():
        return []
    return list(open_artifact(adapter).manifest.metrics.get("four_bit_modules", []))


def _check_one_tokenizer(base: Path, adapters: Sequence[Adapter]) -> None:
    """Refuse adapters with different prompts: their sum would be a model without a prompt."""
    if not adapters:
        return
    first, *others = (_prompt_of(base, adapter.path) for adapter in adapters)
    for adapter, other in zip(adapters[1:], others, strict=True):
        for what, mine in first.items():
            if other[what] != mine:
                raise ArtifactError(
                    f"{adapter.path}: its {what} differs from that of {adapters[0].path}; expected "
                    "adapters that were trained with one tokenizer, chat template and set of stop "
                    "tokens",
                    hint="Try: merge each adapter by itself.",
                )


def _prompt_of(base: Path, adapter: Path) -> dict[str, Any]:
    """Return what decides how a model is asked and when it stops, from the folders that a merge
    takes it from."""
    tokenizer = (adapter if has_tokenizer(adapter) else base) / "tokenizer.json"
    generation = adapter / GENERATION_CONFIG
    if not generation.is_file():
        generation = base / GENERATION_CONFIG
    stop = read_json(generation).get("eos_token_id") if generation.is_file() else None
    return {
        "tokenizer": tokenizer.read_bytes() if tokenizer.is_file() else None,
        "chat template": chat_template(adapter) or chat_template(base),
        "eos_token_id": set(stop) if isinstance(stop, list) else {stop},
    }


def _check_vocabulary(adapter: Path, base: ModelFolder, plan: MergePlan) -> None:
    """Refuse a tokenizer with more ids than the embedding has rows: the model would fail in use."""
    highest, rows = max_token_id(adapter), plan.num_tokens or base.vocab_size
    # Some bases have such ids themselves: Gemma 3's text models know a token of pictures.
    known = max_token_id(base.path) if plan.num_tokens is None else None
    if (
        highest is not None
        and isinstance(rows, int)
        and highest >= rows
        and (known is None or highest > known)
    ):
        raise ArtifactError(
            f"{adapter}: its tokenizer gives ids up to {highest}, and the base {base.path} has "
            f"{rows} rows: the vocabulary was resized; expected the new rows in the adapter",
            hint="Try: save the adapter with save_embedding_layers=True.",
        )
    composite = "text_config" in base.config
    if plan.num_tokens is not None and (composite or "vocab_size" not in base.config):
        what = "is a model of text and pictures" if composite else "has no vocab_size to change"
        raise ArtifactError(
            f"{base.path}: the adapter resizes the vocabulary, and the base {what}: not supported",
            hint="Try: merge it with peft (merge_and_unload).",
        )


def _plan_files(
    config: MergeConfig, base: ModelFolder, plan: MergePlan
) -> tuple[list[OutputFile], dict[str, Scheme], dict[str, Any]]:
    """Return the files to write, the weights to quantize, and the changes in config.json."""
    tensors: dict[str, list[PlannedTensor]] = {}
    for shard in base.shards:
        group = tensors.setdefault(shard.path.name, [])
        for entry in shard.entries:
            if plan.score is not None and entry.name == base.head:
                continue
            dtype = _output_dtype(entry.dtype, config)
            planned = plan.tensors.get(entry.name) or Planned(base.stored(entry.name), ())
            group.append(PlannedTensor(entry.name, planned.source, planned.changes, dtype))
            if plan.untied and entry.name == base.embedding and not base.stores_head:
                head = plan.tensors[plan.untied]
                group.append(PlannedTensor(plan.untied, head.source, head.changes, dtype))
    if plan.score is not None:
        dtype = _output_dtype(plan.score.entry.dtype, config)
        tensors[base.shards[-1].path.name].append(PlannedTensor(SCORE, plan.score, (), dtype))
    schemes: dict[str, Scheme] = {}
    changed = score_settings(base, plan.score)
    if config.dtype != "auto":
        changed["dtype"] = config.dtype
    if plan.untied:
        changed["tie_word_embeddings"] = False
    if plan.num_tokens is not None:
        changed["vocab_size"] = plan.num_tokens
    if config.quantize is not None:
        everything = [tensor for group in tensors.values() for tensor in group]
        schemes, ignore = choose_layers(everything, config.quantize, config.group_size, base)
        scheme = next(iter(schemes.values()))
        changed["quantization_config"] = quantization_config(scheme, ignore)
    files = [
        lay_out(shard.path.name, tensors[shard.path.name], shard, schemes) for shard in base.shards
    ]
    return files, schemes, changed


def _output_dtype(dtype: str, config: MergeConfig) -> str:
    if config.dtype == "auto" or dtype not in TORCH_DTYPES:
        return dtype
    return SAFETENSORS_DTYPES[getattr(torch, config.dtype)]

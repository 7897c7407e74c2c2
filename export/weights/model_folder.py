"""A transformers model folder: its weights, and the small files that go with them."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.weights import families
from export.weights.families import EMBEDDINGS, HEAD, NEOX_HEAD
from export.weights.layout import OutputFile
from export.weights.tensor_file import (
    Stored,
    TensorEntry,
    TensorFile,
    read_tensor_file,
    same_values,
)
from tuneline.core.environment import require
from tuneline.core.errors import ArtifactError, MissingError
from tuneline.core.progress import logger
from tuneline.models.folder import CONFIG, INDEX, WEIGHTS, read_json, write_json
from tuneline.models.load import is_left_over
from tuneline.models.own_code import leave_code_out
from tuneline.models.schemas import ModelConfig, ShardIndex

SAVE_AGAIN = (
    "Try: download the folder again. If its maker wrote it so, let transformers write it anew: "
    "AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(OUT)"
)


@dataclass(frozen=True)
class ModelFolder:
    """A model's configuration and the headers of its weights; no weight is read."""

    path: Path
    config: dict[str, Any]
    shards: tuple[TensorFile, ...]
    index: dict[str, Any] | None
    """The index of a model in several files; None for one file."""
    tensors: dict[str, TensorEntry]
    files: dict[str, TensorFile]
    """The file of each tensor."""

    @functools.cached_property
    def embedding(self) -> str | None:
        """Name of the input embedding's tensor; None unless exactly one tensor has such a name."""
        names = [
            name
            for name in self.tensors
            if name.removesuffix(".weight").rpartition(".")[2] in EMBEDDINGS
            and not self.is_left_out(name)
        ]
        return names[0] if len(names) == 1 else None

    @functools.cached_property
    def is_tied(self) -> bool:
        """Whether the output layer is the embedding: by the configuration, else by the family's
        default."""
        tied = self.config.get("tie_word_embeddings")
        if tied is not None:
            return bool(tied)
        if not self.stores_head:
            return True
        text = (self.config.get("text_config") or {}).get("tie_word_embeddings")
        if text is not None:
            return bool(text)
        if self.embedding is not None and not same_values(
            self.stored(self.embedding), self.stored(self.head)
        ):
            return False  # like transformers, if the configuration says nothing
        # Only a folder that stores its head and says nothing pays for the import.
        known = require("transformers", "export").CONFIG_MAPPING
        model_type = self.config["model_type"]
        return model_type in known and bool(
            getattr(known[model_type](), "tie_word_embeddings", False)
        )

    def is_left_out(self, name: str) -> bool:
        """Return whether transformers does not load a tensor: `families.is_left_out`."""
        return families.is_left_out(self.config, name)

    @functools.cached_property
    def head(self) -> str:
        """Name of the output layer's tensor in the files, whether or not it is stored.

        In a model of text and pictures, the tensor may belong to the text half.
        """
        called = NEOX_HEAD if self.config["model_type"] == "gpt_neox" else HEAD
        plain = f"{called}.weight"
        within = [
            name
            for name in self.tensors
            if name.endswith(f".{plain}") and not self.is_left_out(name)
        ]
        return plain if plain in self.tensors or len(within) != 1 else within[0]

    @property
    def vocab_size(self) -> int | None:
        """The size in the configuration; in a model of text and pictures, that of the text half."""
        text = self.config.get("text_config") or {}
        size = self.config.get("vocab_size")
        return size if size is not None else text.get("vocab_size")

    @property
    def stores_head(self) -> bool:
        """Whether the output layer has a tensor of its own, tied or not."""
        return self.head in self.tensors

    def stored(self, name: str) -> Stored:
        """Return a tensor and its file."""
        return Stored(self.files[name], self.tensors[name])


def read_base(path: Path) -> ModelFolder:
    """Read a model folder's configuration and the headers of its weights.

    Raises:
        MissingError: There is no such folder.
        ArtifactError: The configuration or a header cannot be read, the index and the files
            disagree, or the weights are quantized.
    """
    if not path.is_dir():
        raise MissingError(f"{path}: no such folder; expected a model folder")
    config = read_json(path / CONFIG, ModelConfig)
    quantization = config.get("quantization_config")
    if quantization and is_left_over(path, config):
        logger.info("  %s: quantization_config is on plain weights; left out", path / CONFIG)
        config = {key: one for key, one in config.items() if key != "quantization_config"}
    elif quantization:
        method = quantization.get("quant_method", "unknown")
        raise ArtifactError(
            f"{path / CONFIG}: the model is quantized ({method}); expected plain weights, because "
            "changed ones would be rounded again",
            hint="Try: the model that it was quantized from.",
        )
    config = leave_code_out(config, path / CONFIG, path)
    index = None
    if (path / WEIGHTS).is_file():
        names = [WEIGHTS]
    elif (path / INDEX).is_file():
        index = read_json(path / INDEX, ShardIndex)
        names = sorted(set(index["weight_map"].values()))
        if any(Path(name).name != name for name in names):
            raise ArtifactError(f"{path / INDEX}: a shard lies outside the folder")
    else:
        raise ArtifactError(f"{path}: neither {WEIGHTS} nor {INDEX}; expected safetensors weights")
    shards = tuple(read_tensor_file(path / name) for name in names)
    tensors: dict[str, TensorEntry] = {}
    for shard in shards:
        for entry in shard.entries:
            if entry.name in tensors:
                raise ArtifactError(f"{shard.path}: {entry.name} appears in another shard too")
            if index is not None and index["weight_map"].get(entry.name) != shard.path.name:
                raise ArtifactError(
                    f"{shard.path}: {entry.name} is not what {INDEX} says is here", hint=SAVE_AGAIN
                )
            tensors[entry.name] = entry
    missing = sorted(index["weight_map"].keys() - tensors.keys()) if index else []
    if missing:
        raise ArtifactError(f"{path / INDEX}: no file holds {', '.join(missing[:5])}")
    files = {entry.name: shard for shard in shards for entry in shard.entries}
    return ModelFolder(path, config, shards, index, tensors, files)


def write_model_config(base: ModelFolder, out: Path, changed: dict[str, Any]) -> None:
    """Write config.json; without a change, it is the base's own, byte for byte."""
    if not changed and base.config == read_json(base.path / CONFIG):
        shutil.copyfile(base.path / CONFIG, out / CONFIG)
        return
    values = {name: value for name, value in base.config.items() if name not in changed}
    if "dtype" in changed:
        values.pop("torch_dtype", None)
        for half in values.values():  # of a model of text and pictures
            for key in {"dtype", "torch_dtype"} & half.keys() if isinstance(half, dict) else ():
                half[key] = changed["dtype"]
    write_json(out / CONFIG, {**values, **changed})


def write_config(
    base: ModelFolder, files: Sequence[OutputFile], out: Path, changed: dict[str, Any]
) -> None:
    """Write config.json and the index of a model in several files.

    A file whose content does not change is the base's own, byte for byte.
    """
    write_model_config(base, out, changed)
    if base.index is None:
        return
    entries = {
        entry.name: (file.name, entry)
        for file in files
        for output in file.outputs
        for entry in output.written
    }
    total_size = sum(entry.num_bytes for _, entry in entries.values())
    weight_map = {name: file for name, (file, _) in entries.items()}
    metadata = base.index.get("metadata") or {}
    if weight_map == base.index["weight_map"] and metadata.get("total_size") == total_size:
        shutil.copyfile(base.path / INDEX, out / INDEX)
        return
    metadata = {**metadata, "total_size": total_size}
    if "total_parameters" in metadata:
        sources = [output.source for file in files for output in file.outputs]
        metadata["total_parameters"] = sum(source.entry.num_elements for source in sources)
    weight_map = {name: weight_map[name] for name in sorted(weight_map)}
    write_json(out / INDEX, {"metadata": metadata, "weight_map": weight_map})


def check_tensors(files: Sequence[OutputFile], out: Path) -> None:
    """Read the written files again: their tensors must be those that were planned.

    Raises:
        ArtifactError: A tensor is missing, or one too many, or another.
    """
    for file in files:
        written = {entry.name: entry for entry in read_tensor_file(out / file.name).entries}
        planned = {entry.name: entry for output in file.outputs for entry in output.written}
        if written != planned:
            names = sorted(
                name
                for name in written.keys() | planned.keys()
                if written.get(name) != planned.get(name)
            )
            raise ArtifactError(f"{out / file.name}: not the tensors planned: {names[:5]}")

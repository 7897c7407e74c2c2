"""torch.export: the graph that succeeds TorchScript, in one `model.pt2`.

The archive is a zip of JSON (the graph and the tensors' shapes) and raw tensor bytes. PyTorch would
add the example inputs as a pickle; Tuneline leaves them out. Before it reads an archive, it refuses
any member that is a pickle.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from pathlib import Path
from typing import Any

import torch

from export.config import GraphConfig
from export.graphs.logits_graph import EXAMPLE_SHAPE, max_length, write_graph
from export.runtimes.scores import OpenedForm, run_graph, whole_scores
from export.runtimes.transformers_folder import open_graph
from tuneline.core.artifact import Artifact
from tuneline.core.errors import ArtifactError
from tuneline.models.source import ModelSource

PT2_FILE = "model.pt2"
WHAT = "torch.export"

RAW_TENSOR = re.compile(r"(weight|tensor)_\d+")
PLAIN_MEMBER = re.compile(
    r"models/\w+\.json|data/(weights|constants)/(weight|tensor)_\d+|archive_format|archive_version"
    r"|byteorder|version|\.data/(serialization_id|version)"
)
"""Members besides tensor configurations: JSON, raw tensors, a few version marks."""


def export_torch_export(_config: GraphConfig, model: ModelSource, out: Path) -> Artifact:
    """Export a model folder's causal LM in float32, with batch and length dynamic.

    Returns:
        An artifact of kind `torch-export`; its manifest states the `shape_contract`.

    Raises:
        ArtifactError: The model cannot be loaded, or its family cannot be exported so that every
            batch and length works.
    """
    return write_graph(
        "torch-export", PT2_FILE, WHAT, model, out,
        trace=export_program, save=_save, load=load_torch_export,
    )  # fmt: skip


def export_program(logits: torch.nn.Module) -> Any:
    """Return the `ExportedProgram` of `input_ids` → logits."""
    longest = max_length(logits.network.config)
    shapes = {
        0: torch.export.Dim("batch", min=1),
        1: torch.export.Dim("length", min=1, max=longest),
    }
    example = torch.zeros(EXAMPLE_SHAPE, dtype=torch.int64)
    with torch.no_grad():
        program = torch.export.export(
            logits, (example,), dynamic_shapes={"input_ids": shapes}, strict=False
        )
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # it names the source files of this machine
    # torch would write them as a pickle.
    program.example_inputs = None
    return program


def _save(program: Any, path: Path) -> None:
    whole = io.BytesIO()  # torch's own writer ends the process if the disk is full
    torch.export.save(program, whole)
    path.write_bytes(whole.getbuffer())


def open_torch_export(path: Path) -> OpenedForm:
    """Open a torch.export folder to score tokens with it.

    Raises:
        ArtifactError: The archive holds a pickle.
    """
    return open_graph(path, whole_scores(load_torch_export(path / PT2_FILE)))


def load_torch_export(path: Path) -> Any:
    """Return the graph as a function `input_ids` → logits, on the CPU; it needs only torch.

    Raises:
        ArtifactError: The archive holds a pickle.
    """
    refuse_pickles(path)
    graph = torch.export.load(path).module()
    return run_graph(graph)


def refuse_pickles(path: Path) -> None:
    """Check that a `.pt2` archive has only JSON and raw tensors.

    Raises:
        ArtifactError: The file is not a `.pt2` archive, or a member is a pickle.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            pickled = [name for name in archive.namelist() if _is_pickle(archive, name)]
    except (OSError, zipfile.BadZipFile, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{path}: not a torch.export archive: {error}") from None
    if pickled:
        raise ArtifactError(
            f"{path}: {pickled[0]} is a pickle, which can run code when it is read; expected only "
            "JSON and raw tensors",
            hint="Export it again: tuneline export form torch-export --model DIR --out DIR",
        )


def _is_pickle(archive: zipfile.ZipFile, name: str) -> bool:
    """Return whether torch may unpickle a member: any member except known JSON and raw tensors."""
    inside = name.partition("/")[2]
    if inside.endswith("_config.json"):
        entries = json.loads(archive.read(name))["config"].values()
        return any(
            entry["use_pickle"] or not RAW_TENSOR.fullmatch(entry["path_name"]) for entry in entries
        )
    if inside.startswith("data/sample_inputs/"):
        return archive.getinfo(name).file_size > 0
    return not PLAIN_MEMBER.fullmatch(inside)

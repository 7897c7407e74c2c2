"""TorchScript: a traced graph and its weights in one `model.pt`, read by libtorch without Python.

PyTorch deprecates TorchScript in favour of `torch.export`; some runtimes take only TorchScript. The
archive is a zip of TorchScript code and tensors. `torch.jit.load` reads it with its own reader,
which makes tensors and containers and calls no Python. The code in it is a program, so load an
archive only after `tuneline verify`.
"""

from __future__ import annotations

import io
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from export.config import GraphConfig
from export.graphs.logits_graph import EXAMPLE_SHAPE, write_graph
from export.runtimes.scores import OpenedForm, run_graph, whole_scores
from export.runtimes.transformers_folder import open_graph
from tuneline.core.artifact import Artifact
from tuneline.models.source import ModelSource

TORCHSCRIPT_FILE = "model.pt"
WHAT = "TorchScript"


def export_torchscript(_config: GraphConfig, model: ModelSource, out: Path) -> Artifact:
    """Trace a model folder's causal LM in float32.

    The manifest's `shape_contract` says which shapes the graph takes. At each of its
    `checked_shapes` the graph gave the logits of the model.

    Returns:
        An artifact of kind `torchscript`.

    Raises:
        ArtifactError: The model cannot be loaded, or its family cannot be traced so that every
            batch and length works.
    """
    return write_graph(
        "torchscript", TORCHSCRIPT_FILE, WHAT, model, out,
        trace=_trace, save=_save, load=load_torchscript,
    )  # fmt: skip


def _trace(logits: torch.nn.Module) -> Any:
    example = torch.zeros(EXAMPLE_SHAPE, dtype=torch.int64)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # about the deprecation, and about traced sizes
        return torch.jit.trace(logits, example, check_trace=False)


def _save(traced: Any, path: Path) -> None:
    """Write the archive without the example inputs and without its debugging records, which name
    the source files of this machine."""
    whole = io.BytesIO()  # torch's own writer ends the process if the disk is full
    torch.jit.save(traced, whole)
    with zipfile.ZipFile(whole) as archive, zipfile.ZipFile(path, "w") as kept:
        for entry in archive.infolist():
            record = entry.filename.partition("/")[2]
            if not record.endswith(".debug_pkl") and not record.startswith("traced_inputs"):
                kept.writestr(zipfile.ZipInfo(entry.filename), archive.read(entry))


def open_torchscript(path: Path) -> OpenedForm:
    """Open a TorchScript folder to score tokens with it."""
    return open_graph(path, whole_scores(load_torchscript(path / TORCHSCRIPT_FILE)))


def load_torchscript(path: Path) -> Any:
    """Return the graph as a function `input_ids` → logits, on the CPU; it needs only torch."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = torch.jit.load(str(path), map_location="cpu")
    return run_graph(graph)

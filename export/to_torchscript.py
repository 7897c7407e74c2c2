"""TorchScript: a traced graph and its weights in one `model.pt`, read by libtorch without Python.

PyTorch deprecates TorchScript in favour of `torch.export`; it is here for the runtimes that take
nothing else. The archive is a zip of TorchScript code and tensors. `torch.jit.load` reads it with a
reader of its own that makes tensors and containers and calls no Python; the code in it is a program
all the same, so load an archive only after `tuneline verify`.
"""

from __future__ import annotations

import io
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from export.logits_graph import EXAMPLE_SHAPE, check_shapes, copy_small_files, exportable
from tuneline.core.artifact import Artifact, new_artifact, open_artifact
from tuneline.core.model_source import ModelSource
from tuneline.core.progress import logger

TORCHSCRIPT_FILE = "model.pt"
WHAT = "TorchScript"


def export_torchscript(model: ModelSource, out: Path) -> Artifact:
    """Trace a model folder's causal LM in float32.

    The manifest's `shape_contract` says which shapes the graph takes; it was run at each of its
    `checked_shapes` and gave the logits of the model.

    Returns:
        An artifact of kind `torchscript`.

    Raises:
        ArtifactError: The model cannot be loaded, or its family cannot be traced so that every
            batch and length works.
    """
    with new_artifact(out, "torchscript", config={}, inputs=[model.as_input("model")]) as draft:
        with exportable(model, WHAT) as logits:
            example = torch.zeros(EXAMPLE_SHAPE, dtype=torch.int64)
            with warnings.catch_warnings(), torch.no_grad():
                warnings.simplefilter("ignore")  # of the deprecation, and of sizes being traced
                traced = torch.jit.trace(logits, example, check_trace=False)
            _save(traced, draft.dir / TORCHSCRIPT_FILE)
            run = load_torchscript(draft.dir / TORCHSCRIPT_FILE)
            contract = check_shapes(run, logits, model, WHAT)
        copy_small_files(model.path, draft.dir)
        draft.metrics["shape_contract"] = contract
        draft.metrics["size_bytes"] = (draft.dir / TORCHSCRIPT_FILE).stat().st_size
    logger.info("  %s: any batch, lengths up to %s", TORCHSCRIPT_FILE, contract["length"]["max"])
    return open_artifact(out, kind="torchscript")


def _save(traced: Any, path: Path) -> None:
    """The archive without its debugging records, which name the source files of this machine, and
    without the example inputs."""
    whole = io.BytesIO()
    torch.jit.save(traced, whole)
    writer = torch._C.PyTorchFileWriter(str(path))
    # Of the operators: a reader takes an older version for other signatures.
    with zipfile.ZipFile(whole) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("/version"))
        writer.set_min_version(int(archive.read(name)))
    whole.seek(0)
    reader = torch._C.PyTorchFileReader(whole)
    for name in reader.get_all_records():
        if not name.endswith(".debug_pkl") and not name.startswith(("traced_inputs", ".data/")):
            record = reader.get_record(name)
            if name not in ("version", "byteorder"):  # the writer adds these itself
                writer.write_record(name, record, len(record))
    writer.write_end_of_file()


def load_torchscript(path: Path) -> Any:
    """The graph as a function `input_ids` → logits, on the CPU; torch alone is needed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = torch.jit.load(str(path), map_location="cpu")

    def run(input_ids: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            found: torch.Tensor = graph(input_ids)
        return found.float()

    return run

"""Measure how much a server's vectors differ from those of the model that it serves.

Starts vLLM on the tiny base in each number format, asks for the vectors of texts, and compares them
with those of transformers in float32. The last row is a fault: weights of one layer that are 1 %
too large. Prints the table of docs/parity.md, then one JSON document on the last line.

    python -m benchmarks.served_vectors      # four minutes on two cores
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from serving import prove_vectors, running_server
from serving.config import ServedParityConfig, ServingConfig
from tuneline.core.environment import hardware_facts, library_versions
from tuneline.models.source import embedded_base, resolve_model

FORMS = {
    "float32": ("float32", 1.0),
    "float16": ("float16", 1.0),
    "bfloat16": ("bfloat16", 1.0),
    "float32, one layer 1 % too large": ("float32", 1.01),
}
"""For each form: the number format of the arithmetic, and the factor of one layer's weights."""
LAYER = "model.layers.1."


def main() -> None:
    rows = {}
    print("| arithmetic | smallest cosine | largest difference, share of the length | verdict |")
    print("| --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory(prefix="tuneline-vectors-") as scratch:
        for number, (name, (dtype, factor)) in enumerate(FORMS.items()):
            row = _proven(dtype, factor, Path(scratch) / str(number))
            rows[name] = row
            difference = f"{row['max_relative_difference']:.2g}"
            print(
                f"| {name} | {row['min_cosine']:.7f} | {difference} | {row['verdict']} |",
                flush=True,
            )
    print(json.dumps({"hardware": hardware_facts(), "versions": library_versions(), "rows": rows}))


def _proven(dtype: str, factor: float, folder: Path) -> dict[str, Any]:
    """Return the figures of one form behind vLLM."""
    base = resolve_model(str(embedded_base()))
    served = resolve_model(str(_scaled(base.path, factor, folder / "model")))
    config = ServingConfig.model_validate(
        {"dtype": dtype, "max_model_len": 512, "cpu_kvcache_space_gib": 1, "enforce_eager": True,
         "routes": ["embeddings"]}
    )  # fmt: skip
    log_path = folder / "vllm.log"
    with running_server(config, served, name="measured", log_path=log_path) as server:
        proof = prove_vectors(
            ServedParityConfig(), base, server.endpoint, folder / "proof", dtype=dtype
        )
    return dict(proof.manifest.metrics)


def _scaled(base: Path, factor: float, out: Path) -> Path:
    """Return a copy of a model with the weights of one layer multiplied by `factor`."""
    shutil.copytree(base, out)
    weights = out / "model.safetensors"
    tensors = {
        name: tensor * factor if name.startswith(LAYER) else tensor
        for name, tensor in load_file(weights).items()
    }
    save_file(tensors, weights, metadata={"format": "pt"})
    return out


if __name__ == "__main__":
    main()

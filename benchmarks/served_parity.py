"""Measure how much a server's arithmetic adds to a model's own rounding.

Trains the shipped example, merges it in float32 and in each quantized form, starts vLLM on each
form, and sends every prompt of the reference over the network. The table names a form whose kernel
the processor lacks (four bits without AVX-512).

Prints the table of docs/parity.md, then one JSON document on the last line.

    python -m benchmarks.served_parity                     # twenty minutes on two cores
    python -m benchmarks.served_parity --runs-dir DIR      # reuses the trained model
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.parity import FULL, QUANTIZED, merged, place, row, train
from export.parity import weight_tolerances
from serving.config import ServedParityConfig, ServingConfig
from serving.parity import prove_served
from serving.supervisor.process import running_server
from tuneline.core.environment import hardware_facts, library_versions
from tuneline.core.parity import PARITY_FILE, Parity
from tuneline.core.progress import set_up_logging

FORMS: dict[str, tuple[dict[str, Any], str]] = {
    "merged, float32": ({}, "float32"),
    "merged, float32, in float16": ({}, "float16"),
    "merged, float32, in bfloat16": ({}, "bfloat16"),
    **{f"{name}, in bfloat16": (values, "bfloat16") for name, values in QUANTIZED.items()},
}
"""Each form as the merge makes it, and the number format that the server computes in."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--runs-dir", type=Path, help="where the trained run is kept")
    options = parser.parse_args()
    set_up_logging(verbose=False)
    proofs: dict[str, Parity] = {}
    with tempfile.TemporaryDirectory(prefix="tuneline-served-") as folder:
        run = train(options.runs_dir or Path(folder) / "runs", FULL, Path(folder))
        for name, (values, dtype) in FORMS.items():
            model = merged(run, **values)
            config = ServingConfig.model_validate(
                {"dtype": dtype, "max_model_len": 512, "cpu_kvcache_space_gib": 1}
            )
            with running_server(
                config, model, name="measured", log_path=place(run).with_name("vllm.log")
            ) as server:
                proof = prove_served(
                    ServedParityConfig(), run.reference, server.endpoint, place(run),
                    dtype=dtype, weights=weight_tolerances(model, dtype),
                )  # fmt: skip
            proofs[name] = Parity.model_validate_json((proof.path / PARITY_FILE).read_bytes())
    print("| form | verdict | equal answers | maximum | mean | KL | accuracy |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name, parity in proofs.items():
        print(row(f"{name} | {parity.verdict}", [parity]))
    document = {
        "hardware": hardware_facts(),
        "libraries": library_versions(),
        "proofs": {name: parity.model_dump() for name, parity in proofs.items()},
    }
    print(json.dumps(document))


if __name__ == "__main__":
    main()

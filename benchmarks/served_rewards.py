"""Measure how much a server's scores differ from those of the trained reward model.

Trains a reward model on the shipped preferences, merges it in each number format, starts vLLM on
each form, and asks for the scores of all held-out answers. The last row is a fault: a merge with
deltas that are 10 % too small. Prints the table of docs/parity.md, then one JSON document on the
last line.

    python -m benchmarks.served_rewards [--runs-dir DIR]      # five minutes on two cores
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from export import merge_adapter
from export.config import MergeConfig
from serving import prove_rewards, running_server
from serving.config import ServedParityConfig, ServingConfig
from tuneline.core.environment import hardware_facts, library_versions
from tuneline.pipeline.plan import current
from tuneline.pipeline.run_config import load_run, resolve_base
from tuneline.pipeline.server import model_source
from tuneline.pipeline.stage import ADAPTER, PREFERENCES

ROOT = Path(__file__).resolve().parents[1]
RUN = ROOT / "examples" / "preferences" / "run.yaml"
SETS = ("training.method={type: reward}",)
FORMS = {
    "float32": ("float32", "float32", 1.0),
    "weights in float16": ("float16", "float32", 1.0),
    "weights in bfloat16": ("bfloat16", "float32", 1.0),
    "float16": ("float16", "float16", 1.0),
    "bfloat16": ("bfloat16", "bfloat16", 1.0),
    "float32, deltas 10 % too small": ("float32", "float32", 0.9),
}
"""For each form: the number formats of weights and arithmetic, and the share of the deltas."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--runs-dir", type=Path, help="where the trained run is kept")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tuneline-rewards-") as scratch:
        runs_dir = options.runs_dir or Path(scratch) / "runs"
        sets = [word for one in SETS for word in ("--set", one)]
        command = [sys.executable, "-m", "tuneline", "up", str(RUN), "--runs-dir", str(runs_dir)]
        subprocess.run([*command, *sets], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
        run = load_run(RUN, SETS, runs_dir)
        adapter, preferences = current(run, ADAPTER, PREFERENCES)
        base = resolve_base(run, download=False)
        rows = {}
        print("| form | pairs in one order | largest difference, standard deviations | verdict |")
        print("| --- | --- | --- | --- |")
        for number, (name, (weights, dtype, share)) in enumerate(FORMS.items()):
            folder = Path(scratch) / str(number)
            changed = adapter if share == 1.0 else _scaled(adapter.path, share, folder / "adapter")
            merge = MergeConfig.model_validate({"dtype": weights})
            model = merge_adapter(merge, base, changed, folder / "model")
            rows[name] = row = _proven(model_source(model), preferences, weights, dtype, folder)
            orders = f"{row['num_equal_orders']} of {row['num_pairs']}"
            difference = f"{row['max_relative_difference']:.2g}"
            print(f"| {name} | {orders} | {difference} | {row['verdict']} |", flush=True)
    print(json.dumps({"hardware": hardware_facts(), "versions": library_versions(), "rows": rows}))


def _scaled(adapter: Path, share: float, out: Path) -> Path:
    """Return a copy of an adapter whose low-rank deltas are multiplied by `share`."""
    out.mkdir(parents=True)
    for file in adapter.iterdir():
        if file.name != "manifest.json":
            shutil.copyfile(file, out / file.name)
    weights = out / "adapter_model.safetensors"
    tensors = {
        name: tensor * share if ".lora_B." in name else tensor
        for name, tensor in load_file(weights).items()
    }
    save_file(tensors, weights)
    return out


def _proven(model: Any, preferences: Any, weights: str, dtype: str, folder: Path) -> dict[str, Any]:
    """Return the figures of one form behind vLLM."""
    config = ServingConfig.model_validate(
        {"dtype": dtype, "max_model_len": 512, "cpu_kvcache_space_gib": 1, "enforce_eager": True,
         "routes": ["pooling"]}
    )  # fmt: skip
    with running_server(config, model, name="measured", log_path=folder / "vllm.log") as server:
        proof = prove_rewards(
            ServedParityConfig(), preferences, server.endpoint, folder / "proof", route="pooling",
            formats=(weights, dtype),
        )  # fmt: skip
    return dict(proof.manifest.metrics)


if __name__ == "__main__":
    main()

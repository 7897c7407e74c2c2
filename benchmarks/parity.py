"""Measure the effect of rounding and of the smallest faults on a trained model.

Trains the shipped example twice: for 0.3 epochs (an undecided model, with close calls in its
answers) and in full. Compares with each one's reference the merged model, its reduced forms, and
models with a fault: the delta of one module left out, all deltas too small or too large. The
default tolerances are between rounding and faults. Installs llm-compressor's own environment.

Prints the tables of docs/parity.md, then one JSON document on the last line.

    python benchmarks/parity.py                     # a quarter of an hour on two cores
    python benchmarks/parity.py --runs-dir DIR      # keeps the trained models and reuses them
"""

# ruff: noqa: E402 (imports follow the change of the path)

from __future__ import annotations

import argparse
import json
import math
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

# benchmarks/training.py would be imported in place of the package.
sys.path[:] = [path for path in sys.path if Path(path or ".").resolve() != Path(__file__).parent]

from export import (
    install_calibration,
    merge_adapter,
    prove_model,
    quantize_calibrated,
    resolve_form,
)
from export.config import CalibratedConfig, MergeConfig, OnnxConfig, ParityConfig, PruneConfig
from export.graphs.to_onnx import export_onnx
from export.prune import prune_model
from tuneline.core.artifact import Artifact, open_artifact
from tuneline.core.environment import hardware_facts, library_versions
from tuneline.core.files import MANIFEST
from tuneline.core.parity import PARITY_FILE, Parity
from tuneline.core.progress import set_up_logging
from tuneline.models.adapter_config import ADAPTER_WEIGHTS
from tuneline.models.source import ModelSource
from tuneline.pipeline.calibration import calibration_of

RUN = Path(__file__).parents[1] / "examples" / "support-tickets" / "run.yaml"
EARLY = ("name=parity-early", "training.num_train_epochs=0.3")
FULL = ("name=parity-full",)
NUM_SAMPLES = 128
SCALES = {
    "all deltas 10 % too small": 0.9,
    "all deltas 10 % too large": 1.1,
    "all deltas 1 % too small": 0.99,
    "all deltas 1 % too large": 1.01,
}
QUANTIZED: dict[str, dict[str, Any]] = {
    "int8": {"quantize": "int8"},
    "fp8": {"quantize": "fp8"},
    "w4a16, groups of 64": {"quantize": "w4a16", "group_size": 64},
    "w4a16, groups of 32": {"quantize": "w4a16", "group_size": 32},
}
PRUNED: dict[str, dict[str, Any]] = {
    "pruned, 30 %": {"sparsity": 0.3},
    "pruned, 50 %": {"sparsity": 0.5},
    "pruned, 2:4": {"pattern": "2:4"},
    "pruned, 70 %": {"sparsity": 0.7},
}

Table = dict[str, Parity]
"""By the name of what was proven."""


@dataclass(frozen=True)
class Trained:
    """A run that was trained: its adapter folder, and the reference of its answers."""

    base: ModelSource
    adapter: Path
    dataset: Artifact
    reference: Artifact
    work: Path

    @property
    def modules(self) -> list[str]:
        """The names of what each adapted module's delta is a multiple of."""
        tensors = load_file(self.adapter / ADAPTER_WEIGHTS)
        return sorted(name for name in tensors if name.endswith(".lora_B.weight"))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--runs-dir", type=Path, help="where the two trained runs are kept")
    options = parser.parse_args()
    set_up_logging(verbose=False)
    install_calibration()
    with tempfile.TemporaryDirectory(prefix="tuneline-parity-") as folder:
        runs_dir = options.runs_dir or Path(folder) / "runs"
        early = train(runs_dir, EARLY, Path(folder))
        full = train(runs_dir, FULL, Path(folder))
        full_left_out = left_out(full)
        tables = {
            "rounding, trained early": rounding(early),
            "one delta left out, trained early": left_out(early),
            "all deltas scaled, trained early": scaled(early),
            "reduced weights, trained in full": reduced(full),
            f"reduced weights, calibrated on {NUM_SAMPLES} rows, trained in full": calibrated(full),
            "one delta left out, trained in full": full_left_out,
            "faults, then rounded, trained in full": faults_then_rounded(full, full_left_out),
        }
        noise = early.reference.manifest.metrics["repeat_max_logprob_difference"]
    for title, table in tables.items():
        show(title, table)
    kept = {"first_divergences", "problems", "verdict"}
    document = {
        "hardware": hardware_facts(),
        "libraries": library_versions(),
        "reference_noise_nats": noise,
        "tables": {
            title: {name: parity.model_dump(exclude=kept) for name, parity in table.items()}
            for title, table in tables.items()
        },
    }
    print(f"\nnoise of the early reference: {noise:.1e} nats")
    print(json.dumps(document))


def train(runs_dir: Path, overrides: Sequence[str], work: Path) -> Trained:
    options = [word for override in overrides for word in ("--set", override)]
    given = [sys.executable, "-m", "tuneline", "train", str(RUN), "--runs-dir", str(runs_dir)]
    done = subprocess.run([*given, *options, "--json"], stdout=subprocess.PIPE, check=True)
    made = {stage["stage"]: Path(stage["path"]) for stage in json.loads(done.stdout)["stages"]}
    base = resolve_form(str(RUN.parents[1] / "tiny-base"))
    dataset, reference = open_artifact(made["dataset"]), open_artifact(made["reference"])
    return Trained(base, made["adapter"], dataset, reference, work)


def rounding(run: Trained) -> Table:
    """Nothing but another number format of the merged weights."""
    return {
        f"merged, {dtype}": prove(run, merged(run, dtype=dtype))
        for dtype in ("float32", "float16", "bfloat16")
    }


def left_out(run: Trained) -> Table:
    """Prove the model with the delta of one module left out, each in turn; in float32."""
    return {module_name(module): prove(run, merged(run, {module: 0.0})) for module in run.modules}


def scaled(run: Trained) -> Table:
    """All deltas multiplied by a factor; in float32."""
    return {
        name: prove(run, merged(run, dict.fromkeys(run.modules, factor)))
        for name, factor in SCALES.items()
    }


def reduced(run: Trained) -> Table:
    """Weights in fewer bits, or fewer of them."""
    model = merged(run)
    table = {name: prove(run, merged(run, **config)) for name, config in QUANTIZED.items()}
    for weights in ("int8", "int4"):
        config = OnnxConfig.model_validate({"weights": weights})
        graph = export_onnx(config, model, place(run))
        table[f"{weights}, ONNX"] = prove(run, resolve_form(str(graph.path)))
    for name, values in PRUNED.items():
        pruned = prune_model(PruneConfig.model_validate(values), model, place(run))
        table[name] = prove(run, resolve_form(str(pruned.path)))
    return table


def faults_then_rounded(run: Trained, whole: Table) -> Table:
    """Prove the mild faults in the forms that round the most: of the deltas left out, the one that
    in float32 (`whole`) changes least."""
    mildest = min(whole, key=lambda name: whole[name].mean_kl or 0.0)
    (module,) = (module for module in run.modules if module_name(module) == mildest)
    given = {
        f"{mildest} left out": {module: 0.0},
        **{name: dict.fromkeys(run.modules, SCALES[name]) for name in list(SCALES)[:2]},
    }
    return {
        f"{fault}; {form}": prove(run, merged(run, factors, **config))
        for fault, factors in given.items()
        for form, config in QUANTIZED.items()
        if form != "w4a16, groups of 32"
    }


def calibrated(run: Trained) -> Table:
    """Prove the same number formats, calibrated by llm-compressor on the training rows."""
    model = merged(run)
    data = calibration_of(run.dataset)
    table = {}
    for method, scheme in (("gptq", "int8"), ("gptq", "w4a16"), ("awq", "w4a16")):
        values = {"method": method, "scheme": scheme, "group_size": 64}
        values["num_calibration_samples"] = NUM_SAMPLES
        config = CalibratedConfig.model_validate(values)
        quantized = quantize_calibrated(config, model, place(run), data)
        table[f"{scheme}, {method}"] = prove(run, resolve_form(str(quantized.path)))
    return table


def merged(run: Trained, factors: Mapping[str, float] | None = None, **config: Any) -> ModelSource:
    """Return the merged model, with the deltas of some modules multiplied by a factor."""
    adapter = Path(shutil.copytree(run.adapter, place(run), ignore=lambda *_: {MANIFEST}))
    tensors = load_file(adapter / ADAPTER_WEIGHTS)
    for name, factor in (factors or {}).items():
        tensors[name] = tensors[name] * factor
    save_file(tensors, adapter / ADAPTER_WEIGHTS)
    values = {"dtype": "float32", **config}
    model = merge_adapter(MergeConfig.model_validate(values), run.base, adapter, place(run))
    return resolve_form(str(model.path))


def prove(run: Trained, model: ModelSource) -> Parity:
    proof = prove_model(ParityConfig(), run.reference, model, place(run))
    return Parity.model_validate_json((proof.path / PARITY_FILE).read_bytes())


def place(run: Trained) -> Path:
    return Path(tempfile.mkdtemp(dir=run.work)) / "out"


def module_name(tensor: str) -> str:
    """`base_model.model.model.layers.0.mlp.up_proj.lora_B.weight` → `0.mlp.up_proj`."""
    return tensor.partition(".layers.")[2].removesuffix(".lora_B.weight")


def show(title: str, table: Table) -> None:
    print(f"\n{title}\n")
    print("| form | equal answers | maximum | mean | KL | accuracy |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, parity in table.items():
        print(row(name, [parity]))
    if title.startswith("one delta left out"):
        print(row("median", list(table.values())))


def row(name: str, found: Sequence[Parity]) -> str:
    """One line of a table: the medians of several proofs, or one's own figures."""

    def median(figures: Sequence[float | None]) -> float:
        return statistics.median(math.nan if figure is None else figure for figure in figures)

    equal = median([parity.num_equal_answers for parity in found])
    cells = [
        name,
        f"{equal:.0f} of {found[0].num_prompts}",
        f"{median([parity.max_logprob_difference for parity in found]):.2g}",
        f"{median([parity.mean_logprob_difference for parity in found]):.2g}",
        f"{median([parity.mean_kl for parity in found]):.2g}",
        f"{median([parity.accuracy for parity in found]):.1%}",
    ]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()

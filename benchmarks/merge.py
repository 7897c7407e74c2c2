"""Measure the merge of a LoRA adapter: Tuneline's, PEFT's, and a plain copy as the lower bound.

`import` starts Python and imports torch, which every merge does too; `tuneline` is the command
`tuneline export merge` on a base that it has not hashed before; `int8` quantizes in the same pass.

Builds a random-weight bfloat16 Llama with a real model's shape and a rank-16 adapter on all its
linear layers. Then runs each merge in turn, in its own process. Every written file is synced to
disk, and the base's pages are evicted before each run. Prints a table, then one JSON document on
the last line.

    python benchmarks/merge.py               # Llama 3.2 1B: 1.24 B parameters, 2.5 GB
    python benchmarks/merge.py --shape 7b    # Llama 2 7B: 6.7 B parameters, 13.5 GB, 3 shards
    python benchmarks/merge.py --skip peft   # if the model does not fit in memory
    python benchmarks/merge.py --disk-mb-s 200   # on a slower disk; needs root and cgroup v1

Needs three times the model's size on the disk of --dir, and frees it at the end.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from export.weights.tensor_file import TensorEntry, make_header
from tuneline.core.environment import hardware_facts, library_versions

ROOT = Path(__file__).parents[1]
SAMPLE_INTERVAL_S = 0.02
RANK = 16
BLOCK_GROUPS = Path("/sys/fs/cgroup/blkio")


@dataclass(frozen=True)
class Shape:
    """The sizes of a Llama."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    tie_word_embeddings: bool


SHAPES = {
    "tiny": Shape(4096, 256, 512, 4, 4, 2, True),
    "160m": Shape(32000, 768, 3072, 12, 12, 12, False),
    "1b": Shape(128256, 2048, 8192, 16, 32, 8, True),
    "7b": Shape(32000, 4096, 11008, 32, 32, 32, False),
}

RUNS = {
    "import": """
import torch
out.mkdir()
""",
    "copy": """
import os, shutil
out.mkdir()
for file in sorted(base.iterdir()):
    shutil.copyfile(file, out / file.name)
""",
    "tuneline": """
from tuneline.cli import app
app(["export", "merge", "--base", str(base), "--adapter", str(adapter), "--out", str(out)],
    standalone_mode=False)
""",
    "int8": """
from tuneline.cli import app
app(["export", "merge", "--base", str(base), "--adapter", str(adapter), "--out", str(out),
     "--quantize", "int8"], standalone_mode=False)
""",
    "peft": """
import peft, torch, transformers
model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
peft.PeftModel.from_pretrained(model, adapter).merge_and_unload().save_pretrained(out)
""",
}

PRELUDE = """
import os, sys
from pathlib import Path
base, adapter, out = map(Path, sys.argv[1:])
"""

SYNC = """
for file in out.iterdir():
    descriptor = os.open(file, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shape", choices=SHAPES, default="1b")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dir", type=Path, help="where to work; a temporary directory by default")
    parser.add_argument("--disk-mb-s", type=float, help="let no run read or write faster")
    parser.add_argument("--skip", choices=RUNS, action="append", default=[])
    options = parser.parse_args()

    names = [name for name in RUNS if name not in options.skip]
    measured: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    with (
        tempfile.TemporaryDirectory(dir=options.dir, prefix="tuneline-merge-") as folder,
        slow_disk(Path(folder), options.disk_mb_s) as group,
    ):
        work = Path(folder)
        base = write_model(work / "base", SHAPES[options.shape])
        adapter = write_adapter(work / "adapter", SHAPES[options.shape])
        size_bytes = sum(file.stat().st_size for file in base.glob("*.safetensors"))
        print(f"{options.shape}: {size_bytes / 1e9:.2f} GB, {options.rounds} rounds", flush=True)
        different = None
        for _ in range(options.rounds):
            for name in names:
                measured[name].append(run(name, base, adapter, work / name, group))
                print(f"  {name}: {measured[name][-1]}", flush=True)
            if {"tuneline", "peft"} <= set(names):
                different = count_different(work / "tuneline", work / "peft")
            for name in names:
                shutil.rmtree(work / name)
    report = {
        "shape": options.shape, "size_bytes": size_bytes, "rounds": options.rounds,
        "rank": RANK, "disk_mb_s": options.disk_mb_s, "num_tensors_different_from_peft": different,
        "runs": {name: summary(runs) for name, runs in measured.items()},
        "hardware": hardware_facts(), "libraries": library_versions(),
    }  # fmt: skip
    print_table(report)
    print(json.dumps(report))


@contextlib.contextmanager
def slow_disk(folder: Path, mb_s: float | None) -> Iterator[Path | None]:
    """Yield a control group whose processes read and write the disk of `folder` no faster than
    that. The kernel counts what a process reads, and what it writes through by fsync."""
    if mb_s is None:
        yield None
        return
    group = BLOCK_GROUPS / "tuneline-merge"
    group.mkdir(exist_ok=True)
    try:
        device = folder.stat().st_dev
        limit = f"{os.major(device)}:{os.minor(device)} {round(mb_s * 1e6)}"
        for name in ("read", "write"):
            (group / f"blkio.throttle.{name}_bps_device").write_text(limit)
        yield group
    finally:
        group.rmdir()


def run(name: str, base: Path, adapter: Path, out: Path, group: Path | None) -> dict[str, float]:
    """One run in its own process: seconds from start to end, and its memory's peaks."""
    for file in base.iterdir():
        with file.open("rb") as opened:
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    code = PRELUDE + RUNS[name] + SYNC
    # In a new home no digest of an earlier run is remembered.
    home = tempfile.mkdtemp(dir=base.parent, prefix="home-")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "HOME": home}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started_s = time.monotonic()
    if group is not None:
        code = f"open({str(group / 'cgroup.procs')!r}, 'w').write('0')\n" + code
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(base), str(adapter), str(out)],
        env=environment, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    peak_anon_kib = peak_rss_kib = 0
    while process.poll() is None:
        status = memory_kib(process.pid)
        peak_anon_kib = max(peak_anon_kib, status.get("RssAnon", 0))
        peak_rss_kib = max(peak_rss_kib, status.get("VmHWM", 0))
        time.sleep(SAMPLE_INTERVAL_S)
    wall_s = time.monotonic() - started_s
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    if process.returncode:
        assert process.stderr is not None
        raise SystemExit(f"{name} failed with {process.returncode}:\n{process.stderr.read()}")
    return {
        "wall_s": round(wall_s, 2),
        "cpu_s": round(cpu_s, 2),
        "peak_anonymous_gib": round(peak_anon_kib / 2**20, 3),
        "peak_rss_gib": round(peak_rss_kib / 2**20, 3),
    }


def memory_kib(pid: int) -> dict[str, int]:
    """RssAnon (what the process holds) and VmHWM (the peak with mapped files), in KiB."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return {}
    fields = dict(line.split(":", 1) for line in lines)
    return {name: int(fields[name].split()[0]) for name in ("RssAnon", "VmHWM") if name in fields}


def count_different(merged: Path, other: Path) -> int:
    """How many tensors differ between two folders; both are memory-mapped."""
    from safetensors import safe_open

    opened: dict[Path, dict[str, Any]] = {}
    for folder in (merged, other):
        files: list[Any] = [safe_open(path, "pt") for path in sorted(folder.glob("*.safetensors"))]
        opened[folder] = {name: file for file in files for name in file.keys()}  # noqa: SIM118
    assert opened[merged].keys() == opened[other].keys()
    return sum(
        not torch.equal(file.get_tensor(name), opened[other][name].get_tensor(name))
        for name, file in opened[merged].items()
    )


def summary(runs: list[dict[str, float]]) -> dict[str, Any]:
    return {key: statistics.median(values[key] for values in runs) for key in runs[0]}


def print_table(report: dict[str, Any]) -> None:
    runs = report["runs"]
    print(
        f"\n{'':10} {'wall s':>8} {'x copy':>7} {'CPU s':>7} {'anonymous GiB':>14} {'RSS GiB':>8}"
    )
    for name, figures in runs.items():
        ratio = figures["wall_s"] / runs["copy"]["wall_s"] if "copy" in runs else float("nan")
        print(
            f"{name:10} {figures['wall_s']:8.2f} {ratio:7.2f} "
            f"{figures['cpu_s']:7.2f} {figures['peak_anonymous_gib']:14.3f} "
            f"{figures['peak_rss_gib']:8.3f}"
        )
    if report["num_tensors_different_from_peft"] is not None:
        print(f"tensors that differ from PEFT's: {report['num_tensors_different_from_peft']}")


def write_model(folder: Path, shape: Shape, max_shard_bytes: int = 5 * 10**9) -> Path:
    """Write a random bfloat16 Llama, tensor by tensor so that it is never held in memory."""
    folder.mkdir(parents=True)
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "bfloat16",
        "hidden_act": "silu", "rms_norm_eps": 1e-5, "max_position_embeddings": 2048,
        "bos_token_id": 1, "eos_token_id": 2, **shape.__dict__,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    shards: list[list[tuple[str, tuple[int, ...]]]] = [[]]
    filled = 0
    for name, dimensions in tensor_shapes(shape):
        num_bytes = 2 * torch.Size(dimensions).numel()
        if filled and filled + num_bytes > max_shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append((name, dimensions))
        filled += num_bytes
    generator = torch.Generator().manual_seed(0)
    weight_map = {}
    for index, tensors in enumerate(shards):
        file = f"model-{index + 1:05}-of-{len(shards):05}.safetensors"
        path = folder / (file if len(shards) > 1 else "model.safetensors")
        write_random(path, tensors, "BF16", generator)
        weight_map.update({name: file for name, _ in tensors})
    if len(shards) > 1:
        total_size = sum(2 * torch.Size(d).numel() for _, d in tensor_shapes(shape))
        index_json = {"metadata": {"total_size": total_size}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index_json))
    return folder


def write_adapter(folder: Path, shape: Shape) -> Path:
    """Write a random float32 LoRA adapter on every linear layer."""
    folder.mkdir(parents=True)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    config = {
        "peft_type": "LORA", "r": RANK, "lora_alpha": 32, "target_modules": targets,
        "task_type": "CAUSAL_LM", "base_model_name_or_path": "base",
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config))
    tensors: list[tuple[str, tuple[int, ...]]] = []
    for name, dimensions in tensor_shapes(shape):
        module = name.removesuffix(".weight")
        if module.rpartition(".")[2] in targets:
            num_out, num_in = dimensions
            tensors.append((f"base_model.model.{module}.lora_A.weight", (RANK, num_in)))
            tensors.append((f"base_model.model.{module}.lora_B.weight", (num_out, RANK)))
    generator = torch.Generator().manual_seed(1)
    write_random(folder / "adapter_model.safetensors", tensors, "F32", generator)
    return folder


def tensor_shapes(shape: Shape) -> list[tuple[str, tuple[int, ...]]]:
    hidden, middle = shape.hidden_size, shape.intermediate_size
    key_value = hidden // shape.num_attention_heads * shape.num_key_value_heads
    found: list[tuple[str, tuple[int, ...]]] = [
        ("model.embed_tokens.weight", (shape.vocab_size, hidden))
    ]
    for layer in range(shape.num_hidden_layers):
        prefix = f"model.layers.{layer}"
        found += [
            (f"{prefix}.self_attn.q_proj.weight", (hidden, hidden)),
            (f"{prefix}.self_attn.k_proj.weight", (key_value, hidden)),
            (f"{prefix}.self_attn.v_proj.weight", (key_value, hidden)),
            (f"{prefix}.self_attn.o_proj.weight", (hidden, hidden)),
            (f"{prefix}.mlp.gate_proj.weight", (middle, hidden)),
            (f"{prefix}.mlp.up_proj.weight", (middle, hidden)),
            (f"{prefix}.mlp.down_proj.weight", (hidden, middle)),
            (f"{prefix}.input_layernorm.weight", (hidden,)),
            (f"{prefix}.post_attention_layernorm.weight", (hidden,)),
        ]
    found.append(("model.norm.weight", (hidden,)))
    return (
        found
        if shape.tie_word_embeddings
        else [*found, ("lm_head.weight", (shape.vocab_size, hidden))]
    )


def write_random(
    path: Path,
    tensors: list[tuple[str, tuple[int, ...]]],
    dtype: str,
    generator: torch.Generator,
) -> None:
    """Tensors of normal values of deviation 0.02, cut from one block at random places."""
    block = torch.randn(2**22, generator=generator) * 0.02
    raw = (block.bfloat16() if dtype == "BF16" else block).view(torch.uint8).numpy()
    width = 2 if dtype == "BF16" else 4
    entries = []
    position = 0
    for name, dimensions in tensors:
        num_bytes = width * torch.Size(dimensions).numel()
        entries.append(TensorEntry(name, dtype, dimensions, position, position + num_bytes))
        position += num_bytes
    with path.open("wb") as file:
        file.write(make_header(entries, {"format": "pt"}))
        for entry in entries:
            left = entry.num_bytes
            while left:
                start = width * int(torch.randint(2**21, (1,), generator=generator))
                piece = raw[start : start + min(left, len(raw) - start)]
                file.write(piece)
                left -= len(piece)


if __name__ == "__main__":
    main()

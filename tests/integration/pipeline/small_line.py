"""The shipped model and a part of its data, for the tests in this folder."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.commands import tuneline_here

EXAMPLES = Path(__file__).parents[3] / "examples"
NUM_ROWS = 160

CONFIG = """
name: small
base_model: tiny-base
data: {path: train.jsonl, heldout_path: heldout.jsonl}
training:
  learning_rate: 2.0e-3
  num_train_epochs: 1
  per_device_train_batch_size: 16
  gradient_accumulation_steps: 1
  max_length: 256
  gradient_checkpointing: false
  save_steps: 2
evaluation: {max_new_tokens: 48, num_rows: 8, fields: lines}
reference: {num_prompts: 4, max_new_tokens: 48}
export: {merge: {dtype: float32}}
"""


def write_run(folder: Path) -> Path:
    for name, count in (("train.jsonl", NUM_ROWS), ("heldout.jsonl", 12)):
        lines = (EXAMPLES / "support-tickets" / name).read_text().splitlines()
        (folder / name).write_text("\n".join(lines[:count]) + "\n")
    (folder / "run.yaml").write_text(CONFIG)
    return folder / "run.yaml"


def words(run: Path, *args: str) -> list[str]:
    verb, *options = args
    return [verb, str(run), *options, "--json", "--runs-dir", str(run.parent / "runs")]


def command(run: Path, *args: str) -> list[str]:
    return [sys.executable, "-m", "tuneline", *words(run, *args)]


def tuneline(run: Path, *args: str) -> subprocess.CompletedProcess[str]:
    return tuneline_here(*words(run, *args))


def stages(done: subprocess.CompletedProcess[str]) -> dict[str, dict[str, Any]]:
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)["stages"]
    return {entry["stage"]: entry for entry in found}


def ran(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [name for name, entry in stages(done).items() if entry["ran"]]

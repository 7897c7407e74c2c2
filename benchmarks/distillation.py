"""Teach a model that saw few labelled rows by a teacher, on prompts without an answer.

    .venv/bin/python benchmarks/distillation.py --out /tmp/distillation

The teacher learns from all rows of the shipped tickets, as the example does. The first student
learns from the first `--labelled` rows only. The second one goes on from there by
`training.method: {type: distillation}`: it answers the prompts of all rows, and reads none of their
answers. The result is a JSON document on stdout: exact match of the three on the held-out rows, and
the paired difference of the two students.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from tuneline.core.environment import hardware_facts
from tuneline.core.statistics import count_pairs, mcnemar_p, paired_share_interval, wilson_interval

EXAMPLE = Path(__file__).parents[1] / "examples" / "support-tickets"
TEACHER, FEW, TAUGHT = "teacher", "few", "taught"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--labelled", type=int, default=200)
    parser.add_argument("--epochs", type=float, default=1)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    asked = parser.parse_args()
    out = asked.out.absolute()
    out.mkdir(parents=True)
    lines = (EXAMPLE / "train.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (out / "few.jsonl").write_text("".join(lines[: asked.labelled]), encoding="utf-8")
    (out / "prompts.jsonl").write_text("".join(map(without_answer, lines)), encoding="utf-8")
    example = yaml.safe_load((EXAMPLE / "run.yaml").read_text(encoding="utf-8"))
    training = example["training"]
    walls = {
        TEACHER: trained(out, TEACHER, "tiny-base", EXAMPLE / "train.jsonl", training),
        FEW: trained(
            out, FEW, "tiny-base", out / "few.jsonl", {**training, "num_train_epochs": 10}
        ),
    }
    taught = {
        **training,
        "num_train_epochs": asked.epochs,
        "learning_rate": asked.learning_rate,
        "method": {
            "type": "distillation", "teacher_model_name_or_path": str(out / TEACHER),
            "max_completion_length": 64,
        },
    }  # fmt: skip
    walls[TAUGHT] = trained(out, TAUGHT, str(out / FEW), out / "prompts.jsonl", taught)
    right = {name: judged(out, name) for name in (TEACHER, FEW, TAUGHT)}
    print(json.dumps({**compared(right), "train_s": walls, "hardware": hardware_facts()}, indent=2))


def without_answer(line: str) -> str:
    row = json.loads(line)
    return json.dumps({"prompt": f"{row['instruction']}\n\n{row['input']}"}) + "\n"


def trained(out: Path, name: str, base: str, rows: Path, training: dict[str, Any]) -> float:
    """Train a model and write it merged as OUT/NAME; return the seconds of the training."""
    run = {
        "name": name, "base_model": base, "training": training,
        "data": {"path": str(rows), "heldout_path": str(EXAMPLE / "heldout.jsonl")},
        "reference": {"num_prompts": 1, "max_new_tokens": 64},
    }  # fmt: skip
    (out / f"{name}.yaml").write_text(yaml.safe_dump(run), encoding="utf-8")
    tuneline("train", out / f"{name}.yaml", "--runs-dir", out / "runs")
    (adapter,) = (out / "runs" / name).glob("adapter-*")
    tuneline(
        "export", "merge", "--base", base, "--adapter", adapter, "--dtype", "float32",
        "--out", out / name,
    )  # fmt: skip
    manifest = json.loads((adapter / "manifest.json").read_text(encoding="utf-8"))
    return float(manifest["metrics"]["wall_s"])


def judged(out: Path, name: str) -> list[bool]:
    """Return which held-out rows a model answers exactly."""
    tuneline(
        "evaluate", "--model", out / name, "--data", EXAMPLE / "heldout.jsonl",
        "--set", "evaluation.max_new_tokens=64", "--out", out / f"scores-{name}",
    )  # fmt: skip
    text = (out / f"scores-{name}" / "predictions.jsonl").read_text(encoding="utf-8")
    return [json.loads(line)["correct"] for line in text.splitlines()]


def compared(right: dict[str, list[bool]]) -> dict[str, Any]:
    counts = count_pairs(right[FEW], right[TAUGHT])
    return {
        "num_heldout": counts.num_rows,
        "exact_match": {
            name: {
                "share": sum(flags) / len(flags),
                "interval": wilson_interval(sum(flags) / len(flags), len(flags)),
            }
            for name, flags in right.items()
        },
        "taught_minus_few": {
            "difference": (counts.second_only - counts.first_only) / counts.num_rows,
            "interval": paired_share_interval(counts),
            "mcnemar_p": mcnemar_p(counts.first_only, counts.second_only),
        },
    }


def tuneline(*words: str | Path) -> None:
    command = [sys.executable, "-m", "tuneline", *map(str, words)]
    started_s = time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    print(f"{words[0]}: {time.monotonic() - started_s:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()

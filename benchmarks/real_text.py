"""Train the tiny base on text that nobody here wrote, and compare it with the base and a guess.

    .venv/bin/python benchmarks/real_text.py --out /tmp/real-text

The rows are package descriptions of Debian (`apt-cache dumpavail`); the answer is the package's
section. All packages of one source package are on the same side of the split. The line trains the
embedded base model with its defaults, except for the options in `RUN`. The result is a JSON
document on stdout: exact match of base, tuned model and majority guess, paired intervals and exact
McNemar tests.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tuneline.core.environment import hardware_facts
from tuneline.core.statistics import (
    count_pairs,
    mcnemar_p,
    paired_share_interval,
    wilson_interval,
)

SECTIONS = ("fonts", "games", "mail", "math", "science", "sound")
MAX_CHARACTERS = 320
NUM_HELDOUT = 300
NUM_TRAIN_PER_SECTION = 400
PROMPT = "Name the section of the package archive for this description."

RUN = """
name: real-text
base_model: tiny-base
data: {path: train.jsonl, heldout_path: heldout.jsonl}
training:
  r: 16
  lora_alpha: 32
  learning_rate: 3.0e-3
  num_train_epochs: 3
  per_device_train_batch_size: 16
  gradient_accumulation_steps: 1
  max_length: 512
  gradient_checkpointing: false
  seed: 0
reference: {num_prompts: 1, max_new_tokens: 12}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    out.mkdir(parents=True)
    train, heldout = split(packages())
    write(out / "train.jsonl", train)
    write(out / "heldout.jsonl", heldout)
    (out / "run.yaml").write_text(RUN, encoding="utf-8")
    started_s = time.monotonic()
    tuneline("train", out / "run.yaml", "--runs-dir", out / "runs")
    (adapter,) = (out / "runs" / "real-text").glob("adapter-*")
    (dataset,) = (out / "runs" / "real-text").glob("dataset-*")
    tuneline(
        "evaluate", "--model", "tiny-base", "--adapter", adapter, "--against", "tiny-base",
        "--data", dataset / "heldout.jsonl", "--set", "evaluation.max_new_tokens=12",
        "--out", out / "scores",
    )  # fmt: skip
    wall_s = time.monotonic() - started_s
    print(json.dumps({**compare(out, train), "wall_s": round(wall_s, 1)}, indent=2))


def tuneline(*words: str | Path) -> None:
    command = [sys.executable, "-m", "tuneline", *map(str, words)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def packages() -> Iterator[tuple[str, str, str]]:
    """Return source package, section and description of every package of the chosen sections."""
    done = subprocess.run(["apt-cache", "dumpavail"], capture_output=True, text=True, check=True)
    for stanza in done.stdout.split("\n\n"):
        fields: dict[str, str] = {}
        name = ""
        for line in stanza.split("\n"):
            if line[:1] in (" ", "\t"):
                fields[name] += "\n" + line.strip()
            elif ":" in line:
                name, _, value = line.partition(":")
                fields[name] = value.strip()
        text = fields.get("Description", fields.get("Description-en", ""))
        if fields.get("Section") in SECTIONS and text:
            source = fields.get("Source", fields["Package"]).split(" ")[0]
            yield source, fields["Section"], " ".join(text.split())[:MAX_CHARACTERS]


def split(found: Iterator[tuple[str, str, str]]) -> tuple[list[Any], list[Any]]:
    """Return training and held-out rows; the order and the side of a source come from its hash."""
    by_source: dict[str, dict[str, str]] = defaultdict(dict)
    for source, section, text in found:
        by_source[source].setdefault(text, section)
    train: list[dict[str, str]] = []
    heldout: list[dict[str, str]] = []
    counts: Counter[str] = Counter()
    for source in sorted(by_source, key=lambda name: hashlib.sha256(name.encode()).digest()):
        for text, section in by_source[source].items():
            row = {"instruction": PROMPT, "input": text, "output": section}
            if len(heldout) < NUM_HELDOUT:
                heldout.append(row)
            elif counts[section] < NUM_TRAIN_PER_SECTION:
                counts[section] += 1
                train.append(row)
    return train, heldout


def compare(out: Path, train: list[Any]) -> dict[str, Any]:
    def predictions(who: str) -> list[dict[str, Any]]:
        path = out / "scores" / who / "predictions.jsonl"
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]

    base, tuned = predictions("base"), predictions("tuned")
    expected = [entry["expected"] for entry in tuned]
    # The best constant guess on the held-out rows themselves: no guess can do better.
    majority = Counter(expected).most_common(1)[0][0]
    right = {
        "base": [entry["correct"] for entry in base],
        "majority": [label == majority for label in expected],
        "tuned": [entry["correct"] for entry in tuned],
    }
    shares = {name: sum(flags) / len(flags) for name, flags in right.items()}
    return {
        "num_train": len(train),
        "num_heldout": len(expected),
        "classes": dict(Counter(expected)),
        "exact_match": {
            name: {"share": share, "interval": wilson_interval(share, len(expected))}
            for name, share in shares.items()
        },
        "tuned_minus": {name: versus(right[name], right["tuned"]) for name in ("base", "majority")},
        "hardware": hardware_facts(),
    }


def versus(first: list[bool], second: list[bool]) -> dict[str, Any]:
    counts = count_pairs(first, second)
    return {
        "difference": (counts.second_only - counts.first_only) / counts.num_rows,
        "interval": paired_share_interval(counts),
        "mcnemar_p": mcnemar_p(counts.first_only, counts.second_only),
    }


def write(path: Path, rows: list[Any]) -> None:
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()

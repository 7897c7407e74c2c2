"""Train an embedding model, and the same by sentence-transformers, in turns on one machine.

    .venv/bin/pip install --no-deps --target PEER sentence-transformers==6.2.0
    .venv/bin/python -m benchmarks.embedding --peer PEER --out /tmp/embedding

A row is real text that nobody wrote for a benchmark: the first paragraph of a docstring of the
installed scientific packages is the query, the second paragraph the passage. Both sides start from
the tiny base, with the same rows, LoRA on all linear layers, optimizer steps, rate and seed; the
peer is its own trainer with CachedMultipleNegativesRankingLoss and a mini batch of our batch. Both
adapters then rank the same passages through Tuneline's evaluation. The result is a JSON document:
nDCG@10 of base, ours and the peer's with paired intervals, and the medians of the training times,
the measurements of held-out rows at the start and after each epoch included.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from tuneline.core.environment import hardware_facts
from tuneline.core.ranking import compare_ranks
from tuneline.models.source import embedded_base

HERE = Path(__file__).resolve().parent
PACKAGES = ("numpy", "scipy", "sklearn", "networkx", "matplotlib", "torch", "transformers")
HEADINGS = ("Parameters", "Args", "Examples", "Returns", "Notes", "See Also", ".. ", ">>>")
NUM_HELDOUT = 300
BATCH, ACCUMULATION, RANK, MAX_LENGTH = 16, 4, 16, 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--peer", type=Path, help="Folder with sentence-transformers.")
    parser.add_argument("--rows", type=int, default=1500)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--as-peer", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.as_peer is not None:
        train_peer(asked.as_peer, asked.peer, asked.epochs, asked.rate)
        return
    out = asked.out.absolute()
    out.mkdir(parents=True)
    rows = docstrings()
    write_rows(out / "heldout.jsonl", rows[:NUM_HELDOUT])
    write_rows(out / "train.jsonl", rows[NUM_HELDOUT : NUM_HELDOUT + asked.rows])
    write_run(out, asked)
    seconds: dict[str, list[float]] = {"tuneline": [], "sentence-transformers": []}
    for number in range(asked.rounds):
        ours = out / f"runs-{number}"
        tuneline("up", out / "run.yaml", "--runs-dir", ours)
        seconds["tuneline"].append(wall_s(ours))
        if asked.peer is not None:
            seconds["sentence-transformers"].append(run_peer(out, asked))
    ranks = {"tuneline": read_ranks(out / "runs-0")}
    if asked.peer is not None:
        ranks["sentence-transformers"] = rank_peer(out)
    base = [row["base_ranks"] for row in ranks["tuneline"]]
    tuned = {name: [row["ranks"] for row in found] for name, found in ranks.items()}
    result: dict[str, Any] = {
        "num_rows": asked.rows,
        "train_s": {name: statistics.median(one) for name, one in seconds.items() if one},
        "all_train_s": seconds,
        "against_the_base": {name: compare_ranks(one, base) for name, one in tuned.items()},
        "hardware": hardware_facts(),
    }
    if asked.peer is not None:
        result["tuneline_against_the_peer"] = compare_ranks(*tuned.values())
    print(json.dumps(result, indent=2))


def docstrings() -> list[dict[str, str]]:
    """Return a row for each docstring with two paragraphs of prose, in seeded order."""
    found: dict[str, str] = {}
    passages: set[str] = set()
    for package in PACKAGES:
        (folder,) = (Path(p) / package for p in sys.path if (Path(p) / package).is_dir())
        for path in sorted(folder.rglob("*.py")):
            if "test" in str(path.relative_to(folder)):
                continue
            for node in ast.walk(ast.parse(path.read_bytes())):
                if not isinstance(node, ast.FunctionDef | ast.ClassDef):
                    continue
                text = ast.get_docstring(node) or ""
                parts = [" ".join(one.split()) for one in [*text.split("\n\n"), ""]]
                query, passage = parts[0], " ".join(parts[1].split()[:60])
                is_prose = 15 < len(query) < 160 and len(passage) > 80
                if not is_prose or passage.startswith(HEADINGS):
                    continue
                if query not in found and passage not in passages:
                    found[query] = passage
                    passages.add(passage)
    rows = [{"query": query, "positive": passage} for query, passage in found.items()]
    random.Random(0).shuffle(rows)
    return rows


def write_rows(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_run(out: Path, asked: argparse.Namespace) -> None:
    run = {
        "name": "docs", "base_model": "tiny-base",
        "data": {
            "path": "train.jsonl", "heldout_path": "heldout.jsonl",
            "checks": {"length": {"action": "fix"}},
        },
        "training": {
            "method": {"type": "embedding"}, "r": RANK, "lora_alpha": 2 * RANK,
            "learning_rate": asked.rate, "num_train_epochs": asked.epochs,
            "per_device_train_batch_size": BATCH, "gradient_accumulation_steps": ACCUMULATION,
            "max_length": MAX_LENGTH, "gradient_checkpointing": False, "seed": 0,
        },
    }  # fmt: skip
    (out / "run.yaml").write_text(yaml.safe_dump(run), encoding="utf-8")


def wall_s(runs: Path) -> float:
    (adapter,) = (runs / "docs").glob("adapter-*")
    manifest = json.loads((adapter / "manifest.json").read_text(encoding="utf-8"))
    return float(manifest["metrics"]["wall_s"])


def read_ranks(runs: Path) -> list[dict[str, Any]]:
    (folder,) = (runs / "docs").glob("evaluation-retrieval-*")
    lines = (folder / "retrieval.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def run_peer(out: Path, asked: argparse.Namespace) -> float:
    """Train by sentence-transformers in a process of its own; return the seconds of the steps."""
    command = [
        sys.executable, "-m", "benchmarks.embedding", "--as-peer", str(out),
        "--peer", str(asked.peer.absolute()), "--epochs", str(asked.epochs),
        "--rate", str(asked.rate),
    ]  # fmt: skip
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout.splitlines()[-1])


def train_peer(out: Path, peer: Path, epochs: int, rate: float) -> None:
    """Train as the documentation of sentence-transformers shows, and write the adapter."""
    sys.path.append(str(peer))
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    import torch
    from datasets import Dataset
    from peft import LoraConfig, TaskType
    from sentence_transformers import (  # type: ignore[import-not-found]
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
        losses,
        models,
    )

    (dataset,) = (out / "runs-0" / "docs").glob("dataset-*")
    pairs = {}
    for part in ("train", "heldout"):
        rows = [json.loads(line) for line in (dataset / f"{part}.jsonl").open(encoding="utf-8")]
        columns = {"anchor": [row["query"] for row in rows],
                   "positive": [row["positives"][0] for row in rows]}  # fmt: skip
        pairs[part] = Dataset.from_dict(columns)
    transformer = models.Transformer(
        str(embedded_base()), max_seq_length=MAX_LENGTH, model_args={"dtype": torch.float32}
    )
    pooling = models.Pooling(transformer.get_word_embedding_dimension(), pooling_mode="lasttoken")
    model = SentenceTransformer(modules=[transformer, pooling, models.Normalize()], device="cpu")
    lora = LoraConfig(
        task_type=TaskType.FEATURE_EXTRACTION, r=RANK, lora_alpha=2 * RANK,
        target_modules="all-linear",
    )  # fmt: skip
    model.add_adapter(lora)
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(out / "peer-work"), num_train_epochs=epochs, learning_rate=rate,
        per_device_train_batch_size=BATCH * ACCUMULATION, warmup_steps=0.03,
        lr_scheduler_type="cosine", seed=0, use_cpu=True, report_to="none", save_strategy="no",
        eval_on_start=True, eval_strategy="epoch", per_device_eval_batch_size=BATCH * ACCUMULATION,
        disable_tqdm=True, logging_steps=10, max_grad_norm=1.0, weight_decay=0.0,
    )  # fmt: skip
    loss = losses.CachedMultipleNegativesRankingLoss(model, mini_batch_size=BATCH)
    trainer = SentenceTransformerTrainer(
        model=model, args=arguments, loss=loss,
        train_dataset=pairs["train"], eval_dataset=pairs["heldout"],
    )  # fmt: skip
    started_s = time.monotonic()
    trainer.train()
    taken_s = time.monotonic() - started_s
    network = model[0].auto_model if hasattr(model[0], "auto_model") else model[0].model
    network.save_pretrained(str(out / "peer"))
    print(taken_s)


def rank_peer(out: Path) -> list[dict[str, Any]]:
    """Rank the same passages by the peer's adapter, through the same evaluation."""
    from peft import PeftModel

    from training.data.prepare import dataset_rows
    from training.evaluation.retrieval import positive_ranks, ranked_passages, vectors_of
    from training.model import load_base, resolve_dtype
    from tuneline.core.artifact import open_artifact
    from tuneline.models.source import resolve_model
    from tuneline.models.vectors import read_recipe

    (folder,) = (out / "runs-0" / "docs").glob("dataset-*")
    dataset, base = open_artifact(folder), resolve_model("tiny-base")
    network = load_base(base, resolve_dtype("auto"), task_type="FEATURE_EXTRACTION")
    tuned = PeftModel.from_pretrained(network, out / "peer").eval()
    rows = dataset_rows(dataset, "heldout.jsonl")
    passages = ranked_passages(rows, dataset_rows(dataset, "train.jsonl"))
    texts = [*(row.query for row in rows), *passages]
    vectors = vectors_of(tuned, base.path, read_recipe(base.path), texts, "peer's model")
    ranks = positive_ranks(vectors[: len(rows)], vectors[len(rows) :], rows, passages)
    return [{"ranks": one} for one in ranks]


def tuneline(*words: str | Path) -> None:
    command = [sys.executable, "-m", "tuneline", *map(str, words)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()

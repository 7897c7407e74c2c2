"""Compare the estimated with the measured memory of training: `python benchmarks/memory.py`.

Each run is a process of its own: it trains a few steps through `train_adapter` on rows of one
length, with random weights. The measured memory is the peak of the resident memory (VmHWM, reset
before the base model is loaded) minus the resident memory at that moment, when the libraries are
loaded already. The estimate is that of the manifest: it knows config.json, the headers of the
weights and the lengths of the rows.

Prints a table for people, then one JSON document on the last line.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tuneline.core.environment import hardware_facts

# benchmarks/training.py would be imported in place of the package.
sys.path[:] = [path for path in sys.path if Path(path or ".").resolve() != Path(__file__).parent]

ROOT = Path(__file__).parents[1]
BASE = ROOT / "examples" / "tiny-base"
COMMON = {"num_attention_heads": 8, "num_key_value_heads": 2, "max_position_embeddings": 2048}
SHAPES: dict[str, dict[str, int]] = {
    "3-layers-256": {},
    "8-layers-512": {
        **COMMON, "vocab_size": 32000, "hidden_size": 512, "intermediate_size": 1408,
        "num_hidden_layers": 8,
    },
    "4-layers-896": {
        **COMMON, "vocab_size": 151936, "hidden_size": 896, "intermediate_size": 4864,
        "num_hidden_layers": 4, "num_attention_heads": 14,
    },
}  # fmt: skip
SETTINGS: dict[str, dict[str, Any]] = {
    "lora": {"gradient_checkpointing": False},
    "lora-checkpointing": {"gradient_checkpointing": True},
    "qlora": {"gradient_checkpointing": False, "load_in_4bit": True},
    "full": {"gradient_checkpointing": False, "finetuning_type": "full", "learning_rate": 1e-5},
    "dpo": {"gradient_checkpointing": False, "method": {"type": "dpo"}},
}
BATCHES = {"3-layers-256": (16, 240), "8-layers-512": (4, 480), "4-layers-896": (2, 480)}
"""Rows of a batch, and tokens of a row."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(train(Path(given.child[0]), given.child[1])))
        return
    figures: dict[str, Any] = {"hardware": hardware_facts()}
    print("shape          setting              measured MiB  estimated MiB  difference")
    for shape in given.shapes:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            make_case(folder, shape)
            for setting in given.settings:
                child = [sys.executable, __file__, "--child", scratch, setting]
                done = subprocess.run(child, stdout=subprocess.PIPE, text=True, check=True)
                metrics = json.loads(done.stdout.splitlines()[-1])
                measured, estimated = metrics["measured"], metrics["estimated"]
                share = estimated / measured - 1
                figures[f"{shape} {setting}"] = {**metrics, "difference": round(share, 3)}
                print(
                    f"{shape:14} {setting:20} {measured / 2**20:12.0f} {estimated / 2**20:14.0f} "
                    f"{share:+11.1%}",
                    flush=True,
                )
    print(json.dumps(figures))


def make_case(folder: Path, shape: str) -> None:
    """Write the base model and rows of about one length into a folder."""
    import torch
    import transformers

    base = folder / "base"
    if SHAPES[shape]:
        torch.manual_seed(0)
        config = transformers.LlamaConfig(
            **SHAPES[shape], tie_word_embeddings=True, eos_token_id=2, pad_token_id=0
        )
        transformers.LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(base)
        for name in (
            "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
            "generation_config.json",
        ):  # fmt: skip
            shutil.copy(BASE / name, base / name)
    else:
        shutil.copytree(BASE, base)
    num_rows, length = BATCHES[shape]
    tokenizer = transformers.AutoTokenizer.from_pretrained(BASE)
    draw = random.Random(0)
    corpus = ROOT / "examples" / "tiny-base-training" / "corpus.py"
    words = corpus.read_text(encoding="utf-8").split()[:1000]
    for name, count in (("train", 3 * num_rows), ("heldout", num_rows)):
        lines, pairs = [], []
        for _ in range(count):
            text: list[str] = []
            while len(tokenizer(" ".join(text))["input_ids"]) < length:
                text.append(draw.choice(words))
            half = len(text) // 2
            question, answer = " ".join(text[:half]), " ".join(text[half:])
            lines.append(json.dumps({"instruction": question, "output": answer}) + "\n")
            pair = {"prompt": question, "chosen": answer, "rejected": " ".join(text[:half:-1])}
            pairs.append(json.dumps(pair) + "\n")
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
        (folder / f"{name}-pairs.jsonl").write_text("".join(pairs), encoding="utf-8")
    case = {"per_device_train_batch_size": num_rows, "gradient_accumulation_steps": 1}
    (folder / "case.json").write_text(json.dumps(case))


def train(folder: Path, setting: str) -> dict[str, int]:
    """Train in this process, and return the measured and the estimated memory in bytes."""
    from training import prepare_dataset, train_adapter
    from training.config import DataConfig, TrainingConfig
    from tuneline.models.source import resolve_model

    case = json.loads((folder / "case.json").read_text())
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch)
        suffix = "-pairs" if "method" in SETTINGS[setting] else ""
        data = DataConfig(path=f"train{suffix}.jsonl", heldout_path=f"heldout{suffix}.jsonl")
        dataset = prepare_dataset(data, relative_to=folder, out=out / "dataset")
        config = TrainingConfig.model_validate({**case, "num_train_epochs": 1, **SETTINGS[setting]})
        base = resolve_model(str(folder / "base"))
        metrics = train_adapter(config, dataset, base, out / "adapter").manifest.metrics
    return {
        "measured": metrics["training_memory_bytes"],
        "estimated": metrics["estimated_training_memory_bytes"],
    }


if __name__ == "__main__":
    main()

# ruff: noqa: E402
"""Make a drafter for a tuned model, and compare what it promises with what vLLM accepts.

    .venv/bin/python benchmarks/drafter.py --out /tmp/drafter

The tuned model is that of the shipped tickets. The drafter is the first layer of the tiny base. It
learns the same rows, and then by distillation the tuned model's own words on `--prompts` prompts.
`tuneline evaluate --reference` says how many tokens of the recorded answers each drafts. A server
then answers the prompts of the reference with the base and with the last drafter, and its
own counters say how many drafts it took. The result is a JSON document on stdout.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

# The scripts of this folder would hide the packages of the same names.
sys.path[:] = [path for path in sys.path if Path(path or ".").resolve() != Path(__file__).parent]

from loadtest import run_loadtest
from loadtest.config import LoadTestConfig
from serving import running_server
from serving.config import ServingConfig
from tuneline.core.environment import hardware_facts
from tuneline.models.source import resolve_model

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "support-tickets"
TUNED, LAYER, ROWS, TAUGHT = "tuned", "layer", "rows", "taught"
NUM_DRAFTED = 3
WHOLE = {"finetuning_type": "full", "r": None, "lora_alpha": None, "target_modules": None}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--prompts", type=int, default=600)
    asked = parser.parse_args()
    out = asked.out.absolute()
    out.mkdir(parents=True)
    training = yaml.safe_load((EXAMPLE / "run.yaml").read_text(encoding="utf-8"))["training"]
    walls = {TUNED: trained(out, TUNED, "tiny-base", EXAMPLE / "train.jsonl", training)}
    cut(out / LAYER)
    whole = {name: value for name, value in {**training, **WHOLE}.items() if value is not None}
    walls[ROWS] = trained(
        out, ROWS, str(out / LAYER), EXAMPLE / "train.jsonl", {**whole, "learning_rate": 2e-3}
    )
    lines = (EXAMPLE / "train.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    prompts = "".join(map(without_answer, lines[: asked.prompts]))
    (out / "prompts.jsonl").write_text(prompts, encoding="utf-8")
    method = {
        "type": "distillation", "teacher_model_name_or_path": str(out / TUNED),
        "max_completion_length": 64,
    }  # fmt: skip
    walls[TAUGHT] = trained(
        out, TAUGHT, str(out / ROWS), out / "prompts.jsonl",
        {**whole, "learning_rate": 5e-4, "num_train_epochs": 1, "method": method},
    )  # fmt: skip
    (reference,) = (out / "runs" / TUNED).glob("reference-*")
    models = {"base": "tiny-base"} | {name: str(out / name) for name in (LAYER, ROWS, TAUGHT)}
    found = {name: acceptance(out, name, model, reference) for name, model in models.items()}
    document = {
        "drafted": {
            name: {
                "share_right": one["share_right"],
                "tokens_per_step": {
                    row["num_drafted"]: row["tokens_per_step"] for row in one["drafted"]
                },
            }
            for name, one in found.items()
        },
        "served": {
            name: {"expected": as_counted(out, name), **served(out, models[name])}
            for name in ("base", TAUGHT)
        },
        "train_s": walls,
        "hardware": hardware_facts(),
    }
    print(json.dumps(document, indent=2))


def without_answer(line: str) -> str:
    row = json.loads(line)
    return json.dumps({"prompt": f"{row['instruction']}\n\n{row['input']}"}) + "\n"


def cut(folder: Path) -> None:
    """Write the tiny base with its first layer only."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = resolve_model("tiny-base").path
    model = AutoModelForCausalLM.from_pretrained(source)
    model.model.layers = model.model.layers[:1]
    model.config.num_hidden_layers = 1
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)


def trained(out: Path, name: str, base: str, rows: Path, training: dict[str, Any]) -> float:
    """Train a model and write it as OUT/NAME; return the seconds of the training."""
    run = {
        "name": name, "base_model": base, "training": training,
        "data": {"path": str(rows), "heldout_path": str(EXAMPLE / "heldout.jsonl")},
        "reference": {"num_prompts": 64, "max_new_tokens": 64},
    }  # fmt: skip
    (out / f"{name}.yaml").write_text(yaml.safe_dump(run), encoding="utf-8")
    tuneline("train", out / f"{name}.yaml", "--runs-dir", out / "runs")
    (made,) = (out / "runs" / name).glob("adapter-*")
    if name == TUNED:
        tuneline(
            "export", "merge", "--base", base, "--adapter", made, "--dtype", "float32",
            "--out", out / name,
        )  # fmt: skip
    else:  # trained whole
        (out / name).symlink_to(made)
    manifest = json.loads((made / "manifest.json").read_text(encoding="utf-8"))
    return float(manifest["metrics"]["wall_s"])


def acceptance(out: Path, name: str, model: str, reference: Path) -> dict[str, Any]:
    folder = out / f"acceptance-{name}"
    tuneline("evaluate", "--model", model, "--reference", reference, "--out", folder)
    found: dict[str, Any] = json.loads((folder / "acceptance.json").read_text(encoding="utf-8"))
    return found


def as_counted(out: Path, name: str) -> float:
    """Return the tokens per step as the server counts them: drafts behind the end of an answer
    count as right."""
    accepted = steps = 0
    for line in (out / f"acceptance-{name}" / "drafts.jsonl").read_text().splitlines():
        right, place = json.loads(line)["right"], 0
        while place < len(right):
            window = [*right, *[1] * NUM_DRAFTED][place : place + NUM_DRAFTED]
            taken = window.index(0) if 0 in window else NUM_DRAFTED
            accepted, steps, place = accepted + taken, steps + 1, place + taken + 1
    return 1 + accepted / steps


def served(out: Path, drafter: str) -> dict[str, float]:
    """Return the tokens per step of a server that drafts, by its own counters."""
    speculation = {
        "method": "draft_model", "model": str(resolve_model(drafter).path),
        "num_speculative_tokens": NUM_DRAFTED,
    }  # fmt: skip
    config = ServingConfig(
        dtype="float32", max_model_len=512, enforce_eager=True, cpu_kvcache_space_gib=1,
        extra_args={"speculative_config": speculation},
    )  # fmt: skip
    rows = (EXAMPLE / "heldout.jsonl").read_text(encoding="utf-8").splitlines()[:64]
    prompts = [
        [{"role": "user", "content": json.loads(without_answer(row))["prompt"]}] for row in rows
    ]
    load = LoadTestConfig.model_validate(
        {
            "max_tokens": 64, "num_warmup_requests": 0,
            "scenarios": [{"name": "one", "concurrency": 1, "num_requests": len(prompts)}],
        }
    )  # fmt: skip
    folder = Path(tempfile.mkdtemp(dir=out))
    with running_server(
        config, resolve_model(str(out / TUNED)), name=TUNED, log_path=folder / "vllm.log"
    ) as server:
        report = run_loadtest(load, server.endpoint, folder / "load", prompts=prompts)
    text = (report.path / "report.json").read_text(encoding="utf-8")
    (scenario,) = json.loads(text)["scenarios"]
    metrics = scenario["server"]["figures"]
    return {
        "tokens_per_step": 1 + metrics["accepted_per_draft"],
        "draft_acceptance_rate": metrics["draft_acceptance_rate"],
    }


def tuneline(*words: str | Path) -> None:
    command = [sys.executable, "-m", "tuneline", *map(str, words)]
    started_s = time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    print(f"{words[0]}: {time.monotonic() - started_s:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()

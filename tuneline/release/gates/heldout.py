"""Gate `heldout`: no held-out prompt is among the training rows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tuneline.core.artifact import Artifact
from tuneline.core.dataset import HELDOUT_FILE, TRAIN_FILE, prompt_of
from tuneline.core.messages import plain_prompt, plain_text
from tuneline.pipeline.stage import DATASET
from tuneline.release.gates.finding import Finding, judged, missing
from tuneline.release.proofs import Proofs

REQUIRED = "no held-out prompt is among the training rows"


def judge_heldout(proofs: Proofs) -> Finding:
    """Compare the prompts of both files again.

    Prompts are equal as `plain_prompt` says; a prompt with other tools is another prompt.
    A conversation that is trained on all turns trains an answer to every earlier prompt, too.
    """
    dataset = proofs.made.get(DATASET)
    if dataset is None:
        return missing(proofs, DATASET, REQUIRED)
    every_turn = proofs.run.config.training.train_on == "all_turns"
    trained = set(_prompts(dataset.path / TRAIN_FILE, every_turn=every_turn))
    held = list(_prompts(dataset.path / HELDOUT_FILE))
    leaked = [number for number, prompt in enumerate(held, start=1) if prompt in trained]
    words = (
        f"None of the {len(held)} held-out prompts is among the {len(trained)} trained prompts."
        f"{_similar(dataset)}"
    )
    if not held:
        words = "The dataset has no held-out row."
    elif leaked:
        lines = ", ".join(str(number) for number in leaked[:5])
        words = (
            f"{len(leaked)} of {len(held)} held-out prompts are trained on "
            f"({HELDOUT_FILE}: line {lines}{', …' if len(leaked) > 5 else ''})."
        )
    return judged(
        bool(held) and not leaked,
        REQUIRED,
        f"{len(leaked)} of {len(held)} prompts",
        words,
        hint="Set data.checks.leakage.action: fix in run.yaml, then: " + proofs.run.command("up"),
        sources=tuple(proofs.source(DATASET, file) for file in (TRAIN_FILE, HELDOUT_FILE)),
        reasons=["leaked" if leaked else "no-rows"],
    )


def _similar(dataset: Artifact) -> str:
    """Return a sentence about training rows that are almost a held-out prompt; empty without."""
    checks = dataset.manifest.metrics.get("checks", [])
    found = next((one for one in checks if one["check"] == "near_leakage"), None)
    kept = 0 if found is None else found["num_rows"] - found["num_dropped"]
    if not kept:
        return ""
    rows = "1 training row has" if kept == 1 else f"{kept} training rows have"
    return f" {rows} a prompt that is similar to a held-out prompt (near_leakage)."


def _prompts(path: Path, *, every_turn: bool = False) -> Iterator[bytes]:
    """Return a hash of each row's plain prompt; hashes of many rows fit the memory.

    Args:
        every_turn: Also of the prompt of each earlier answer that a row trains.
    """
    # Only a line feed ends a line: text may hold the other line ends of Unicode.
    with path.open("rb") as file:
        for line in file:
            if line.strip():
                row = json.loads(line)
                if "text" in row:
                    yield _hash(plain_text(row["text"]))
                    continue
                tools = row.get("tools", ())
                yield _hash(plain_prompt(prompt_of(row), tools))
                for messages in _earlier_prompts(row) if every_turn else ():
                    yield _hash(plain_prompt(messages, tools))


def _earlier_prompts(row: dict[str, Any]) -> Iterator[list[Any]]:
    """Return the messages before each trained answer of a row but the one after its prompt.

    Preference pairs and labels train only the last answer.
    """
    if "completion" not in row or "label" in row:
        return
    prompt, untrained = row["prompt"], row.get("untrained", [])
    messages = [*prompt, *row["completion"]]
    for index, message in enumerate(messages):
        is_trained = message["role"] == "assistant" and index not in untrained
        if is_trained and index not in (0, len(prompt)):
            yield messages[:index]


def _hash(plain: Any) -> bytes:
    return hashlib.sha256(json.dumps(plain).encode()).digest()

"""Gate `heldout`: no held-out prompt is among the training rows."""

from __future__ import annotations

import json
from pathlib import Path

from tuneline.core.dataset import HELDOUT_FILE
from tuneline.pipeline.stage import DATASET
from tuneline.release.gates.finding import Finding, judged, missing
from tuneline.release.proofs import Proofs

REQUIRED = "no held-out prompt is among the training rows"
TRAIN_FILE = "train.jsonl"


def judge_heldout(proofs: Proofs) -> Finding:
    """Compare the prompts of both files again; white space and case do not count."""
    dataset = proofs.made.get(DATASET)
    if dataset is None:
        return missing(proofs, DATASET, REQUIRED)
    trained = set(_prompts(dataset.path / TRAIN_FILE))
    held = _prompts(dataset.path / HELDOUT_FILE)
    leaked = [number for number, prompt in enumerate(held, start=1) if prompt in trained]
    words = f"None of the {len(held)} held-out prompts is among the {len(trained)} trained prompts."
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
        hint=f"Try: --set data.checks.leakage.action=fix, then tuneline up {proofs.run.path}",
        sources=tuple(proofs.source(DATASET, file) for file in (TRAIN_FILE, HELDOUT_FILE)),
    )


def _prompts(path: Path) -> list[str]:
    """Return each row's prompt as text that is equal for prompts that differ in white space."""
    text = path.read_text(encoding="utf-8").removesuffix("\n")
    rows = (json.loads(line) for line in text.split("\n") if line)
    return [" ".join(json.dumps(row.get("prompt") or row).casefold().split()) for row in rows]

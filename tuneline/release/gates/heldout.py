"""Gate `heldout`: no held-out prompt is among the training rows."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tuneline.core.dataset import HELDOUT_FILE
from tuneline.pipeline.stage import DATASET
from tuneline.release.gates.finding import Finding, judged, missing
from tuneline.release.proofs import Proofs

REQUIRED = "no held-out prompt is among the training rows"
TRAIN_FILE = "train.jsonl"


def judge_heldout(proofs: Proofs) -> Finding:
    """Compare the prompts of both files again.

    White space, case and the Unicode form of a letter do not count.
    """
    dataset = proofs.made.get(DATASET)
    if dataset is None:
        return missing(proofs, DATASET, REQUIRED)
    trained = set(_prompts(dataset.path / TRAIN_FILE))
    held = list(_prompts(dataset.path / HELDOUT_FILE))
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


def _prompts(path: Path) -> Iterator[bytes]:
    """Return a hash of each row's plain prompt; hashes of many rows fit the memory."""
    # Only a line feed ends a line: text may hold the other line ends of Unicode.
    with path.open("rb") as file:
        for line in file:
            if line.strip():
                row = json.loads(line)
                text = json.dumps(_plain(row.get("prompt") or row), sort_keys=True)
                yield hashlib.sha256(text.encode()).digest()


def _plain(value: Any) -> Any:
    """Return a JSON value with every text in lower case, in NFC and with single spaces."""
    if isinstance(value, str):
        # Case folding can undo NFC, and it does not know every decomposed letter.
        folded = unicodedata.normalize("NFC", value).casefold()
        return " ".join(unicodedata.normalize("NFC", folded).split())
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    return value

"""Time, memory, recall and precision of the data checks on rows with planted facts.

    python -m benchmarks.data_checks --rows 1000000

Rows of about 1 kB are made of random words of a vocabulary with a natural distribution (Zipf).
Known numbers of rows get a fact each: an exact or near duplicate, a leak of a held-out prompt, a
contradiction, personal data, a refusal and so on. A near duplicate has 2 to 10 percent of its words
replaced. Its true similarity is computed here from sets of substrings, without the code under test,
and recall counts the pairs at or above the threshold.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from training.config.checks import ChecksConfig
from training.data.checks.report import report_of
from training.data.checks.run import Checked, check_rows
from training.data.checks.spool import Spool
from training.data.rows import read_rows

SIMILARITY = 0.8
NUM_WORDS = 150
# One row in this many gets a fact of each kind.
ONE_IN = 200
FACTS = (
    "exact", "near", "leak", "near leak", "contradiction", "email", "phone", "card", "refusal",
    "repetition", "korean",
)  # fmt: skip
CHECK_OF = {
    "exact": "duplicates", "near": "near_duplicates", "leak": "leakage",
    "near leak": "near_leakage", "contradiction": "contradictions", "email": "personal_data",
    "phone": "personal_data", "card": "personal_data", "refusal": "refusals",
    "repetition": "repetition", "korean": "languages",
}  # fmt: skip


class Maker:
    """Rows with planted facts, the same for the same seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        letters = "etaoinshrdlcumwfgypbvk"
        self.words = [
            "".join(self.random.choices(letters, k=self.random.randint(2, 9)))
            for _ in range(30_000)
        ]
        total, self.weights = 0.0, []
        for rank in range(1, len(self.words) + 1):
            total += 1 / rank
            self.weights.append(total)

    def text(self, num_words: int) -> str:
        words = self.random.choices(self.words, cum_weights=self.weights, k=num_words)
        return " ".join(words).capitalize() + "."

    def row(self) -> tuple[str, str]:
        size = self.random.randint(NUM_WORDS // 3, NUM_WORDS * 2 // 3)
        return self.text(size), self.text(NUM_WORDS - size)

    def near(self, text: str) -> str:
        words = text.split(" ")
        for place in self.random.sample(range(len(words)), max(len(words) // 50, 1)):
            words[place] = self.random.choice(self.words)
        return " ".join(words)

    def planted(self, fact: str, original: tuple[str, str]) -> tuple[str, str]:
        prompt, answer = original
        extra = {
            "email": " Write to jordan.reed@mailbox.org please.",
            "phone": " Call +82 10 2345 6789 please.",
            "card": " The card is 4532 0151 1283 0366 as before.",
        }
        if fact in extra:
            return prompt + extra[fact], answer
        changes = {
            "exact": (prompt, answer),
            "near": (self.near(prompt), self.near(answer)),
            "leak": (prompt.upper(), answer),
            "near leak": (self.near(prompt), answer),
            "contradiction": (prompt, self.text(NUM_WORDS // 2)),
            "refusal": (prompt, "As an AI language model, I cannot do this. " + answer),
            "repetition": (prompt, self.text(8) * 20),
            "korean": (prompt, "문의하신 내용을 확인한 뒤에 담당자가 다시 연락드리겠습니다. " * 3),
        }
        return changes[fact]


def similarity(first: str, second: str) -> float:
    """Return the Jaccard similarity of the sets of substrings of eight characters."""
    one, other = (
        {normal[i : i + 8] for i in range(len(normal) - 7)}
        for normal in (" ".join(text.casefold().split()) for text in (first, second))
    )
    return len(one & other) / len(one | other)


def write_rows(folder: Path, num_rows: int, seed: int) -> dict[str, set[int]]:
    """Write `train.jsonl` and `heldout.jsonl`; return the lines of each planted fact."""
    maker = Maker(seed)
    facts: dict[str, set[int]] = {fact: set() for fact in FACTS}
    held = [maker.row() for _ in range(num_rows // 100 + 100)]
    with (folder / "heldout.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(_line(row) for row in held)
    earlier: tuple[str, str] | None = None
    num_leaks = 0
    with (folder / "train.jsonl").open("w", encoding="utf-8") as file:
        for line in range(1, num_rows + 1):
            row = maker.row()
            fact = FACTS[line // ONE_IN % len(FACTS)] if line % (ONE_IN // len(FACTS)) == 0 else ""
            if fact and earlier is not None:
                original = earlier if fact in ("exact", "near", "contradiction") else row
                if "leak" in fact:
                    original = held[num_leaks % len(held)]
                    num_leaks += 1
                row = maker.planted(fact, original)
                if fact == "near":
                    pairs = zip(row, original, strict=True)
                    fact = fact if min(similarity(*pair) for pair in pairs) >= SIMILARITY else ""
                elif fact == "near leak":
                    fact = fact if similarity(row[0], original[0]) >= SIMILARITY else ""
                if fact:
                    facts[fact].add(line)
                if fact == "contradiction":
                    facts[fact].add(line - 1)
            # Only a row without a fact is the origin of a later fact.
            earlier = None if fact else row
            file.write(_line(row))
    return facts


def _line(row: tuple[str, str]) -> str:
    return json.dumps({"prompt": row[0], "completion": row[1]}, ensure_ascii=False) + "\n"


def found_lines(checked: Checked) -> dict[str, set[int]]:
    """Return the lines of the training rows that each check found."""
    found: dict[str, set[int]] = {}
    for result in checked.results:
        found[result.check.name] = {
            int(checked.whole.spool.lines[row])
            for row in result.rows
            if not checked.whole.heldout[row]
        }
    return found


class Memory:
    """The greatest resident memory of this process and its children together."""

    def __init__(self) -> None:
        self.peak, self.is_done = 0, threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Memory:
        self.thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self.is_done.set()
        self.thread.join()

    def _watch(self) -> None:
        while not self.is_done.wait(0.25):
            children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
            pids = ["self", *children]
            self.peak = max(self.peak, sum(_resident(pid) for pid in pids))


def _resident(pid: str) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))


def _cpu_s() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def measure(folder: Path, facts: dict[str, set[int]]) -> dict[str, Any]:
    """Check the files, and return times, memory and the share of planted facts that are found."""
    actions = dict.fromkeys(ChecksConfig.model_fields, "warn") | {"length": "refuse"}
    checks = ChecksConfig.model_validate(actions)
    start, cpu = time.monotonic(), _cpu_s()
    with Memory() as memory, Spool(folder / "rows.spool") as spool:
        spool.add(_stream(folder / "train.jsonl"))
        spool.add(_stream(folder / "heldout.jsonl"), heldout=True)
        spooled = time.monotonic()
        checked = check_rows(spool, checks)
        report_of(checked)
        ended = time.monotonic()
        found = found_lines(checked)
    scores = {}
    for fact, lines in facts.items():
        check = CHECK_OF[fact]
        planted = set().union(*(facts[f] for f in FACTS if CHECK_OF[f] == check))
        scores[fact] = {
            "planted": len(lines),
            "recall": len(lines & found[check]) / len(lines) if lines else None,
            "precision of the check": len(planted & found[check]) / len(found[check])
            if found[check]
            else None,
        }
    return {
        "rows": len(spool),
        "size_bytes": (folder / "train.jsonl").stat().st_size,
        "read_and_spool_s": round(spooled - start, 1),
        "checks_s": round(ended - spooled, 1),
        "wall_s": round(ended - start, 1),
        "cpu_s": round(_cpu_s() - cpu, 1),
        "peak_memory_bytes": memory.peak,
        "facts": scores,
    }


def _stream(path: Path) -> Iterator[Any]:
    yield from read_rows(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--scratch", type=Path, help="Folder for the rows; 3 kB for each row.")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        facts = write_rows(Path(folder), options.rows, options.seed)
        print(json.dumps(measure(Path(folder), facts), indent=2))


if __name__ == "__main__":
    main()

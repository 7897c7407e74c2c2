"""Make train.jsonl and heldout.jsonl from the phrase pools in phrases/.

A ticket is an opening, a problem sentence, perhaps a context sentence, a priority cue and a
closing. The problem fixes category and action, the cue fixes the priority. Train and held-out
rows draw on separate pools of problems, cues and frames; names, numbers and products are shared.

    python make_dataset.py            writes both files and prints the counts
    python make_dataset.py --check    also proves that no held-out sentence is in train or in the
                                      text that the base model of ../tiny-base is trained on
"""

from __future__ import annotations

import argparse
import importlib
import json
import random
import re
import sys
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).resolve().parent
PHRASES = HERE / "phrases"
TOPICS = (
    "billing", "access", "hardware", "network", "shipping",
    "software", "email", "data", "security", "sales",
)  # fmt: skip
PRIORITIES = ("urgent", "high", "normal", "low")
TRAIN_PER_INTENT = 46
HELDOUT_PER_INTENT = 7
SEED = 20

Row = dict[str, str]
Pools = dict[str, Any]


def load(name: str) -> Pools:
    """Read one phrase file."""
    with (PHRASES / f"{name}.yaml").open(encoding="utf-8") as stream:
        data: Pools = yaml.safe_load(stream)
    return data


def number_slot(slot: str, rng: random.Random) -> str:
    """Make up a value for a slot that is a number."""
    if slot == "num":
        return str(rng.randint(100, 9999))
    if slot == "ext":
        return str(rng.randint(20, 99))
    if slot == "floor":
        return str(rng.randint(1, 9))
    if slot == "room":
        return f"{rng.choice('ABC')}{rng.randint(1, 40)}"
    if slot == "count":
        return str(rng.randint(3, 40))
    if slot == "hour":
        return f"{rng.randint(8, 18)}:{rng.choice(['00', '15', '30'])}"
    if slot == "invoice":
        return f"INV-{rng.randint(1000, 9999)}"
    if slot == "order":
        return f"A{rng.randint(10000, 99999)}"
    if slot == "amount":
        return f"{rng.randint(12, 980)} {rng.choice(['euros', 'dollars'])}"
    if slot == "version":
        return f"{rng.randint(2, 12)}.{rng.randint(0, 9)}"
    raise KeyError(slot)


def fill(template: str, slots: dict[str, list[str]], rng: random.Random) -> str:
    """Resolve the choices (a|b) and the slots <x> of a template."""
    text = re.sub(r"\(([^()]*\|[^()]*)\)", lambda m: rng.choice(m[1].split("|")), template)

    def value(match: re.Match[str]) -> str:
        slot = match[1]
        return rng.choice(slots[slot]) if slot in slots else number_slot(slot, rng)

    text = re.sub(r"<(\w+)>", value, text)
    return text[:1].upper() + text[1:]


def make_ticket(
    problem: str, cue: str, frames: Pools, split: str, slots: dict[str, list[str]],
    rng: random.Random,
) -> str:  # fmt: skip
    """Return one ticket; the cue is before or after the problem."""
    body = [fill(problem, slots, rng), fill(cue, slots, rng)]
    if rng.random() < 0.2:
        body.reverse()
    context = fill(rng.choice(frames["context"][split]), slots, rng)
    body.insert(rng.choice([0, 1]) if rng.random() < 0.8 else 2, context)
    opening = rng.choice(frames["opening"][split])
    closing = fill(rng.choice(frames["closing"][split]), slots, rng)
    return " ".join(part for part in [opening, *body, closing] if part)


def make_split(split: str, per_intent: int, seen: set[str]) -> list[Row]:
    """Make all rows of one split, the same number for every intent."""
    rng = random.Random(f"{SEED}-{split}")
    frames, urgency, slots = load("frames"), load("urgency"), load("slots")
    rows: list[Row] = []
    turn = 0
    decks: dict[str, list[str]] = {priority: [] for priority in PRIORITIES}
    for topic in TOPICS:
        data = load(topic)
        for intent in data["intents"].values():
            problems = list(intent[split])
            rng.shuffle(problems)
            made = 0
            while made < per_intent:
                priority = PRIORITIES[turn % len(PRIORITIES)]
                if not decks[priority]:
                    # Every cue is dealt once before any comes a second time.
                    decks[priority] = list(urgency[priority][split])
                    rng.shuffle(decks[priority])
                cue = decks[priority][-1]
                text = make_ticket(problems[made % len(problems)], cue, frames, split, slots, rng)
                if text in seen:
                    continue
                seen.add(text)
                decks[priority].pop()
                turn += 1
                made += 1
                rows.append(
                    {
                        "instruction": rng.choice(frames["instructions"]),
                        "input": text,
                        "output": f"Category: {data['category']}\nPriority: {priority}\n"
                        f"Action: {intent['action']}",
                    }
                )
    rng.shuffle(rows)
    return rows


@cache
def slot_pattern() -> re.Pattern[str]:
    """Return a pattern of every slot value, longest first, and every word with a digit in it."""
    values = sorted({v for pool in load("slots").values() for v in pool}, key=len, reverse=True)
    return re.compile(r"\b(" + "|".join(map(re.escape, values)) + r")\b|\b\w*\d[\w:.]*")


def words_of(text: str) -> list[str]:
    """Lower-case words without slots, numbers and marks."""
    text = slot_pattern().sub(" ", text)
    return re.findall(r"[a-z']+", text.lower())


def shingles(text: str, size: int = 5) -> set[tuple[str, ...]]:
    """All runs of `size` words."""
    words = words_of(text)
    return {tuple(words[i : i + size]) for i in range(len(words) - size + 1)}


def overlap(train: list[Row], heldout: list[Row]) -> tuple[float, float]:
    """Largest and mean share of a held-out row's shingles that any one training row has."""
    pool = [shingles(row["input"]) for row in train]
    shares = []
    for row in heldout:
        own = shingles(row["input"])
        shares.append(max((len(own & other) / len(own) for other in pool), default=0.0))
    return max(shares), sum(shares) / len(shares)


def phrases(split: str) -> dict[str, str]:
    """Every problem and cue of one split, once filled, by the template it comes from."""
    pools = [load("urgency")[priority][split] for priority in PRIORITIES]
    for topic in TOPICS:
        pools += [intent[split] for intent in load(topic)["intents"].values()]
    rng, slots = random.Random(SEED), load("slots")
    return {phrase: fill(phrase, slots, rng) for pool in pools for phrase in pool}


def check(train: list[Row], heldout: list[Row]) -> None:
    """Fail if held-out wording occurs in train or in the base model's training text.

    Forbidden is a problem or cue known from elsewhere, and any run of five words of one. Names,
    numbers and products are left out of the comparison.
    """
    train_inputs = {row["input"] for row in train}
    assert not any(row["input"] in train_inputs for row in heldout)
    most, mean = overlap(train, heldout)
    print(f"share of 5-word runs common with one training row: at most {most:.2f}, mean {mean:.4f}")

    sys.path.insert(0, str(HERE.parent / "tiny-base-training"))
    conversations = importlib.import_module("corpus").conversations

    known: set[str] = set()
    runs: set[tuple[str, ...]] = set()
    texts = set(phrases("train").values())
    for conversation in conversations():
        for turn in conversation:
            assert "Category:" not in turn["content"] and "Action:" not in turn["content"]
            texts.update(re.split(r"(?<=[.?!])\s+|\n", turn["content"]))
    for text in texts:
        known.add(" ".join(words_of(text)))
        runs |= shingles(text)
    bad: list[str] = []
    for template, text in phrases("heldout").items():
        assert " ".join(words_of(text)) not in known, f"known phrase: {template}"
        shared = shingles(text) & runs
        if shared:
            bad.append(f"{template} shares {shared}")
    assert not bad, "\n".join(bad)
    print(f"no 5-word run of a held-out phrase among {len(texts)} phrases of train and base corpus")


def write(name: str, rows: list[Row]) -> None:
    """Write rows as JSON lines."""
    with (HERE / name).open("w", encoding="utf-8", newline="\n") as stream:
        for row in rows:
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")


def main() -> None:
    """Make both files, print the counts, and check them when asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="also check for leaks")
    args = parser.parse_args()
    seen: set[str] = set()
    train = make_split("train", TRAIN_PER_INTENT, seen)
    heldout = make_split("heldout", HELDOUT_PER_INTENT, seen)
    write("train.jsonl", train)
    write("heldout.jsonl", heldout)
    for name, rows in (("train", train), ("heldout", heldout)):
        labels = [row["output"].split("\n") for row in rows]
        print(name, len(rows))
        print("  ", dict(Counter(label[0].removeprefix("Category: ") for label in labels)))
        print("  ", dict(Counter(label[1].removeprefix("Priority: ") for label in labels)))
    if args.check:
        check(train, heldout)


if __name__ == "__main__":
    main()

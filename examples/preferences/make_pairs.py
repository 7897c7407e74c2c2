"""Make train.jsonl and heldout.jsonl: replies to customers, a courteous and a curt one each.

Problems, courteous and curt sentences are split between the two files, so that a held-out pair
shares no sentence with a training pair. Both answers have two sentences and about the same length.

    python make_pairs.py
"""

from __future__ import annotations

import json
import random
from pathlib import Path

HERE = Path(__file__).resolve().parent
SEED = 7
PROBLEMS = {
    "train": (
        "The printer on floor 2 prints blank pages.", "My invoice shows the wrong address.",
        "The parcel has not arrived for nine days.", "I cannot log in after the update.",
        "The app closes when I open a photo.", "The headset has no sound on the left.",
        "We were charged twice in May.", "The report misses the last three rows.",
        "The wifi drops every ten minutes.", "My order lacks one chair.",
        "The calendar shows meetings one hour late.", "The coupon code does not work.",
    ),
    "heldout": (
        "The screen stays dark when I plug it in.", "My refund is still missing.",
        "The form does not accept my phone number.", "The door card stopped working today.",
        "The backup failed last night.", "I received the wrong size.",
    ),
}  # fmt: skip
COURTEOUS = {
    "train": (
        ("I am sorry about this.", "Thank you for telling us."),
        ("I apologize for the trouble.", "We will gladly look into it."),
        ("Thank you for your patience.", "I will take care of it today."),
        ("I understand that this is annoying.", "We will help you at once."),
    ),
    "heldout": (
        ("Thank you for writing to us.", "I am sorry for the trouble."),
        ("I am sorry to hear that.", "I will gladly help you today."),
    ),
}
CURT = {
    "train": (
        ("That is not our fault.", "Read the manual."),
        ("You did something wrong.", "Try it again yourself."),
        ("We have no time for this.", "Wait until next month."),
        ("Nobody else complains.", "Stop sending us mails."),
    ),
    "heldout": (
        ("That is not our job.", "Read the manual yourself."),
        ("You did that wrong.", "Stop sending complaints."),
    ),
}


def make_pairs(part: str, num_rows: int, rng: random.Random) -> list[dict[str, str]]:
    """Return pairs of one part, each with another combination of sentences."""
    combinations = [
        {
            "prompt": f"Reply to the customer. {problem}",
            "chosen": f"{courteous[0]} {courteous[1]}",
            "rejected": f"{curt[0]} {curt[1]}",
        }
        for problem in PROBLEMS[part]
        for courteous in (*COURTEOUS[part], *((b, a) for a, b in COURTEOUS[part]))
        for curt in (*CURT[part], *((b, a) for a, b in CURT[part]))
    ]
    return rng.sample(combinations, num_rows)


def main() -> None:
    rng = random.Random(SEED)
    for part, num_rows in (("train", 320), ("heldout", 80)):
        rows = make_pairs(part, num_rows, rng)
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (HERE / f"{part}.jsonl").write_text(text, encoding="utf-8")
        print(f"{part}.jsonl: {len(rows)} pairs")


if __name__ == "__main__":
    main()

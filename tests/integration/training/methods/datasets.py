"""Datasets of every kind of row with one rule: the good answer is a lower-case word."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from training.data.row import Row, query_row
from tuneline.core.artifact import Artifact, new_artifact, open_artifact

WORDS = ("red", "green", "blue", "brown", "white", "black", "grey", "pink")
REWARD_FILE = '''
def lower(prompts, completions, **columns):
    """The share of lower-case letters among the letters and digits of an answer."""
    scores = []
    for completion in completions:
        text = "".join(filter(str.isalnum, completion[0]["content"]))
        scores.append(sum(map(str.islower, text)) / max(len(text), 1))
    return scores


def wordy(prompts, completions, **columns):
    return ["a word"] * len(completions)


def short(prompts, completions, **columns):
    return [1.0]


def solved(prompts, answer, note, **columns):
    """1 for the field `answer`, and for a note that only some rows have."""
    return [float(found == "42" and text in (None, "odd")) for found, text in zip(answer, note)]


def number(prompts, completions, **columns):
    return 1.0


def broken(prompts, completions, **columns):
    return [columns["gold"][0]]
'''


def _said(content: str, role: str = "assistant") -> dict[str, Any]:
    return {"role": role, "content": content}


def _asked(index: int) -> tuple[dict[str, Any], ...]:
    return (_said(f"Say {WORDS[index % 8]} {index}.", "user"),)


def pair(index: int) -> Row:
    word = WORDS[index % 8]
    return Row(_asked(index), (_said(word),), rejected=(_said(word.upper() * (1 + index % 3)),))


def long_pair(index: int) -> Row:
    """A pair whose prompt is long enough that a batch computes it once."""
    asked = f"Number {index}. " + "Answer in one lower-case word and in nothing else. "
    return replace(pair(index), prompt=(_said(asked, "user"),))


def long_prompt(index: int) -> Row:
    return replace(prompt(index), prompt=long_pair(index).prompt)


def labelled(index: int) -> Row:
    word = WORDS[index % 8]
    good = index % 2 == 0
    return Row(_asked(index), (_said(word if good else word.upper()),), label=good)


def prompt(index: int) -> Row:
    return Row(_asked(index), fields={"word": WORDS[index % 8]})


def answer(index: int) -> Row:
    return Row(_asked(index), (_said(WORDS[index % 8]),))


def solved(index: int) -> Row:
    """A solution in words, and the result in a field that has the name of the answer."""
    fields = {"answer": "42", **({"note": "odd"} if index % 2 else {})}
    return Row(_asked(index), (_said(f"6 times 7 is 42, for {index}."),), fields=fields)


def uneven(index: int) -> Row:
    """An answer of one to seven words after a question of another length."""
    words = [WORDS[(index + place) % 8] for place in range(1 + index * 5 % 7)]
    return Row(_asked(index * 37), (_said(" ".join(words)),))


def query(index: int) -> Row:
    """A query in capitals, and the same words as its passage; some rows have a negative."""
    words = f"{WORDS[index % 8]} {WORDS[index // 8 % 8]}"
    return query_row(words.upper(), [words], [f"{WORDS[index % 8]} nothing"] * (index % 3 == 0))


def candidates(index: int) -> Row:
    """A query in capitals with its passage and one or two others, for a reranker."""
    right, *wrong = (f"{WORDS[(index + step) % 8]} {index}" for step in (0, 1, 3))
    return query_row(right.upper(), [right], wrong[: 1 + index % 2])


KINDS: dict[str, Callable[[int], Row]] = {
    "answer": answer, "uneven": uneven, "preference": pair, "label": labelled, "prompt": prompt,
    "solved": solved, "long_pair": long_pair, "long_prompt": long_prompt, "query": query,
    "candidates": candidates,
}  # fmt: skip


def write_dataset(out: Path, kind: str, num_train: int, num_heldout: int) -> Artifact:
    """Write a dataset artifact by hand, as intake does."""
    rows = [KINDS[kind](index) for index in range(num_train + num_heldout)]
    with new_artifact(out, "dataset", config={}, inputs=[]) as draft:
        write_rows(draft.dir / "train.jsonl", rows[:num_train])
        write_rows(draft.dir / "heldout.jsonl", rows[num_train:])
    return open_artifact(out, kind="dataset")


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    path.write_text("".join(json.dumps(row.as_json()) + "\n" for row in rows))

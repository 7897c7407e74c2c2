"""Rows of queries and passages as batches, and the loss that compares them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

Batch = dict[str, torch.Tensor]
Known = Mapping[int, torch.Tensor]
"""The numbers of the passages that answer a query, by the number of the query."""


@dataclass(frozen=True)
class Texts:
    """A row as token ids."""

    query_ids: list[int]
    positives: list[list[int]]
    negatives: list[list[int]]

    @property
    def sequences(self) -> list[list[int]]:
        """Return the query and all passages."""
        return [self.query_ids, *self.positives, *self.negatives]

    @property
    def num_trained_tokens(self) -> int:
        return sum(map(len, self.sequences))


def number_texts(rows: Sequence[Texts]) -> tuple[dict[tuple[int, ...], int], Known]:
    """Return a number for each distinct text, and the passages that answer each query."""
    numbers: dict[tuple[int, ...], int] = {}
    answers: dict[int, set[int]] = {}
    for row in rows:
        query, *passages = (
            numbers.setdefault(tuple(ids), len(numbers))
            for ids in (row.query_ids, *row.positives, *row.negatives)
        )
        answers.setdefault(query, set()).update(passages[: len(row.positives)])
    return numbers, {query: torch.tensor(sorted(found)) for query, found in answers.items()}


def collate(rows: Sequence[Texts], *, numbers: Mapping[tuple[int, ...], int], pad_id: int) -> Batch:
    """Return a batch of rows.

    `asked` and `target` have an entry for each passage that answers its query: the places of the
    query and of the passage. `query_number` and `passage_number` tell equal texts.
    """
    queries = [row.query_ids for row in rows]
    passages: list[list[int]] = []
    asked: list[int] = []
    target: list[int] = []
    for place, row in enumerate(rows):
        asked += [place] * len(row.positives)
        target += range(len(passages), len(passages) + len(row.positives))
        passages += [*row.positives, *row.negatives]
    batch = {}
    for name, texts in (("query", queries), ("passage", passages)):
        longest = max(map(len, texts))
        batch[f"{name}_ids"] = torch.tensor(
            [ids + [pad_id] * (longest - len(ids)) for ids in texts]
        )
        sizes = torch.tensor([len(ids) for ids in texts])
        batch[f"{name}_mask"] = (torch.arange(longest) < sizes[:, None]).long()
        batch[f"{name}_number"] = torch.tensor([numbers[tuple(ids)] for ids in texts])
    return {**batch, "asked": torch.tensor(asked), "target": torch.tensor(target)}


def contrast(
    queries: torch.Tensor,
    passages: torch.Tensor,
    asked: torch.Tensor,
    target: torch.Tensor,
    left_out: torch.Tensor,
    scale: float,
) -> tuple[torch.Tensor, int]:
    """Return the loss in nats, the mean over pairs, and the pairs whose passage is the nearest.

    Args:
        queries: Vectors, of shape (queries, dimensions).
        passages: Vectors, of shape (passages, dimensions).
        asked: For each pair the place of its query.
        target: For each pair the place of its passage.
        left_out: Of shape (pairs, passages): where a passage is not compared.
    """
    queries, passages = (torch.nn.functional.normalize(one, dim=-1) for one in (queries, passages))
    cosines = (queries[asked] @ passages.T).masked_fill(left_out, -torch.inf)
    loss = torch.nn.functional.cross_entropy(scale * cosines, target)
    return loss, int((cosines.argmax(1) == target).sum())

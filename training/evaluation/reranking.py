"""Evaluation of a reranker: does it put the passages that answer a query before the others?

Each held-out query ranks its own passages; rows of one query are one list. The tuned order is
compared with the base's: of a base that scores pairs already, its own order; of any other, the
order of BM25, which a search without a model gives.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from training.config import EvaluationConfig, TrainingConfig
from training.data.prepare import dataset_rows
from training.data.row import Row
from training.evaluation.bm25 import bm25_scores
from training.evaluation.decoding import batches_by_length
from training.evaluation.retrieval import BATCH_SIZE, ROWS_FILE, SUMMARY_FILE, write_lines
from training.heldout import require_heldout
from training.methods import require_kinds
from training.methods.reranker import free_pad_id, padded
from training.model import load_base, load_tuned, quiet_libraries, resolve_dtype
from tuneline.core.artifact import Artifact, new_artifact, open_artifact
from tuneline.core.dataset import HELDOUT_FILE
from tuneline.core.progress import progress
from tuneline.core.ranking import compare_ranks
from tuneline.models.classifier import is_classifier
from tuneline.models.pairs import Pair, pair_reader
from tuneline.models.source import ModelSource
from tuneline.models.tokenizer import load_tokenizer

SCORES_FILE = "scores.jsonl"
NUM_SCORES = 64
"""Pairs whose scores are kept, for the proof of a server; lists of passages are kept whole."""


@dataclass
class Listed:
    """A query with all its passages."""

    query: str
    line: int
    passages: dict[str, bool] = field(default_factory=dict)
    """Whether each passage answers the query."""


def evaluate_reranking(
    config: EvaluationConfig,
    training: TrainingConfig,
    dataset: Artifact,
    base: ModelSource,
    trained: Artifact,
    out: Path,
) -> Artifact:
    """Compare the trained model's order of the passages with its base's on held-out queries.

    Returns:
        An artifact of kind `retrieval`: every query's ranks, their means with paired intervals, and
        the trained model's scores of some of the pairs.

    Raises:
        ArtifactError: `out` exists, or base and trained model cannot be loaded or do not fit.
        DataError: The held-out rows are not queries with passages to rank.
    """
    quiet_libraries()
    inputs = [dataset.as_input("dataset"), base.as_input("base"), trained.as_input("adapter")]
    recorded = config.model_dump(mode="json")
    with new_artifact(out, "retrieval", config=recorded, inputs=inputs) as draft:
        rows = dataset_rows(dataset, HELDOUT_FILE, config.num_rows)
        require_kinds(training.method, rows, HELDOUT_FILE)
        require_heldout(training, rows, HELDOUT_FILE)
        lists = passage_lists(rows)
        tokenizer = load_tokenizer(base.path)
        read = pair_reader(base.path, tokenizer)
        pairs = [[read(one.query, passage) for passage in one.passages] for one in lists]

        dtype = resolve_dtype("auto")
        tuned = load_tuned(base, trained, dtype, task_type="SEQ_CLS")
        found = scores_of(tuned, tokenizer, pairs, "trained model")
        del tuned
        if is_classifier(base.path):
            order = "scores of the base model"
            plain = load_base(base, dtype, task_type="SEQ_CLS").eval()
            of_base = scores_of(plain, tokenizer, pairs, "base model")
        else:
            order = "BM25"
            of_base = _bm25(tokenizer, lists)

        ranks = [
            answer_ranks(one.passages.values(), row) for one, row in zip(lists, found, strict=True)
        ]
        # Words often give equal scores: the base's share their places.
        base_ranks = [
            answer_ranks(one.passages.values(), row, shared=True)
            for one, row in zip(lists, of_base, strict=True)
        ]
        entries = [
            {"line": one.line, "ranks": tuned_row, "base_ranks": base_row}
            for one, tuned_row, base_row in zip(lists, ranks, base_ranks, strict=True)
        ]
        write_lines(draft.dir / ROWS_FILE, entries)
        _write_scores(draft.dir, lists, pairs, found)
        figures = {
            **compare_ranks(ranks, base_ranks),
            "num_passages": sum(len(one.passages) for one in lists),
            "base_order": order,
            "dtype": str(dtype).removeprefix("torch."),
        }
        text = json.dumps(figures, indent=2) + "\n"
        (draft.dir / SUMMARY_FILE).write_text(text, encoding="utf-8")
        draft.metrics.update(figures)
    return open_artifact(out, kind="retrieval")


def passage_lists(rows: Sequence[Row]) -> list[Listed]:
    """Return each query with the passages of all its rows; queries without both sides are left out.

    A passage that answers the query in any row answers it.
    """
    lists: dict[str, Listed] = {}
    for row in rows:
        one = lists.setdefault(row.query, Listed(row.query, row.line))
        for is_answer, side in zip((True, False), row.passages, strict=True):
            for passage in side:
                one.passages[passage] = one.passages.get(passage, False) or is_answer
    return [one for one in lists.values() if len(set(one.passages.values())) == 2]


def answer_ranks(
    answers: Iterable[bool], scores: Sequence[float], *, shared: bool = False
) -> list[float]:
    """Return the ranks, from 1, of the passages that answer a query.

    A passage with the same score as others is behind them.

    Args:
        answers: Whether each passage answers it.
        shared: Whether it is in the middle of others with the same score instead.
    """
    both = list(zip(answers, scores, strict=True))
    others = [score for is_answer, score in both if not is_answer]
    own = sorted((score for is_answer, score in both if is_answer), reverse=True)
    found: list[float] = []
    for place, score in enumerate(own):
        equal = others.count(score)
        ahead = sum(other > score for other in others) + (equal / 2 if shared else equal)
        found.append(1 + place + ahead)
    return found


def _bm25(tokenizer: Any, lists: Sequence[Listed]) -> list[list[float]]:
    def ids(text: str) -> list[int]:
        # Many tokenizers have another token for a word at the start of a text.
        words = f" {text.lower()}"
        found: list[int] = tokenizer(words, add_special_tokens=False)["input_ids"]
        return found

    passages = [[ids(passage) for passage in one.passages] for one in lists]
    return bm25_scores([ids(one.query) for one in lists], passages)


def scores_of(
    network: Any, tokenizer: Any, lists: Sequence[Sequence[Pair]], what: str
) -> list[list[float]]:
    """Return the score of each pair of each list."""
    pairs = [pair for one in lists for pair in one]
    pad_id = free_pad_id(tokenizer, [pair.input_ids for pair in pairs])
    network.config.get_text_config().pad_token_id = pad_id
    found = [0.0] * len(pairs)
    done = 0
    with progress(f"scores of the {what}", len(pairs), "pairs") as advance:
        for batch in batches_by_length([len(pair.input_ids) for pair in pairs], BATCH_SIZE):
            inputs = padded([pairs[at] for at in batch], pad_id)
            with torch.inference_mode():
                moved = {name: tensor.to(network.device) for name, tensor in inputs.items()}
                scores = network(**moved).logits[:, 0].float().tolist()
            for at, score in zip(batch, scores, strict=True):
                found[at] = score
            done += len(batch)
            advance(done)
    ordered = iter(found)
    return [[next(ordered) for _ in one] for one in lists]


def _write_scores(
    folder: Path,
    lists: Sequence[Listed],
    pairs: Sequence[Sequence[Pair]],
    scores: Sequence[Sequence[float]],
) -> None:
    """Write the lists that a server is compared with: texts, token ids and scores."""
    entries: list[dict[str, Any]] = []
    number = 0
    for one, read, found in zip(lists, pairs, scores, strict=True):
        if number and number + len(found) > NUM_SCORES:
            break
        number += len(found)
        entries.append(
            {
                "query": one.query,
                "passages": list(one.passages),
                "token_ids": [pair.input_ids for pair in read],
                "scores": found,
            }
        )
    write_lines(folder / SCORES_FILE, entries)

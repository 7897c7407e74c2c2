"""Evaluation of an embedding model: does it find the passages that answer a query?

Each held-out query ranks the passages of all held-out rows, and passages of training rows as
further wrong ones, by the cosine of their vectors; the base ranks the same passages.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from training.config import EvaluationConfig, TrainingConfig
from training.config.method import EmbeddingConfig
from training.data.prepare import dataset_rows
from training.data.row import Row
from training.evaluation.decoding import batches_by_length
from training.methods import require_kinds
from training.model import load_base, load_tuned, quiet_libraries, resolve_dtype
from tuneline.core.artifact import Artifact, new_artifact, open_artifact
from tuneline.core.dataset import HELDOUT_FILE, TRAIN_FILE
from tuneline.core.errors import ArtifactError
from tuneline.core.progress import progress
from tuneline.core.ranking import compare_ranks
from tuneline.models.source import ModelSource
from tuneline.models.tokenizer import load_tokenizer
from tuneline.models.vectors import Recipe, load_dense, pooled, read_recipe

ROWS_FILE = "retrieval.jsonl"
SUMMARY_FILE = "retrieval.json"
VECTORS_FILE = "vectors.jsonl"
NUM_PASSAGES = 1000
"""Passages that are ranked, if the held-out rows have fewer: the rest is of training rows."""
NUM_VECTORS = 64
"""Texts whose vectors are kept, for the proof of a server."""
BATCH_SIZE = 16

Figures = dict[str, Any]


def evaluate_retrieval(
    config: EvaluationConfig,
    training: TrainingConfig,
    dataset: Artifact,
    base: ModelSource,
    trained: Artifact,
    out: Path,
) -> Artifact:
    """Compare the trained model's rankings with its base's on held-out queries.

    Returns:
        An artifact of kind `retrieval`: every query's figures, their means with paired intervals,
        and the trained model's vectors of some of the texts.

    Raises:
        ArtifactError: `out` exists, or base and trained model cannot be loaded or do not fit.
        DataError: The held-out rows are not queries with passages.
    """
    quiet_libraries()
    inputs = [dataset.as_input("dataset"), base.as_input("base"), trained.as_input("adapter")]
    recorded = config.model_dump(mode="json")
    with new_artifact(out, "retrieval", config=recorded, inputs=inputs) as draft:
        rows = dataset_rows(dataset, HELDOUT_FILE, config.num_rows)
        require_kinds(training.method, rows, HELDOUT_FILE)
        assert isinstance(training.method, EmbeddingConfig)  # noqa: S101 (for the type checker)
        passages = ranked_passages(rows, dataset_rows(dataset, TRAIN_FILE))
        prompts = training.method.prompts(base.path)
        queries = [prompts["query"] + row.query for row in rows]
        texts = [prompts["document"] + passage for passage in passages]

        recipe, dtype = read_recipe(trained.path), resolve_dtype("auto")
        tuned = load_tuned(base, trained, dtype, task_type="FEATURE_EXTRACTION")
        found = vectors_of(tuned, trained.path, recipe, [*queries, *texts], "trained model")
        del tuned
        plain = load_base(base, dtype, task_type="FEATURE_EXTRACTION").eval()
        own = _own_recipe(base.path) or recipe
        of_base = vectors_of(plain, base.path, own, [*queries, *texts], "base model")

        ranks, base_ranks = (
            positive_ranks(one[: len(rows)], one[len(rows) :], rows, passages)
            for one in (found, of_base)
        )
        entries = [
            {"line": row.line, "ranks": tuned_row, "base_ranks": base_row}
            for row, tuned_row, base_row in zip(rows, ranks, base_ranks, strict=True)
        ]
        write_lines(draft.dir / ROWS_FILE, entries)
        figures = {
            **compare_ranks(ranks, base_ranks),
            "num_passages": len(passages),
            "recipe": recipe.words,
            "dtype": str(dtype).removeprefix("torch."),
        }
        (draft.dir / SUMMARY_FILE).write_text(
            json.dumps(figures, indent=2) + "\n", encoding="utf-8"
        )
        _write_vectors(draft.dir, [*queries, *texts], found, len(rows))
        draft.metrics.update(figures)
    return open_artifact(out, kind="retrieval")


def _write_vectors(
    folder: Path, texts: Sequence[str], vectors: torch.Tensor, num_queries: int
) -> None:
    """Write the texts and vectors that a server is compared with: queries, then passages."""
    kept = [*range(min(num_queries, NUM_VECTORS // 2)), *range(num_queries, len(texts))]
    entries = [{"text": texts[at], "vector": vectors[at].tolist()} for at in kept[:NUM_VECTORS]]
    write_lines(folder / VECTORS_FILE, entries)


def ranked_passages(rows: Sequence[Row], train_rows: Sequence[Row]) -> list[str]:
    """Return the distinct passages that queries rank: all of the held-out rows, then others."""
    own = dict.fromkeys(text for row in rows for side in row.passages for text in side)
    others = (text for row in train_rows for side in row.passages for text in side)
    for text in others:
        if len(own) >= NUM_PASSAGES:
            break
        own.setdefault(text)
    return list(own)


def positive_ranks(
    queries: torch.Tensor, passages: torch.Tensor, rows: Sequence[Row], texts: Sequence[str]
) -> list[list[int]]:
    """Return the ranks, from 1, of the passages that answer each query.

    A passage with the same cosine as another one counts as behind it.

    Args:
        queries: Vectors, of shape (queries, dimensions).
        passages: Vectors, of shape (passages, dimensions).
        texts: The passages.
    """
    places = {text: place for place, text in enumerate(texts)}
    answers: dict[str, set[int]] = {}
    for row in rows:
        answers.setdefault(row.query, set()).update(places[text] for text in row.passages[0])
    queries, passages = (torch.nn.functional.normalize(one, dim=-1) for one in (queries, passages))
    found = []
    for row, cosines in zip(rows, queries @ passages.T, strict=True):
        right = sorted(answers[row.query])
        wrong = torch.ones(len(texts), dtype=torch.bool)
        wrong[right] = False
        others = cosines[wrong]
        own = cosines[right].sort(descending=True).values
        ahead = [int((others >= one).sum()) for one in own]
        found.append([1 + place + number for place, number in enumerate(ahead)])
    return found


def _own_recipe(base: Path) -> Recipe | None:
    """Return how the base makes vectors; None if it does not say."""
    try:
        return read_recipe(base)
    except ArtifactError:
        return None


def vectors_of(
    network: Any, folder: Path, recipe: Recipe, texts: Sequence[str], what: str
) -> torch.Tensor:
    """Return the vectors of texts in float32, of shape (texts, dimensions)."""
    tokenizer, dense = load_tokenizer(folder), load_dense(folder, recipe)
    cased = [text.lower() if recipe.lowers_case else text for text in texts]
    token_ids = [tokenizer(text)["input_ids"] for text in cased]
    pad_id = 0 if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    found: list[torch.Tensor | None] = [None] * len(texts)
    done = 0
    with progress(f"vectors of the {what}", len(texts), "texts") as advance:
        for batch in batches_by_length([len(ids) for ids in token_ids], BATCH_SIZE):
            sizes = torch.tensor([len(token_ids[at]) for at in batch])
            longest = int(sizes.max())
            padded = [token_ids[at] + [pad_id] * (longest - len(token_ids[at])) for at in batch]
            mask = (torch.arange(longest) < sizes[:, None]).long().to(network.device)
            with torch.inference_mode():
                ids = torch.tensor(padded, device=network.device)
                states = network(input_ids=ids, attention_mask=mask).last_hidden_state.float()
                vectors = pooled(states, mask, recipe, dense).cpu()
            for at, vector in zip(batch, vectors, strict=True):
                found[at] = vector
            done += len(batch)
            advance(done)
    return torch.stack([one for one in found if one is not None])


def write_lines(path: Path, entries: Sequence[Figures]) -> None:
    """Write a JSON line for each entry."""
    lines = (json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)
    path.write_text("".join(lines), encoding="utf-8")

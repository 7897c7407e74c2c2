"""Any embedding model or reranker on rows of queries, in a folder or behind an endpoint.

An embedding model ranks the passages of all rows for each query; a reranker orders each query's
own passages.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.config import EvaluationConfig
from training.config.data import SourceConfig
from training.data.prepare import dataset_rows
from training.data.row import Row
from training.data.rows import Counts, stream_rows
from training.data.sources import open_source
from tuneline.core.artifact import Artifact, Input, new_artifact, open_artifact
from tuneline.core.dataset import HELDOUT_FILE
from tuneline.core.endpoint import Endpoint
from tuneline.core.errors import ConfigError, DataError
from tuneline.core.ranking import compare_ranks, rank_figures
from tuneline.models.prompts import read_prompts
from tuneline.models.source import ModelSource

RANKS_FILE = "ranking.jsonl"
SUMMARY_FILE = "ranking.json"

Prompts = Mapping[str, str]
"""The texts before a `query` and a `document`."""
Ranks = list[list[float]]
"""For each query the ranks, from 1, of the passages that answer it."""


@dataclass(frozen=True)
class Order:
    """How a model orders the passages of the rows.

    Attributes:
        by: The numbers that order them, in words.
        ranks: The ranks by the model.
        num_passages: The passages that are ordered, of all queries.
        lines: The row of each query.
    """

    by: str
    ranks: Ranks
    num_passages: int
    lines: list[int]


def has_queries(data: SourceConfig) -> bool:
    """Return whether the first row of a file is a query with passages.

    Raises:
        DataError: The row cannot be read.
    """
    first = next(iter(stream_rows([open_source(data, Path(), "--data")], Counts())), None)
    return first is not None and first.is_query


def evaluate_ranking(
    config: EvaluationConfig,
    data: Artifact | SourceConfig,
    model: ModelSource | Endpoint,
    out: Path,
    *,
    against: ModelSource | None = None,
    prompts: Prompts | None = None,
) -> Artifact:
    """Rank the passages of queries by a model, and by a second one for a comparison.

    Args:
        config: `num_rows` and `batch_size` are used: the requests in flight at an endpoint.
        data: A dataset artifact, whose held-out rows are taken, or files, whose rows are all taken.
        against: The model to compare with.
        prompts: The texts before queries and passages; by default a folder's own, and none for an
            endpoint, which adds none by itself.

    Returns:
        An artifact of kind `ranking`: the ranks of each query's answers, and their figures.

    Raises:
        ArtifactError: `out` exists, or a model cannot be loaded.
        ConfigError: One model gives vectors and the other one scores.
        DataError: The rows are not queries with passages to rank.
        ServerError: The endpoint does not answer, or gives neither vectors nor scores.
    """
    rows, where, own = _rows(config, data)
    recorded = config.model_dump(mode="json", include={"num_rows", "batch_size"})
    inputs = [own]
    if isinstance(model, Endpoint):
        recorded["endpoint"] = {"url": model.url, "model": model.model}
    else:
        inputs.append(model.as_input("model"))
    if against is not None:
        inputs.append(against.as_input("against"))
    with new_artifact(out, "ranking", config=recorded, inputs=inputs) as draft:
        found = (
            _by_endpoint(model, rows, where, prompts or {}, config.batch_size)
            if isinstance(model, Endpoint)
            else _by_folder(model, rows, where, prompts)
        )
        other = None if against is None else _by_folder(against, rows, where, prompts)
        if other is not None and other.by != found.by:
            raise ConfigError(
                f"--against orders passages by {other.by}, and the model by {found.by}; expected "
                "two embedding models or two rerankers"
            )
        base_ranks = found.ranks if other is None else other.ranks
        entries = [
            {"line": line, "ranks": own_ranks}
            | ({} if other is None else {"base_ranks": ranks_against})
            for line, own_ranks, ranks_against in zip(
                found.lines, found.ranks, base_ranks, strict=True
            )
        ]
        text = "".join(json.dumps(entry) + "\n" for entry in entries)
        (draft.dir / RANKS_FILE).write_text(text, encoding="utf-8")
        figures = {
            **(rank_figures(found.ranks) if other is None else
               compare_ranks(found.ranks, other.ranks)),
            "num_passages": found.num_passages,
            "order": found.by,
        }  # fmt: skip
        text = json.dumps(figures, indent=2) + "\n"
        (draft.dir / SUMMARY_FILE).write_text(text, encoding="utf-8")
        draft.metrics.update(figures)
    return open_artifact(out, kind="ranking")


def _rows(config: EvaluationConfig, data: Artifact | SourceConfig) -> tuple[list[Row], str, Input]:
    """Return the rows, the name of their file for messages, and the input for the manifest."""
    if isinstance(data, Artifact):
        where = str(data.path / HELDOUT_FILE)
        rows, own = dataset_rows(data, HELDOUT_FILE, config.num_rows), data.as_input("dataset")
    else:
        source = open_source(data, Path(), "--data")
        where = data.path
        rows = list(stream_rows([source], Counts()))[: config.num_rows]
        own = source.as_input().model_copy(update={"role": "data"})
    for row in rows:
        if not row.is_query:
            raise DataError(
                f"{where}: line {row.line}: is not a query with passages; expected rows of one "
                "kind, with a query and positive passages"
            )
    return rows, where, own


def _by_folder(
    model: ModelSource, rows: Sequence[Row], where: str, prompts: Prompts | None
) -> Order:
    from training.evaluation.reranking import scores_of
    from training.evaluation.retrieval import vectors_of
    from training.model import load_base, quiet_libraries, resolve_dtype
    from tuneline.models.classifier import is_classifier
    from tuneline.models.pairs import pair_reader
    from tuneline.models.tokenizer import load_tokenizer
    from tuneline.models.vectors import read_recipe

    quiet_libraries()
    what, dtype = f"model {model.name}", resolve_dtype("auto")
    if not is_classifier(model.path):
        recipe = read_recipe(model.path)
        known = prompts or read_prompts(model.path)
        network = load_base(model, dtype, task_type="FEATURE_EXTRACTION", what=what).eval()
        return _by_vectors(
            rows, known, lambda texts: vectors_of(network, model.path, recipe, texts, what)
        )
    tokenizer = load_tokenizer(model.path)
    read = pair_reader(model.path, tokenizer)
    network = load_base(model, dtype, task_type="SEQ_CLS", what=what).eval()

    def scores(lists: Sequence[tuple[str, Sequence[str]]]) -> list[list[float]]:
        pairs = [[read(query, passage) for passage in passages] for query, passages in lists]
        return scores_of(network, tokenizer, pairs, what)

    return _by_scores(rows, where, scores)


def _by_endpoint(
    endpoint: Endpoint, rows: Sequence[Row], where: str, prompts: Prompts, concurrency: int | None
) -> Order:
    import torch

    from training.evaluation.endpoint import DEFAULT_CONCURRENCY, REQUEST_TIMEOUT_S, ask_all
    from tuneline.core.environment import require
    from tuneline.core.openai_client import openai_client

    openai, limit = require("openai", "train"), concurrency or DEFAULT_CONCURRENCY

    def vectors_of(client: Any, texts: Sequence[str]) -> list[list[float]]:
        answer = client.embeddings.create(
            model=endpoint.model, input=list(texts), encoding_format="float"
        )
        data = sorted(answer.data, key=lambda one: one.index)
        if len(data) != len(texts):
            raise ValueError(f"{len(data)} vectors for {len(texts)} texts")
        return [one.embedding for one in data]

    def scores_of(client: Any, asked: tuple[str, Sequence[str]]) -> list[float]:
        query, passages = asked
        body = {"model": endpoint.model, "query": query, "documents": list(passages)}
        answer: Any = client.post("/rerank", cast_to=object, body=body)
        found = {one["index"]: float(one["relevance_score"]) for one in answer["results"]}
        return [found[place] for place in range(len(passages))]

    # One request first: it tells an embedding model from a reranker.
    with openai_client(endpoint, timeout_s=REQUEST_TIMEOUT_S, extra="train") as client:
        try:
            vectors_of(client, [rows[0].query])
        except (openai.BadRequestError, openai.NotFoundError):
            return _by_scores(
                rows,
                where,
                lambda lists: ask_all(endpoint, limit, lists, scores_of, "ranking", unit="queries"),
            )
        except openai.OpenAIError:
            pass  # the error of the first batch, which says what it means

    def vectors(texts: Sequence[str]) -> torch.Tensor:
        batches = [texts[at : at + BATCH_SIZE] for at in range(0, len(texts), BATCH_SIZE)]
        found = ask_all(endpoint, limit, batches, vectors_of, "ranking", unit="batches of texts")
        return torch.tensor([vector for batch in found for vector in batch])

    return _by_vectors(rows, prompts, vectors)


BATCH_SIZE = 16
"""Texts in a request for vectors."""


def _by_vectors(
    rows: Sequence[Row], prompts: Prompts, vectors: Callable[[Sequence[str]], Any]
) -> Order:
    from training.evaluation.retrieval import positive_ranks, ranked_passages

    passages = ranked_passages(rows, ())
    queries = [prompts.get("query", "") + row.query for row in rows]
    found = vectors([*queries, *(prompts.get("document", "") + one for one in passages)])
    ranks = positive_ranks(found[: len(rows)], found[len(rows) :], rows, passages)
    whole = [[float(rank) for rank in one] for one in ranks]
    return Order("cosines of vectors", whole, len(passages), [row.line for row in rows])


def _by_scores(
    rows: Sequence[Row],
    where: str,
    scores: Callable[[Sequence[tuple[str, Sequence[str]]]], list[list[float]]],
) -> Order:
    from training.evaluation.reranking import answer_ranks, passage_lists

    lists = passage_lists(rows)
    if not lists:
        raise DataError(
            f"{where}: no query has passages of both kinds; a reranker orders each query's own "
            "passages, so some must not answer it",
            hint="Try: rows with a column `negative`",
        )
    found = scores([(one.query, list(one.passages)) for one in lists])
    ranks = [
        answer_ranks(one.passages.values(), row) for one, row in zip(lists, found, strict=True)
    ]
    num_passages = sum(len(one.passages) for one in lists)
    return Order("scores", ranks, num_passages, [one.line for one in lists])

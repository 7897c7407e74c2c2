"""`tuneline evaluate` on rows of queries: folders, endpoints, and rows that do not fit."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from tests.commands import tuneline_here
from tests.cross_encoder import write_cross_encoder
from tests.integration.training.evaluation.model_server import serve_replies
from tests.integration.training.tiny import make_base
from training.config import EvaluationConfig
from training.config.data import SourceConfig
from training.evaluation.evaluate import evaluate_model
from training.evaluation.ranking import evaluate_ranking
from tuneline.core.artifact import Artifact
from tuneline.core.endpoint import Endpoint
from tuneline.core.errors import ConfigError, DataError, ServerError
from tuneline.models.source import ModelSource, resolve_model

ROWS: list[dict[str, Any]] = [
    {"query": "printer is jammed", "positive": ["open the rear tray"],
     "negative": ["reset the password", "pay the invoice"]},
    {"query": "cannot log in", "positive": ["reset the password"],
     "negative": ["ask the carrier", "open the rear tray"]},
    {"query": "parcel is late", "positive": ["ask the carrier", "track the parcel"],
     "negative": ["pay the invoice"]},
]  # fmt: skip
PASSAGES = [
    "open the rear tray", "reset the password", "pay the invoice", "ask the carrier",
    "track the parcel",
]  # fmt: skip
TEXTS = [*PASSAGES, *(row["query"] for row in ROWS)]
PROMPTS = {"query": "find: ", "document": "text: "}
CONFIG = EvaluationConfig()


def _file(folder: Path, rows: list[dict[str, Any]]) -> SourceConfig:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return SourceConfig(path=str(path))


def _ranks(result: Artifact) -> list[list[float]]:
    lines = (result.path / "ranking.jsonl").read_text().splitlines()
    return [json.loads(line)["ranks"] for line in lines]


def _places(row: dict[str, Any], scores: dict[str, float]) -> list[float]:
    """The ranks of a row's answers: each has the wrong passages and the better answers ahead."""
    wrong = [score for text, score in scores.items() if text not in row["positive"]]
    own = sorted((scores[text] for text in row["positive"]), reverse=True)
    return [1 + place + sum(one >= score for one in wrong) for place, score in enumerate(own)]


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    folder = tmp_path_factory.mktemp("embedder")
    make_base(folder)
    (folder / "config_sentence_transformers.json").write_text(json.dumps({"prompts": PROMPTS}))
    return resolve_model(str(folder))


def _vectors(folder: Path, texts: list[str]) -> torch.Tensor:
    """The normalized states of the last tokens, by transformers."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        states = [
            model(input_ids=torch.tensor([tokenizer(text)["input_ids"]])).last_hidden_state[0, -1]
            for text in texts
        ]
    return torch.nn.functional.normalize(torch.stack(states), dim=-1)


@pytest.mark.parametrize("prompts", [None, {"query": "", "document": "passage "}])
def test_an_embedding_model_ranks_all_passages(
    embedder: ModelSource, tmp_path: Path, prompts: dict[str, str] | None
) -> None:
    result = evaluate_ranking(
        CONFIG, _file(tmp_path, ROWS), embedder, tmp_path / "out", prompts=prompts
    )
    before = prompts or PROMPTS
    queries = _vectors(embedder.path, [before["query"] + row["query"] for row in ROWS])
    passages = _vectors(embedder.path, [before["document"] + text for text in PASSAGES])
    cosines = (queries @ passages.T).tolist()
    expected = [
        _places(row, dict(zip(PASSAGES, one, strict=True)))
        for row, one in zip(ROWS, cosines, strict=True)
    ]
    assert _ranks(result) == expected
    metrics = result.manifest.metrics
    assert (metrics["num_queries"], metrics["num_passages"]) == (3, 5)
    assert metrics["mrr"] == pytest.approx(sum(1 / one[0] for one in expected) / 3)
    assert metrics["recall"] == 1.0  # five passages are among the first ten
    low, high = metrics["ndcg_interval"]
    assert low <= metrics["ndcg"] <= high


def test_a_reranker_orders_the_passages_of_each_query(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    write_cross_encoder(folder, TEXTS)
    result = evaluate_ranking(
        CONFIG, _file(tmp_path, ROWS), resolve_model(str(folder)), tmp_path / "out"
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    expected = []
    for row in ROWS:
        texts = [*row["positive"], *row["negative"]]
        with torch.no_grad():
            scores = [
                float(model(**tokenizer(row["query"], text, return_tensors="pt")).logits[0, 0])
                for text in texts
            ]
        expected.append(_places(row, dict(zip(texts, scores, strict=True))))
    assert _ranks(result) == expected
    assert result.manifest.metrics["num_passages"] == 9


def test_two_models_are_compared_query_by_query(embedder: ModelSource, tmp_path: Path) -> None:
    make_base(tmp_path / "other", seed=1)
    other = resolve_model(str(tmp_path / "other"))
    data = _file(tmp_path, ROWS)
    both = evaluate_ranking(CONFIG, data, embedder, tmp_path / "both", against=other)
    alone = evaluate_ranking(CONFIG, data, other, tmp_path / "alone")
    metrics = both.manifest.metrics
    assert metrics["ndcg_base"] == alone.manifest.metrics["ndcg"]
    assert metrics["ndcg_difference"] == pytest.approx(metrics["ndcg"] - metrics["ndcg_base"])
    write_cross_encoder(tmp_path / "scores", TEXTS)
    with pytest.raises(ConfigError, match="two embedding models or two rerankers"):
        evaluate_ranking(
            CONFIG, data, embedder, tmp_path / "none",
            against=resolve_model(str(tmp_path / "scores")),
        )  # fmt: skip
    assert not (tmp_path / "none").exists()


ANGLES = dict(
    zip(["find: printer is jammed", *PASSAGES], [0.0, 0.1, 0.4, 0.2, 0.3, 0.5], strict=True)
)


def _embeddings(path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """Vectors of one plane at known angles, in reverse; the texts come in several requests."""
    assert path == "/v1/embeddings" and len(body["input"]) <= 16
    vectors = [
        {"object": "embedding", "index": index, "embedding": [math.cos(angle), math.sin(angle)]}
        for index, angle in enumerate(ANGLES.get(text, 1.5) for text in body["input"])
    ]
    return 200, {"object": "list", "model": "m", "data": vectors[::-1],
                 "usage": {"prompt_tokens": 1, "total_tokens": 1}}  # fmt: skip


def test_the_vectors_of_an_endpoint_rank_the_passages(tmp_path: Path) -> None:
    row = {"query": "printer is jammed", "positive": ["pay the invoice", "track the parcel"],
           "negative": [f"other {number}" for number in range(40)] + PASSAGES[:2]}  # fmt: skip
    with serve_replies(_embeddings) as url:
        result = evaluate_ranking(
            CONFIG, _file(tmp_path, [row]), Endpoint(url, "m", None), tmp_path / "out",
            prompts={"query": "find: "},
        )  # fmt: skip
    # By angle: tray 0.1, invoice 0.2, password 0.4, parcel 0.5, others 1.5.
    assert _ranks(result) == [[2, 4]]
    assert result.manifest.config["endpoint"] == {"url": url, "model": "m"}
    # 1 / log2(3) + 1 / log2(5), by the best order's 1 + 1 / log2(3)
    best = 1 + 1 / math.log2(3)
    assert result.manifest.metrics["ndcg"] == pytest.approx(
        (1 / math.log2(3) + 1 / math.log2(5)) / best
    )


def _rerank(path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    if path != "/v1/rerank":
        return 404, {"error": {"message": "Not Found"}}
    found = [
        {"index": index, "relevance_score": float(len(text))}
        for index, text in enumerate(body["documents"])
    ]
    return 200, {"results": sorted(found, key=lambda one: -one["relevance_score"])}


def test_a_server_without_vectors_is_asked_to_rerank(tmp_path: Path) -> None:
    with serve_replies(_rerank) as url:
        result = evaluate_ranking(
            CONFIG, _file(tmp_path, ROWS), Endpoint(url, "m", None), tmp_path / "out"
        )
    # The longer text is first; an answer as long as a wrong passage is behind it.
    assert _ranks(result) == [[2], [2], [1, 3]]
    assert result.manifest.metrics["order"] == "scores"


@pytest.mark.parametrize("status", [401, 500])
def test_an_endpoint_that_fails_is_named(tmp_path: Path, status: int) -> None:
    with (
        serve_replies(lambda _path, _body: (status, {"error": {"message": "no"}})) as url,
        pytest.raises(ServerError, match="batches of texts were answered"),
    ):
        evaluate_ranking(CONFIG, _file(tmp_path, ROWS), Endpoint(url, "m", None), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([ROWS[0], {"prompt": "a", "completion": "b"}], "line 2: is not a query with passages"),
        ([{"query": "a", "positive": [], "negative": ["b"]}], "line 1: no passage answers"),
    ],
)
def test_rows_that_cannot_be_ranked_are_named(
    embedder: ModelSource, tmp_path: Path, rows: list[dict[str, Any]], words: str
) -> None:
    with pytest.raises(DataError, match=words):
        evaluate_ranking(CONFIG, _file(tmp_path, rows), embedder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_reranker_needs_wrong_passages(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    write_cross_encoder(folder, TEXTS)
    rows = [{"query": "a", "positive": ["b"]}]
    with pytest.raises(DataError, match="no query has passages of both kinds"):
        evaluate_ranking(
            CONFIG, _file(tmp_path, rows), resolve_model(str(folder)), tmp_path / "out"
        )


def test_a_chat_model_is_not_asked_queries_as_prompts(
    embedder: ModelSource, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="line 1: is a query with passages"):
        evaluate_model(CONFIG, _file(tmp_path, ROWS), embedder, None, tmp_path / "out")


def test_the_command_ranks_rows_of_queries(embedder: ModelSource, tmp_path: Path) -> None:
    data = _file(tmp_path, ROWS).path
    asked = ("evaluate", "--model", str(embedder.path), "--data", data, "--out")
    done = tuneline_here(*asked, str(tmp_path / "a"), "--json")
    assert done.returncode == 0, done.stderr
    metrics = json.loads(done.stdout)["metrics"]
    assert metrics["order"] == "cosines of vectors" and metrics["num_queries"] == 3
    done = tuneline_here(*asked, str(tmp_path / "b"), "--adapter", str(tmp_path))
    assert done.returncode == 2, done.stderr
    assert "need a merged model" in done.stderr

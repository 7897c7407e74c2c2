"""Vectors on real vLLM, asked with the openai client, with keys and limits. The scores of a reward
model are in tests/e2e/line/test_rewards.py."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch
from prometheus_client.parser import text_string_to_metric_families

from loadtest import run_loadtest
from loadtest.config import LoadTestConfig
from serving import add_key, prove_classifier, prove_vectors, running_server
from serving.config import ServedParityConfig, ServingConfig
from serving.middleware.heartbeat import PROGRESS
from serving.supervisor.process import RunningServer
from serving.vectors import ROUTES, SENTENCE
from serving.vectors import TEXTS as PROOF_TEXTS
from tests.cross_encoder import write_cross_encoder
from training.config import EvaluationConfig
from training.config.data import SourceConfig
from training.evaluation.ranking import evaluate_ranking
from tuneline.core.endpoint import Endpoint
from tuneline.core.verdict import Verdict, read_verdict
from tuneline.models.source import ModelSource, resolve_model

TEXTS = ["I want a refund.", "프린터가 멈췄어요.", "one two three"]


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    file = tmp_path_factory.mktemp("keys") / "keys.toml"
    return {
        "file": str(file),
        "ops": add_key(file, "ops", {"tokens_per_minute": 1_000_000}),
        "few": add_key(file, "few", {"requests_per_minute": 3}),
        "others": add_key(file, "others", {"models": ["another"]}),
    }


@pytest.fixture(scope="module")
def server(
    base: ModelSource,
    keys: dict[str, str],
    serving_settings: dict[str, Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[RunningServer]:
    config = ServingConfig(
        **serving_settings, keys_file=keys["file"], routes=["embeddings", "pooling", "score"]
    )
    log_path = tmp_path_factory.mktemp("pooling") / "vllm.log"
    with running_server(config, base, name="tickets", log_path=log_path) as running:
        yield running


def client_of(server: RunningServer, key: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=server.endpoint.url, api_key=key, max_retries=0)


def own_vectors(base: ModelSource) -> list[list[float]]:
    """Return the normalized last states of the texts, by transformers."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base.path)
    model = AutoModel.from_pretrained(base.path, dtype=torch.float32).eval()
    found = []
    for text in TEXTS:
        with torch.no_grad():
            states = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        found.append((states[-1] / states[-1].norm()).tolist())
    return found


def test_the_openai_client_gets_the_vectors_of_the_model(
    server: RunningServer, keys: dict[str, str], base: ModelSource
) -> None:
    client = client_of(server, keys["ops"])
    before = tokens_of(server, "ops")
    floats = client.embeddings.create(model="tickets", input=TEXTS, encoding_format="float")
    by_default = client.embeddings.create(model="tickets", input=TEXTS)  # base64, decoded there
    raw = client.embeddings.with_raw_response.create(
        model="tickets", input=TEXTS, encoding_format="base64"
    )
    assert isinstance(raw.http_response.json()["data"][0]["embedding"], str)
    assert [entry.index for entry in floats.data] == [0, 1, 2]
    for own, one, other in zip(own_vectors(base), floats.data, by_default.data, strict=True):
        assert one.embedding == pytest.approx(own, abs=1e-4)
        assert other.embedding == pytest.approx(one.embedding, abs=1e-6)
    assert floats.usage.total_tokens > 0
    assert tokens_of(server, "ops") - before == 3 * floats.usage.total_tokens


def test_langchain_gets_the_vectors_of_texts(
    server: RunningServer, keys: dict[str, str], base: ModelSource
) -> None:
    from langchain_openai import OpenAIEmbeddings

    client = OpenAIEmbeddings(
        model="tickets", base_url=server.endpoint.url, api_key=keys["ops"],  # type: ignore[arg-type]
        check_embedding_ctx_length=False,
    )  # fmt: skip
    for own, vector in zip(own_vectors(base), client.embed_documents(TEXTS), strict=True):
        assert vector == pytest.approx(own, abs=1e-4)
    # By default it sends ids of OpenAI's tokenizer.
    with pytest.raises(openai.BadRequestError, match="check_embedding_ctx_length=False"):
        client_of(server, keys["ops"]).embeddings.create(model="tickets", input=[[5, 6], [7]])


def proof_endpoint(server: RunningServer, keys: dict[str, str]) -> Endpoint:
    return Endpoint(server.endpoint.url, "tickets", keys["ops"])


def test_the_served_vectors_are_proven(
    server: RunningServer, keys: dict[str, str], base: ModelSource, tmp_path: Path
) -> None:
    endpoint = proof_endpoint(server, keys)
    proof = prove_vectors(ServedParityConfig(), base, endpoint, tmp_path / "proof")
    assert read_verdict(proof) is Verdict.PASS
    report = json.loads((proof.path / "vectors.json").read_text())
    assert report["num_texts"] == report["num_equal_token_counts"] == 13
    assert report["dimensions"] == 128 and report["min_cosine"] > 0.999999
    assert 0 < report["max_relative_difference"] < 1e-4
    assert report["num_scores"] == 13 and 0 < report["max_cosine_difference"] < 1e-4


@pytest.mark.parametrize(
    ("routes", "given"),
    [(ROUTES, "lasttoken pooling, normalized"), ((), "lasttoken pooling, not normalized")],
    ids=["vectors", "scores only"],
)
def test_another_pooling_is_named(
    server: RunningServer, keys: dict[str, str], base: ModelSource, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, routes: tuple[str, ...], given: str,
) -> None:  # fmt: skip
    """The server gives the normalized last state; this folder says the mean, not normalized.

    A cosine does not show whether the vectors are normalized.
    """
    monkeypatch.setattr("serving.vectors.ROUTES", routes)
    folder = tmp_path / "mean"
    shutil.copytree(base.path, folder)
    modules = [{"type": "x.Transformer", "path": ""}, {"type": "x.Pooling", "path": "1_Pooling"}]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode": "mean"}')
    proof = prove_vectors(
        ServedParityConfig(), resolve_model(str(folder)), proof_endpoint(server, keys),
        tmp_path / "proof",
    )  # fmt: skip
    assert read_verdict(proof) is Verdict.FAIL
    assert proof.manifest.metrics["problems"][-1] == (
        f"the server gives {given}; expected mean pooling, not normalized"
    )


def load_of(endpoint: Endpoint, route: str, prompts: list[Any], out: Path) -> dict[str, Any]:
    config = LoadTestConfig.model_validate(
        {
            "scenarios": [{"name": "x", "concurrency": 2, "num_requests": 20}],
            "workload": {"route": route}, "num_warmup_requests": 2, "calibrate": False,
            "max_client_lag_s": 5.0,
        }
    )  # fmt: skip
    report = run_loadtest(config, endpoint, out, prompts=prompts).path / "report.json"
    found: dict[str, Any] = json.loads(report.read_text())
    return found


def test_a_load_test_of_vectors_counts_the_servers_tokens(
    server: RunningServer, keys: dict[str, str], tmp_path: Path
) -> None:
    prompts = [[{"role": "user", "content": text}] for text in TEXTS]
    found = load_of(proof_endpoint(server, keys), "embeddings", prompts, tmp_path / "load")
    (scenario,) = found["scenarios"]
    assert scenario["requests"]["succeeded"] == 20, scenario["errors"]
    asked = [client_of(server, keys["ops"]).embeddings.create(model="tickets", input=text)
             for text in TEXTS]  # fmt: skip
    counts = sorted(one.usage.prompt_tokens for one in asked)
    mean = scenario["tokens"]["num_prompt_tokens"] / 20
    assert counts[0] <= mean <= counts[-1]


def test_a_vector_counts_as_progress_of_the_engine(
    server: RunningServer, keys: dict[str, str]
) -> None:
    """A server that only gives vectors would count as stuck otherwise."""

    def progress() -> float:
        page = httpx.get(server.metrics_url).text
        samples = [s for family in text_string_to_metric_families(page) for s in family.samples]
        return sum(sample.value for sample in samples if sample.name in PROGRESS)

    before = progress()
    client_of(server, keys["ops"]).embeddings.create(model="tickets", input="x")
    assert progress() > before


def tokens_of(server: RunningServer, key: str) -> float:
    families = text_string_to_metric_families(httpx.get(server.metrics_url).text)
    (family,) = (one for one in families if one.name == "tuneline_key_tokens")
    return sum(s.value for s in family.samples
               if s.name.endswith("_total") and s.labels == {"key": key})  # fmt: skip


def test_each_text_of_a_list_counts_as_a_request(
    server: RunningServer, keys: dict[str, str]
) -> None:
    client = client_of(server, keys["few"])
    assert len(client.embeddings.create(model="tickets", input=TEXTS).data) == 3
    with pytest.raises(openai.RateLimitError):
        client.embeddings.create(model="tickets", input="x")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/embeddings", {"input": "x"}),
        ("/pooling", {"input": "x"}),
        ("/score", {"queries": "x", "documents": ["y"]}),
        ("/rerank", {"query": "x", "documents": ["y"]}),
        ("/v1/rerank", {"query": "x", "documents": ["y"], "top_n": 1}),
        ("/v2/rerank", {"query": "x", "documents": ["y"], "top_n": 1}),
    ],
)
def test_a_route_of_vectors_is_guarded(
    server: RunningServer, keys: dict[str, str], path: str, body: dict[str, Any]
) -> None:
    url = server.endpoint.url.removesuffix("/v1") + path
    body = {"model": "tickets", **body}

    def status(key: str | None, **fields: Any) -> int:
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        return httpx.post(url, json={**body, **fields}, headers=headers, timeout=60).status_code

    assert status(None) == status("wrong") == 401
    assert status(keys["others"]) == 403
    assert status(keys["ops"]) == 200
    assert status(keys["ops"], model="nope") == 404
    for harmless in ({"chat_template": "x"}, {"mm_processor_kwargs": {"x": 1}}):
        assert status(keys["ops"], **harmless) == 400


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/classify"])
def test_a_server_of_vectors_has_no_other_work(
    server: RunningServer, keys: dict[str, str], path: str
) -> None:
    url = server.endpoint.url.removesuffix("/v1") + path
    headers = {"authorization": f"Bearer {keys['ops']}"}
    answer = httpx.post(url, json={"model": "tickets"}, headers=headers, timeout=60)
    assert (answer.status_code, answer.json()["error"]["type"]) == (404, "NotFoundError")


@pytest.fixture(scope="module")
def cross_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cross-encoder")
    write_cross_encoder(folder, [*PROOF_TEXTS, SENTENCE])
    return folder


@pytest.fixture(scope="module")
def scores(
    cross_encoder: Path, serving_settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningServer]:
    config = ServingConfig(**serving_settings, routes=["score", "classify"])
    log_path = tmp_path_factory.mktemp("scores") / "vllm.log"
    model = resolve_model(str(cross_encoder))
    with running_server(config, model, name="scores", log_path=log_path) as running:
        yield running


def test_the_served_scores_are_proven(
    scores: RunningServer, cross_encoder: Path, tmp_path: Path
) -> None:
    proof = prove_classifier(
        ServedParityConfig(), resolve_model(str(cross_encoder)), scores.endpoint, tmp_path / "proof"
    )
    assert read_verdict(proof) is Verdict.PASS
    report = json.loads((proof.path / "scores.json").read_text())
    assert (report["num_texts"], report["num_pairs"]) == (13, 13)
    assert report["num_equal_token_counts"] == 26
    assert 0 < report["max_relative_difference"] < 1e-4
    # The autoscaler's objective of a server of scores.
    page = httpx.get(scores.endpoint.url.removesuffix("/v1") + "/metrics").text
    (whole,) = re.findall(r"vllm:e2e_request_latency_seconds_count{.*} (.*)", page)
    assert float(whole) >= 26
    assert report["served"]["classify"][0]["label"] == "LABEL_0"


def test_a_load_test_of_scores_counts_the_servers_tokens(
    scores: RunningServer, tmp_path: Path
) -> None:
    pair = [{"role": "user", "content": text} for text in PROOF_TEXTS[:3]]
    found = load_of(scores.endpoint, "rerank", [pair], tmp_path / "load")
    (scenario,) = found["scenarios"]
    assert scenario["requests"]["succeeded"] == 20, scenario["errors"]
    assert scenario["tokens"]["num_prompt_tokens"] > 20


@pytest.mark.parametrize(
    ("file", "old", "new", "fault"),
    [
        ("config.json", "{", '{"problem_type": "regression",', "the sigmoid of the logits"),
        ("tokenizer.json", '"type_id": 1', '"type_id": 0', "/score: logits differ by up to"),
    ],
)  # fmt: skip
def test_the_scores_of_another_folder_are_named(
    scores: RunningServer, cross_encoder: Path, tmp_path: Path,
    file: str, old: str, new: str, fault: str,
) -> None:  # fmt: skip
    folder = tmp_path / "other"
    shutil.copytree(cross_encoder, folder)
    text = (folder / file).read_text()
    assert old in text
    (folder / file).write_text(text.replace(old, new, 1 if file == "config.json" else -1))
    proof = prove_classifier(
        ServedParityConfig(), resolve_model(str(folder)), scores.endpoint, tmp_path / "proof"
    )
    assert read_verdict(proof) is Verdict.FAIL
    assert fault in "\n".join(proof.manifest.metrics["problems"])


QUERIES = [
    {"query": text, "positive": [PROOF_TEXTS[at]],
     "negative": [PROOF_TEXTS[(at + step) % 8] for step in (2, 5)]}
    for at, text in enumerate(TEXTS)
]  # fmt: skip


def ranks_of(folder: Path) -> list[list[float]]:
    lines = (folder / "ranking.jsonl").read_text().splitlines()
    return [json.loads(line)["ranks"] for line in lines]


@pytest.mark.parametrize("kind", ["vectors", "scores"])
def test_a_server_ranks_passages_as_its_folder_does(
    kind: str, request: pytest.FixtureRequest, base: ModelSource, tmp_path: Path,
) -> None:  # fmt: skip
    if kind == "vectors":
        endpoint = proof_endpoint(
            request.getfixturevalue("server"), request.getfixturevalue("keys")
        )
        model = base
    else:
        endpoint = request.getfixturevalue("scores").endpoint
        model = resolve_model(str(request.getfixturevalue("cross_encoder")))
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in QUERIES))
    data = SourceConfig(path=str(path))
    served = evaluate_ranking(EvaluationConfig(), data, endpoint, tmp_path / "served")
    local = evaluate_ranking(EvaluationConfig(), data, model, tmp_path / "local")
    assert len(ranks_of(served.path)) == len(QUERIES)
    assert ranks_of(served.path) == ranks_of(local.path)
    wanted = "scores" if kind == "scores" else "cosines of vectors"
    assert served.manifest.metrics["order"] == local.manifest.metrics["order"] == wanted

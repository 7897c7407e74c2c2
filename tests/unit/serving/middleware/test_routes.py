"""The table of routes: what is open, and what a drain refuses."""

import pytest

from serving.middleware.routes import ROUTES, find_route, open_routes

ALWAYS = {
    "/v1/chat/completions", "/v1/completions", "/v1/models", "/health", "/ready", "/metrics",
    "/version",
}  # fmt: skip


def test_only_these_routes_are_open() -> None:
    assert open_routes(()).keys() == ALWAYS


@pytest.mark.parametrize(
    ("option", "paths"),
    [
        ("responses", {"/v1/responses"}),
        ("messages", {"/v1/messages", "/v1/messages/count_tokens"}),
        ("tokenize", {"/tokenize", "/detokenize"}),
        ("page", {"/chat"}),
    ],
)
def test_an_option_opens_its_routes(option: str, paths: set[str]) -> None:
    assert open_routes((option,)).keys() - ALWAYS == paths


@pytest.mark.parametrize(
    ("option", "paths"),
    [
        ("embeddings", {"/v1/embeddings"}),
        ("pooling", {"/pooling"}),
        ("classify", {"/classify"}),
        ("score", {"/score", "/rerank", "/v1/rerank", "/v2/rerank"}),
    ],
)
def test_routes_of_vectors_take_the_place_of_text(option: str, paths: set[str]) -> None:
    text = {"/v1/chat/completions", "/v1/completions"}
    assert open_routes((option, "tokenize")).keys() == ALWAYS - text | paths | {
        "/tokenize", "/detokenize",
    }  # fmt: skip


def test_a_drain_refuses_only_what_runs_the_model() -> None:
    work = {path for path, route in ROUTES.items() if route.is_work}
    assert work == {
        "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages",
        "/v1/embeddings", "/pooling", "/classify", "/score", "/rerank", "/v1/rerank", "/v2/rerank",
    }  # fmt: skip
    assert all(route.names_model for route in ROUTES.values() if route.is_work)


def test_only_probes_and_metrics_answer_without_a_key() -> None:
    without = {path for path, route in ROUTES.items() if route.is_open}
    assert without == {"/health", "/ready", "/metrics", "/version"}


@pytest.mark.parametrize("path", ["/v1/models/", "/v1/models", "/v1/modelsx/a", "/v1/models/a"])
def test_one_model_has_a_route(path: str) -> None:
    expected = {"/v1/models": True, "/v1/models/a": True}
    assert (find_route(path, open_routes(())) is not None) == expected.get(path, False)

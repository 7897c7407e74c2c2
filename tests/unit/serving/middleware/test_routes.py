"""The table of routes: what is open, and what a drain refuses."""

from serving.middleware.routes import ROUTES


def test_only_these_routes_are_open() -> None:
    assert set(ROUTES) == {
        "/v1/chat/completions", "/v1/completions", "/v1/models", "/health", "/ready", "/metrics",
        "/version",
    }  # fmt: skip


def test_a_drain_refuses_only_what_runs_the_model() -> None:
    work = {path for path, route in ROUTES.items() if route.is_work}
    assert work == {"/v1/chat/completions", "/v1/completions"}

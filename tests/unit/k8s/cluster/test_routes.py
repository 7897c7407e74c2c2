"""The status of a route says whether its weights mean anything."""

from __future__ import annotations

from typing import Any

import pytest

from k8s.cluster.routes import route_problem


def route(*conditions: dict[str, Any], generation: int = 3) -> dict[str, Any]:
    parent = {"parentRef": {"name": "public"}, "conditions": list(conditions)}
    return {"metadata": {"generation": generation}, "status": {"parents": [parent]}}


def condition(kind: str, status: str = "True", reason: str = "", seen: int = 3) -> dict[str, Any]:
    return {
        "type": kind, "status": status, "reason": reason, "message": "why",
        "observedGeneration": seen,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("item", "words"),
    [
        (route(condition("Accepted"), condition("ResolvedRefs")), ""),
        (route(condition("Accepted"), condition("Else", "False")), ""),
        ({"metadata": {"generation": 1}}, "no gateway has taken it"),
        (
            route(condition("Accepted"), condition("ResolvedRefs", "False", "BackendNotFound")),
            "gateway public: BackendNotFound: why",
        ),
        (route(condition("Accepted", seen=2)), "gateway public: has not seen the last change"),
    ],
)
def test_a_route_that_no_gateway_follows_says_why(item: dict[str, Any], words: str) -> None:
    found = route_problem(item)
    assert words in found
    assert bool(found) == bool(words)

"""The shares of a route's rules."""

from __future__ import annotations

from typing import Any

import pytest

from k8s.cluster.shares import give_share
from tuneline.core.errors import ConfigError


def rule(path: str, **weights: int) -> dict[str, Any]:
    backends = [{"name": name, "port": 8000, "weight": weight} for name, weight in weights.items()]
    return {"matches": [{"path": {"value": path}}], "backendRefs": backends}


def test_each_rule_with_the_stable_server_gives_the_share() -> None:
    rules = [rule("/v1", a=100), rule("/docs", c=100), rule("/v2", a=100), {"filters": []}]
    assert give_share(rules, "a", "b", 5) == [
        rule("/v1", a=95, b=5), rule("/docs", c=100), rule("/v2", a=95, b=5), {"filters": []},
    ]  # fmt: skip
    assert rules[0] == rule("/v1", a=100)


@pytest.mark.parametrize(
    ("before", "weight", "after"),
    [
        ({"a": 95, "b": 5}, 25, {"a": 75, "b": 25}),
        ({"a": 95, "b": 5}, 100, {"a": 0, "b": 100}),
        ({"a": 0, "b": 100}, 0, {"a": 100}),
        ({"a": 100}, 0, {"a": 100}),
        ({"a": 100, "old": 0}, 5, {"a": 95, "b": 5}),
        ({"a": 85, "b": 5, "c": 10}, 0, {"a": 90, "c": 10}),
        ({"a": 90, "c": 10}, 0, {"a": 90, "c": 10}),
    ],
)
def test_the_stable_server_has_the_rest(
    before: dict[str, int], weight: int, after: dict[str, int]
) -> None:
    assert give_share([rule("/", **before)], "a", "b", weight) == [rule("/", **after)]


def test_a_pool_keeps_its_kind() -> None:
    pool = {"group": "inference.networking.k8s.io", "kind": "InferencePool", "name": "a"}
    (found,) = give_share([{"backendRefs": [pool]}], "a", "b", 10)
    assert found["backendRefs"] == [{**pool, "weight": 90}, {**pool, "name": "b", "weight": 10}]


def test_a_third_server_with_a_share_is_refused() -> None:
    rules = [rule("/docs", c=100), rule("/v1", a=90, c=10)]
    with pytest.raises(ConfigError, match=r"HTTPRoute/a: spec.rules\[1\]: c has a share too"):
        give_share(rules, "a", "b", 5)


@pytest.mark.parametrize(
    ("rules", "words"),
    [([], "send to no server"), ([rule("/", c=1, b=1)], "send to b, c; expected a rule")],
)
@pytest.mark.parametrize("weight", [0, 5])
def test_a_route_without_the_stable_server_is_refused(
    weight: int, rules: list[dict[str, Any]], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        give_share(rules, "a", "b", weight)

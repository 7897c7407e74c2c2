"""The artifact behind a served name, by the server's list of models."""

from __future__ import annotations

import json

import pytest

from loadtest.client import server_check
from loadtest.client.server_check import probe
from tuneline.core.endpoint import Endpoint

OWN, OTHER = "tickets@0123456789ab", "replies@ba9876543210"
MERGED = {"tickets": None, "stable": None, OWN: None}
ADAPTER = {"tickets-base": None, "tickets": "tickets-base", "stable": "tickets-base",
           OWN: "tickets-base"}  # fmt: skip
LATER = {"replies": "tickets", OTHER: "tickets"}


@pytest.mark.parametrize(
    ("model", "parents", "expected"),
    [
        ("tickets", MERGED, OWN),
        (OWN, MERGED, OWN),
        ("stable", MERGED, OWN),
        ("stable", ADAPTER, OWN),
        ("tickets-base", ADAPTER, None),
        ("stable", MERGED | LATER, OWN),
        ("replies", MERGED | LATER, OTHER),
        ("stable", MERGED | {OTHER: None}, None),
        ("tickets", MERGED | {OTHER: None}, OWN),
        ("stable", {"stable": None}, None),
    ],
)
def test_an_alias_has_the_digest_of_its_artifact(
    model: str,
    parents: dict[str, str | None],
    expected: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    entries = [{"id": name, "parent": parent} for name, parent in parents.items()]
    body = json.dumps({"object": "list", "data": entries}).encode()
    monkeypatch.setattr(server_check, "ask", lambda *_given, **_more: (200, body, {}))
    served = probe(Endpoint("http://127.0.0.1:1/v1", model))
    assert served.names == list(parents)
    assert served.artifact_name == expected
    assert served.short_digest == (expected and expected.partition("@")[2])


@pytest.mark.parametrize(
    "body", [b'["tickets"]', b'{"data": {"a": 1}}', b'{"data": [5]}', b"{}", b"5", b'{"data": []}']
)
def test_a_list_without_names_is_not_a_list_of_models(body: bytes) -> None:
    assert server_check._parents(body) == {}


def test_names_of_models_hold_no_control_character() -> None:
    body = json.dumps({"data": [{"id": "tickets", "parent": "b"}, {"id": "ev\x1b[31mil"}]}).encode()
    assert server_check._parents(body) == {"tickets": "b", "ev\ufffd[31mil": None}

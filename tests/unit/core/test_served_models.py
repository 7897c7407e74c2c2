"""The only name in a server's list of models."""

from typing import Any

import pytest

from tuneline.core.errors import ConfigError
from tuneline.core.served_models import chosen_name, listed_names

URL = "http://127.0.0.1:8000/v1"


def document(*names: str) -> dict[str, Any]:
    return {"object": "list", "data": [{"id": name} for name in names]}


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (document("tickets"), "tickets"),
        (document("tickets", "tickets@6e7e5f66e80c"), "tickets"),
        (document("@cf/base"), "@cf/base"),
        ([{"id": "tickets"}], "tickets"),
    ],
)
def test_the_only_name_is_taken(body: Any, expected: str) -> None:
    assert chosen_name(URL, listed_names(body)) == expected


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (document("base", "tickets", "tickets@6e7e"), "lists base, tickets\n"),
        (document(*(f"m{number}" for number in range(10))), "m7 and 2 more\n"),
        (document(), "lists no models"),
        (None, "lists no models"),
        ({"data": {"id": "x"}}, "lists no models"),
        ({"data": [{"id": 5}, "x", {}]}, "lists no models"),
    ],
)
def test_no_name_or_several_are_an_error(body: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=f"--model is required here: .*{words}"):
        chosen_name(URL, listed_names(body))


def test_a_url_without_a_path_is_told_of_v1() -> None:
    with pytest.raises(ConfigError) as caught:
        chosen_name("http://127.0.0.1:8000", [])
    assert caught.value.hint == "Try the URL http://127.0.0.1:8000/v1, or --model NAME"

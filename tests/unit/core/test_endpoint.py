"""Keys and URLs that a header or a report must not take as they are."""

import pytest

from tuneline.core.endpoint import Endpoint, read_key, split_url
from tuneline.core.errors import ConfigError


def test_a_key_is_taken_without_the_line_break_of_its_file() -> None:
    assert read_key({"KEY": "abc-123\n"}, "KEY") == "abc-123"
    assert read_key({"KEY": " \n"}, "KEY") is None
    assert read_key({}, "KEY") is None


@pytest.mark.parametrize("key", ["two words", "dash \u2013", "a\nb", "t\u00e9"])
def test_a_key_that_no_header_carries_is_refused_without_being_shown(key: str) -> None:
    with pytest.raises(ConfigError, match="KEY") as caught:
        read_key({"KEY": key}, "KEY")
    assert key not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "127.0.0.1:8000",
        "ftp://host/v1",
        "http://",
        "http://h:0/v1",
        "http://h:x/v1",
        "http://h/v 1",
    ],
)
def test_text_that_is_not_a_url_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="Try: --url http"):
        split_url(url)


def test_a_password_in_a_url_is_refused_without_being_shown() -> None:
    with pytest.raises(ConfigError, match="not sent") as caught:
        split_url("http://user:topsecret@host:8000/v1")
    assert "topsecret" not in str(caught.value)


@pytest.mark.parametrize("url", ["http://h/v1?api_key=topsecret", "http://h/v1#topsecret"])
def test_a_key_behind_a_url_is_refused_without_being_shown(url: str) -> None:
    with pytest.raises(ConfigError, match="not sent") as caught:
        split_url(url)
    assert "topsecret" not in str(caught.value)


@pytest.mark.parametrize(
    ("host", "is_local"),
    [
        ("127.0.0.1", True),
        ("127.0.0.2:8000", True),
        ("[::1]:8000", True),
        ("localhost:8000", True),
        ("10.0.0.1", False),
        ("localhost.example.com", False),
    ],
)
def test_every_address_of_the_loopback_interface_is_local(host: str, is_local: bool) -> None:
    assert Endpoint(f"http://{host}/v1", "m").is_local is is_local

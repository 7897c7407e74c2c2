"""The key of a compile cache: what separates two caches, and what must not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from serving.command.arguments import explain_server, served_names, server_flags
from serving.config import ServingConfig
from serving.kernels.key import cache_name, cache_parts
from tuneline.models.source import ModelSource

DIGESTS = ["sha256:" + "0123456789abcdef" * 4]


def name_of(
    digests: list[str] = DIGESTS, place: dict[str, Any] | None = None, **serving: Any
) -> str:
    places: dict[str, Any] = {
        "model": "/runs/a/model-1", "served_names": served_names("a", DIGESTS[0]),
        "host": "127.0.0.1", "port": 8000,
    }  # fmt: skip
    flags = server_flags(ServingConfig(**serving), adapter=None, **(places | (place or {})))
    return cache_name(cache_parts(flags, digests))


@pytest.mark.parametrize(
    "place",
    [
        {"port": 41234},
        {"host": "0.0.0.0"},  # noqa: S104 (nothing listens)
        {"model": "/elsewhere/model-1"},
        {"served_names": ["b", "b@0123456789ab"]},
        {"template_defaults": {"enable_thinking": False}},
    ],
    ids=lambda place: next(iter(place)),
)
def test_the_place_of_a_server_is_not_in_the_key(place: dict[str, Any]) -> None:
    assert name_of(place=place) == name_of()


@pytest.mark.parametrize(
    "serving",
    [
        {"shutdown_timeout": 7},
        {"ready_timeout_s": 50},
        {"log_format": "json"},
        {"port": 8001},
        {"extra_args": {"stream_interval": 8, "scheduling_policy": "priority"}},
        {"extra_args": {"tool_call_parser": "hermes", "enable_auto_tool_choice": True}},
        {"extra_args": {"allowed_origins": ["https://a.example"], "chat_template": "a.jinja"}},
        {"limits": {"max_tokens": 64}},
    ],
    ids=str,
)
def test_settings_that_compile_nothing_are_not_in_the_key(serving: dict[str, Any]) -> None:
    assert name_of(**serving) == name_of()


@pytest.mark.parametrize(
    "serving",
    [
        {"dtype": "float32"},
        {"max_model_len": 512},
        {"max_num_seqs": 8},
        {"tensor_parallel_size": 2},
        {"enforce_eager": True},
        {"extra_args": {"compilation_config": {"mode": 0}}},
    ],
    ids=lambda serving: next(iter(serving)),
)
def test_settings_that_compile_other_kernels_are_in_the_key(serving: dict[str, Any]) -> None:
    assert name_of(**serving) != name_of()


def test_another_artifact_has_another_cache() -> None:
    other = ["sha256:" + "f" * 64]
    assert name_of(other) != name_of()
    assert name_of([*DIGESTS, *other]) != name_of()


def test_eager_servers_share_one_cache(tmp_path: Path) -> None:
    """They compile no part of a model, so a new artifact starts warm."""
    eager = name_of(enforce_eager=True)
    assert name_of(["sha256:" + "f" * 64], enforce_eager=True, max_model_len=512) == eager


def test_versions_of_vllm_have_caches_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    before = name_of(enforce_eager=True), name_of()
    monkeypatch.setattr("serving.kernels.key.vllm_version", lambda: "99.0")
    assert name_of(enforce_eager=True) != before[0]
    assert name_of() != before[1]


def test_the_parts_hold_no_variable_of_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ModelSource("m", tmp_path, DIGESTS[0], "model")
    monkeypatch.setenv("VLLM_API_KEY", "secret-of-this-process")
    monkeypatch.setenv("TUNELINE_INSTANCE", "instance-of-this-process")
    flags = explain_server(ServingConfig(port=41234), model, name="run-of-this-process")
    parts = str(cache_parts([flag for flag in flags if "=" not in flag.words[0]], DIGESTS))
    assert "of-this-process" not in parts
    assert "41234" not in parts
    assert str(tmp_path) not in parts

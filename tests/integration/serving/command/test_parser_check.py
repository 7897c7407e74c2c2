"""vLLM's own parser refuses bad flags before anything is trained, each with its key."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from serving.command import parser_check
from serving.command.flags import Flag, configured_flags, flag_words
from serving.command.parser_check import check_flags
from serving.command.parser_worker import problems_of
from serving.config import ServingConfig
from serving.supervisor.diagnosis import why_not_loaded
from tuneline.core.errors import ConfigError, ServerError
from tuneline.models.source import ModelSource, embedded_base

BAD = {
    "no_such_flag": (1, "vLLM has no flag --no-such-flag"),
    "swap_space": (4, "vLLM has no flag --swap-space"),
    "max_num_queued_req": (8, "did you mean --max-num-queued-reqs?"),
    "served_model": ("x", "vLLM has no flag --served-model;"),
    "max_num_queued_reqs": ("abc", "abc cannot be converted"),
    "block_size": (17.5, "invalid"),
    "tool_call_parser": (["a", "b"], "unrecognized arguments: b"),
    "kv_cache_dtype": ("nonsense", "invalid choice"),
    "structured_outputs_config": ({"backend": "nonsense"}, "backend"),
    "help": (True, ""),
    "chat_template": ("no-such-file.jinja", None),
}


def test_every_bad_flag_is_named() -> None:
    flags = [*configured_flags(ServingConfig(dtype="float32", max_model_len=512))]
    flags += [Flag(flag_words(name, value), name) for name, (value, _) in BAD.items()]
    found = zip(flags, problems_of([flag.words for flag in flags]), strict=True)
    problems = {flag.reason: problem for flag, problem in found if problem is not None}
    expected = {name: text for name, (_, text) in BAD.items() if text is not None}
    assert problems.keys() == expected.keys()
    for name, text in expected.items():
        assert text in problems[name], problems[name]


def test_flags_that_contradict_are_refused() -> None:
    flags = configured_flags(ServingConfig(extra_args={"enable_auto_tool_choice": True}))
    *each, together = problems_of([flag.words for flag in flags])
    assert each == [None] * len(flags)
    assert together is not None and "requires --tool-call-parser" in together


def test_a_bad_flag_is_refused_by_its_key_and_good_flags_are_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache" / "flags.json"
    monkeypatch.setattr(parser_check, "cache_file", lambda: cache)
    with pytest.raises(ConfigError) as caught:
        check_flags(ServingConfig(extra_args={"seed": 3, "swap_space": 4}))
    (problem,) = caught.value.problems
    assert problem.startswith("serving.extra_args.swap_space: vLLM has no flag --swap-space")
    assert caught.value.exit_code == 2
    assert not cache.exists()
    good = ServingConfig(extra_args={"seed": 3})
    found = check_flags(good)
    assert "takes all" in found
    assert len(json.loads(cache.read_text())) == 1
    monkeypatch.setattr(parser_check, "flag_problems", lambda _: pytest.fail("asked again"))
    assert check_flags(good) == found


def test_a_server_that_dies_of_a_flag_names_its_key() -> None:
    death = ServerError("vLLM died while loading")
    sound = ModelSource("tiny-base", embedded_base(), "sha256:0", "base-model")
    config = ServingConfig(extra_args={"no_such_flag": 1})
    found = why_not_loaded(death, sound, config)
    assert found.exit_code == 2
    assert "serving.extra_args.no_such_flag: vLLM has no flag --no-such-flag" in found.message

"""vLLM's own parser refuses bad flags before anything is trained, each with its key."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from serving.command import parser_check
from serving.command.flags import Flag, configured_flags, flag_words
from serving.command.parser_check import check_flags, flag_problems
from serving.config import ServingConfig
from tuneline.core.errors import ConfigError

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


def test_every_bad_flag_is_named_with_its_key() -> None:
    flags = [*configured_flags(ServingConfig(dtype="float32", max_model_len=512))]
    flags += [Flag(flag_words(name, value), name) for name, (value, _) in BAD.items()]
    problems = dict(problem.split(": ", 1) for problem in flag_problems(flags))
    expected = {name: text for name, (_, text) in BAD.items() if text is not None}
    assert problems.keys() == expected.keys()
    for name, text in expected.items():
        assert text in problems[name], problems[name]


def test_flags_that_contradict_are_refused_and_good_flags_are_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache" / "flags.json"
    monkeypatch.setattr(parser_check, "cache_file", lambda: cache)
    contradiction = ServingConfig(extra_args={"enable_auto_tool_choice": True})
    with pytest.raises(ConfigError, match="requires --tool-call-parser") as caught:
        check_flags(contradiction)
    assert caught.value.exit_code == 2
    assert not cache.exists()
    good = ServingConfig(extra_args={"seed": 3})
    found = check_flags(good)
    assert "takes all" in found
    assert len(json.loads(cache.read_text())) == 1
    monkeypatch.setattr(parser_check, "flag_problems", lambda _: pytest.fail("asked again"))
    assert check_flags(good) == found

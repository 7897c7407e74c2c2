"""The list of servers of a sweep."""

from __future__ import annotations

from pathlib import Path

import pytest

from tuneline.core.errors import ConfigError
from tuneline.pipeline.server_sweep import read_servers


def test_each_server_has_its_settings(tmp_path: Path) -> None:
    file = tmp_path / "servers.yaml"
    file.write_text("- name: own\n- {name: few, set: {serving.max_num_seqs: 8}}\n")
    assert read_servers(file) == {"own": {}, "few": {"serving.max_num_seqs": 8}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a list of servers"),
        ("[]", "expected a list of servers"),
        ("{name: own}", "expected a list of servers"),
        ("- own", "entry 1: the entry: "),
        ("- {set: {}}", "entry 1: name: "),
        ("- {name: a, settings: {}}", "entry 1: settings: "),
        ("- {name: a}\n- {name: a}", "entry 2: name a is there twice"),
        ("- {name: a, set: {training.r: 4}}", "entry 1: training.r: expected keys below serving"),
        ("- {name: [", "is not YAML"),
    ],
)
def test_a_list_that_cannot_be_used(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "servers.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_servers(file)
    assert message in caught.value.message
    assert caught.value.exit_code == 2


def test_a_list_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read_servers(tmp_path / "none.yaml")

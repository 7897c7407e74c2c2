"""Dollar signs in arguments and variables, which the kubelet reads as references."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from benchmarks.kubelet import Node, Pod
from k8s.rules.objects import expanded, flags
from serving.config import ServingConfig

Render: TypeAlias = Callable[..., Path]
ObjectsOf: TypeAlias = Callable[..., list[dict[str, Any]]]


@pytest.mark.parametrize(
    "text", ["$(HOME)", "$$(HOME)", "$$$(HOME)", "$", "$$", "$HOME", "^a$|^b$", "$(", "$()", "a$$b"]
)
def test_a_dollar_reaches_vllm_as_it_was_written(
    tmp_path: Path, render_run: Render, objects_of: ObjectsOf, text: str
) -> None:
    serving = ServingConfig(extra_args={"pattern": text})
    out = render_run(tmp_path / "out", serving=serving, served_env={"PATTERN": text})
    node = Node({"/tmp": tmp_path}, {"api-key": "k"}, tmp_path)  # noqa: S108
    pod = Pod.of(objects_of(out), node, tmp_path / "log")
    assert pod.environment()["HOME"] == "/cache"
    assert flags(pod.command())["--pattern"] == [text]
    assert pod.environment()["PATTERN"] == text


def test_the_kubelet_expands_a_reference_to_a_variable_that_is_set() -> None:
    # The cases of k8s.io/kubernetes/third_party/forked/golang/expansion.
    values = {"A": "a", "EMPTY": ""}
    cases = {
        "$(A)": "a", "x-$(A)-$(EMPTY)": "x-a-", "$$(A)": "$(A)", "$$$(A)": "$a", "$(B)": "$(B)",
        "$$": "$", "$": "$", "$A": "$A", "$(A": "$(A", "$(A)$(A)": "aa", "$($(A))": "$($(A))",
    }  # fmt: skip
    assert {text: expanded(text, values) for text in cases} == cases

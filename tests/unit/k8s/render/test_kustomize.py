"""YAML that every reader reads as the same strings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from k8s.render.kustomize import build, dump_yaml

# Read as a boolean, a number or nothing by YAML 1.1, by YAML 1.2 or by Go's readers.
TRAPS = [
    "y", "N", "yes", "On", "off", "true", "null", "~", "", "1e5", "123456789e01", "012345678901",
    "0x1f", "1_000", ".5", "1:30", "0123456789ab", "+1", "NaN", ".inf", "- a", "a: b", "#a", "*a",
    " a", "a\n", "<b>&</b>", "=", "2026-11-28", "!tag", "%x", "@a", "é",
]  # fmt: skip


def test_a_part_that_appears_twice_is_written_twice() -> None:
    part = {"drop": ["ALL"]}
    assert dump_yaml({"a": part, "b": part}) == "a:\n  drop:\n  - ALL\nb:\n  drop:\n  - ALL\n"


def test_kubectl_reads_the_strings_that_were_written(tmp_path: Path) -> None:
    data = {f"k{index}": text for index, text in enumerate(TRAPS)}
    item = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "y", "namespace": "n", "labels": {"a": "123456789e01"}},
        "data": data,
    }
    (tmp_path / "item.yaml").write_text(dump_yaml(item), encoding="utf-8")
    kustomization = {
        "resources": ["item.yaml"],
        "namePrefix": "y-",
        "labels": [{"pairs": {"b": "1e5", "c": "y"}}],
    }
    (tmp_path / "kustomization.yaml").write_text(dump_yaml(kustomization), encoding="utf-8")
    (found,) = build(tmp_path) or []
    assert found["data"] == data
    assert found["metadata"]["name"] == "y-y"
    assert found["metadata"]["labels"] == {"a": "123456789e01", "b": "1e5", "c": "y"}


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    st.recursive(
        st.text(max_size=8) | st.sampled_from(TRAPS) | st.integers() | st.booleans() | st.none(),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.text(min_size=1, max_size=6), inner, max_size=3)
        ),
        max_leaves=8,
    )
)
def test_what_is_written_is_read_back(value: Any) -> None:
    assert yaml.safe_load(dump_yaml({"value": value})) == {"value": value}


@pytest.mark.parametrize("text", TRAPS)
def test_only_plain_words_have_no_quotes(text: str) -> None:
    assert f"key: {text}\n" != dump_yaml({"key": text})

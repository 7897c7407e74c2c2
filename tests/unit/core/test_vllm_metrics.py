"""Every metric name in our sources is in the list; an end-to-end test compares it with vLLM."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from tuneline.core.vllm_metrics import SPECULATION_METRICS, VLLM_METRICS, VLLM_RELEASE, vllm_metric

ROOT = Path(__file__).parents[3]
ROOMS = ("tuneline", "training", "export", "serving", "loadtest", "k8s")
NAME = re.compile(r"vllm:[a-z][a-z0-9_]*")
SAMPLE_OF_HISTOGRAM = re.compile(r"_(sum|count|bucket)$")


def test_every_name_that_a_room_writes_is_in_the_list() -> None:
    found = {
        (name, path.relative_to(ROOT))
        for room in ROOMS
        for path in (ROOT / room).rglob("*")
        if path.suffix in (".py", ".yaml", ".json", ".md") and path.name != "vllm_metrics.py"
        for name in NAME.findall(path.read_text(encoding="utf-8"))
    }
    assert len({name for name, _ in found}) >= 10
    families = {(SAMPLE_OF_HISTOGRAM.sub("", name), path) for name, path in found}
    known = VLLM_METRICS.keys() | SPECULATION_METRICS.keys()
    assert {entry for entry in families if entry[0] not in known} == set()


def test_the_list_describes_the_release_that_is_pinned() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    pins = [pin for extra in ("cpu", "gpu") for pin in extras[extra]]
    assert len(pins) == 2
    assert {pin.partition("==")[2].rpartition(".")[0] for pin in pins} == {VLLM_RELEASE}


@pytest.mark.parametrize("name", ["vllm:gpu_cache_usage_perc", "vllm:num_requests_running"])
def test_a_dead_name_or_another_type_is_refused(name: str) -> None:
    with pytest.raises(KeyError, match=name):
        vllm_metric(name, "counter")
    assert vllm_metric("vllm:num_requests_running", "gauge") == "vllm:num_requests_running"
    drafts = "vllm:spec_decode_num_drafts_total"
    assert vllm_metric(drafts, "counter") == drafts

"""The simulation of the autoscaler, on loads whose outcome is known by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from benchmarks.autoscale import (
    COMPONENTS,
    DEFAULT_UP,
    NO_REPORT,
    Autoscaler,
    Way,
    oracle,
    rendered,
    simulate,
)
from k8s.capacity import Capacity
from k8s.config import Autoscaling

CAPACITY = Capacity(NO_REPORT, "given", 10.0, 5.0)
SCALING = Autoscaling(by="hpa", max_replicas=20, headroom=0.8, ready_s=30)
OURS = rendered()
DEFAULT = Way("kubernetes", DEFAULT_UP, OURS.down, 15)


@pytest.mark.parametrize(("way", "pods"), [(DEFAULT, 6), (OURS, 10)])
def test_a_step_up_is_what_the_policies_allow(way: Way, pods: int) -> None:
    # 100 in flight at a target of 4 ask for 25 pods, 20 at most; 2 pods may become 2 + 4 or 2 x 5.
    assert Autoscaler(way, SCALING, 4.0).decide(0, 2, 100.0) == pods


def test_a_change_within_the_tolerance_is_none() -> None:
    scaler = Autoscaler(OURS, SCALING, 4.0)
    assert scaler.decide(0, 10, 43.9) == 10
    assert scaler.decide(15, 10, 44.1) == 12


def test_pods_go_after_the_pause_and_a_quarter_a_minute() -> None:
    scaler = Autoscaler(OURS, SCALING, 4.0)
    assert scaler.decide(0, 8, 32.0) == 8
    assert scaler.decide(300, 8, 4.0) == 8  # The wish of second 0 is 300 s old.
    assert scaler.decide(315, 8, 4.0) == 6
    assert scaler.decide(330, 6, 4.0) == 6
    assert scaler.decide(375, 6, 4.0) == 5


@pytest.mark.parametrize(("burst_s", "kept"), [(0, 1.0), (3, 1.0), (5, 0.5), (30, 0.5)])
def test_a_minute_is_kept_if_nine_tenths_of_its_requests_are_answered_in_time(
    burst_s: int, kept: float
) -> None:
    # A pod answers 10 requests a second. In a burst 20 a second arrive, then none for as long. The
    # requests of second n of the burst wait n s, so 40 of 600 are late after 3 s and 80 after 5 s.
    load = [20.0] * burst_s + [0.0] * burst_s + [10.0] * (120 - 2 * burst_s)
    assert simulate(load, CAPACITY, SCALING, 1.0, OURS, fixed=1).kept == kept
    assert simulate(load, CAPACITY, SCALING, 1.0, OURS, fixed=2).kept == 1.0


def test_the_oracle_starts_a_pod_before_it_is_needed() -> None:
    # 30 s before the second half, a second pod; one in the rest of the first half.
    assert oracle([10.0] * 60 + [20.0] * 60, CAPACITY, 30) == (30 * 1 + 90 * 2) / 120


def test_both_components_have_the_same_policies() -> None:
    def behavior(path: Path, *keys: str) -> object:
        found = yaml.safe_load(path.read_text())["spec"]
        for key in keys:
            found = found[key]
        return found

    hpa = behavior(COMPONENTS / "hpa" / "autoscaler.yaml", "behavior")
    options = ("advanced", "horizontalPodAutoscalerConfig", "behavior")
    assert hpa == behavior(COMPONENTS / "keda" / "scaled-object.yaml", *options)

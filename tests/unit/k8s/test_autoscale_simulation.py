"""The simulation of the autoscaler, on loads whose outcome is known by hand."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.autoscale import (
    COMPONENTS,
    DEFAULT_UP,
    NO_REPORT,
    Autoscaler,
    Way,
    oracle,
    recorded,
    rendered,
    simulate,
    without_foresight,
)
from k8s.capacity import STEP, Capacity
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
    assert scaler.decide(450, 8, 4.0) == 8  # The wish of second 0 is 450 s old.
    assert scaler.decide(465, 8, 4.0) == 6
    assert scaler.decide(480, 6, 4.0) == 6
    assert scaler.decide(525, 6, 4.0) == 5


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


def test_a_limit_refuses_what_the_pods_cannot_start_and_leaves_no_queue() -> None:
    # 20 requests a second for 30 s at one pod of 10 a second: a queue of 300 lasts 30 s more. A
    # pod takes 20 in flight, of which 5 run: the first 15 wait, and the rest is refused.
    assert CAPACITY.admitted_per_pod(0.8).value == 20
    load = [20.0] * 30 + [5.0] * 30 + [10.0] * 60
    without = dataclasses.replace(OURS, limits=False)
    assert [
        simulate(load, CAPACITY, SCALING, 1.0, way, fixed=1).kept for way in (OURS, without)
    ] == [
        0.5,
        0.0,
    ]


def test_without_foresight_only_the_start_of_new_pods_is_lost() -> None:
    # Two pods for 10 requests a second with the headroom. 50 a second come from second 60 on, and
    # their pods serve 30 s later: the second minute is lost, and the third is not.
    load = [10.0] * 60 + [50.0] * 120
    found = without_foresight(load, CAPACITY, SCALING)
    assert found.kept == 2 / 3
    assert found.pods == (60 * 2 + 120 * 7) / 180  # 50 / 10 / 0.8, rounded up
    few = without_foresight(load, CAPACITY, SCALING.model_copy(update={"max_replicas": 4}))
    assert (few.kept, few.pods) == (1 / 3, (60 * 2 + 120 * 4) / 180)


def test_a_recorded_trace_is_scaled_to_the_peak_of_its_busiest_minute(tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    rows = ["00:00.1000000", "00:00.9999999", "00:59.5000000", "02:00.0000000"]
    lines = [f"2023-11-16 18:{row},374,44" for row in rows]
    trace.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + "\n".join(lines))
    # Three requests in the busiest minute become 60 x 5.
    load = recorded(trace, 5.0)
    assert (len(load), load[0], load[59], load[119], sum(load)) == (120, 200.0, 100.0, 100.0, 400.0)


def test_both_components_have_the_same_policies() -> None:
    def behavior(path: Path, *keys: str) -> Any:
        found = yaml.safe_load(path.read_text())["spec"]
        for key in keys:
            found = found[key]
        return found

    (step,) = behavior(COMPONENTS / "hpa" / "autoscaler.yaml", "behavior", "scaleUp", "policies")
    assert step["value"] == 100 * (STEP - 1)
    hpa = behavior(COMPONENTS / "hpa" / "autoscaler.yaml", "behavior")
    options = ("advanced", "horizontalPodAutoscalerConfig", "behavior")
    assert hpa == behavior(COMPONENTS / "keda" / "scaled-object.yaml", *options)

"""The numbers of an autoscaler, from a load report, with the formula next to each."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from k8s.capacity import Capacity, Objective, pause_s, read_capacity
from k8s.config import Autoscaling
from tests.unit.k8s.only import only
from tuneline.core.errors import ConfigError

Objects: TypeAlias = list[dict[str, Any]]
Render: TypeAlias = Callable[..., Path]
ObjectsOf: TypeAlias = Callable[..., Objects]

KEDA = {"by": "keda", "max_replicas": 4, "prometheus_url": "http://p:9090"}


CAPACITY = Capacity("sha256:" + "a" * 64, "fast", 8.0, 6.5)
CLOSED = dataclasses.replace(CAPACITY, loop="closed")


def scenario(name: str, verdict: str, rate_rps: float, in_flight: float | None) -> dict[str, Any]:
    return {
        "name": name,
        "verdict": verdict,
        "throughput": {"succeeded_rps": rate_rps},
        "mean_in_flight": in_flight,
        "slo": {"ttft_s": {"p50": 0.5, "p99": 2.0}, "tpot_s": {}},
        "config": {"concurrency": 4 if name == "fast" else None},
    }


ENVIRONMENT = {"hardware": {"cpu": "EPYC", "cpu_cores": 2, "gpus": ["L4"]}}


def test_the_fastest_scenario_that_holds_is_the_capacity() -> None:
    report: dict[str, Any] = {
        "environment": ENVIRONMENT,
        "scenarios": [
            scenario("slow", "PASS", 2.0, 1.5),
            scenario("fast", "PASS", 8.0, 6.5),
            scenario("too fast", "FAIL", 12.0, 90.0),
            scenario("unsettled", "PASS", 20.0, None),
        ],
    }
    found = read_capacity(report, "sha256:" + "a" * 64)
    assert found == Capacity(
        # p99 is nearer to p90 than the median is.
        "sha256:" + "a" * 64, "fast", 8.0, 6.5, {"ttft_s": Objective(99.0, 2.0)},
        "closed", 4, "EPYC, 2 cores, L4",
    )  # fmt: skip
    assert found.origin == (
        "closed-loop scenario fast of load report aaaaaaaaaaaa, client on EPYC, 2 cores, L4"
    )
    report["scenarios"] = report["scenarios"][2:]
    assert read_capacity(report, "sha256:" + "a" * 64) is None


def test_the_whole_time_is_an_objective_where_there_are_no_tokens() -> None:
    one = scenario("fast", "PASS", 8.0, 6.5)
    report: dict[str, Any] = {"environment": ENVIRONMENT, "scenarios": [one]}
    one["slo"]["e2e_s"] = {"p90": 3.0}
    found = read_capacity(report, "sha256:" + "a" * 64)
    assert found is not None and found.objectives.keys() == {"ttft_s"}
    one["slo"] = {"e2e_s": {"p90": 3.0}}
    found = read_capacity(report, "sha256:" + "a" * 64)
    assert found is not None and found.objectives == {"e2e_s": Objective(90.0, 3.0)}


def test_a_target_is_the_headroom_of_the_measured_load() -> None:
    capacity = Capacity("sha256:" + "a" * 64, "fast", 8.0, 6.5)
    target = capacity.in_flight_per_pod(0.8)
    assert target.value == 5.2  # 0.8 x 6.5
    assert target.text == "5.2"
    assert "headroom 0.8 x 6.5 requests in flight at 8 requests/s" in target.formula
    # A pod that carries less than one request at a time still gets one.
    assert Capacity("sha256:" + "a" * 64, "x", 1.0, 0.3).in_flight_per_pod(0.8).value == 1.0
    assert capacity.queue_per_pod().value == 13.0  # 2 x 6.5


@pytest.mark.parametrize(
    ("capacity", "expected"),
    [
        (CAPACITY, 26),  # 5 x 5.2
        # 6.5 in flight, and those that come in 3 s.
        (dataclasses.replace(CAPACITY, objectives={"ttft_s": Objective(90, 3.0)}), 31),
        (dataclasses.replace(CAPACITY, in_flight=0.5), 16),
        (dataclasses.replace(CAPACITY, concurrency=64), 64),
    ],
)
def test_a_scaled_pod_refuses_a_queue_that_outlasts_its_spike(
    capacity: Capacity, expected: int
) -> None:
    assert capacity.admitted_per_pod(0.8).value == expected


@pytest.mark.parametrize(
    ("scaling", "own", "expected"), [(KEDA, 1024, 16), (KEDA, 12, 12), (None, 1024, 1024)]
)
def test_the_limit_of_a_scaled_pod_lowers_the_runs(
    tmp_path: Path,
    render_run: Render,
    objects_of: ObjectsOf,
    scaling: dict[str, Any] | None,
    own: int,
    expected: int,
) -> None:
    env = {"TUNELINE_SETTINGS": json.dumps({"max_in_flight": own, "max_n": 3})}
    out = render_run(
        tmp_path / "out", autoscaling=scaling, monitoring_namespace="m", served_env=env
    )
    objects = objects_of(out)
    (container,) = only(objects, "Deployment")["spec"]["template"]["spec"]["containers"]
    (found,) = (e["value"] for e in container["env"] if e["name"] == "TUNELINE_SETTINGS")
    assert json.loads(found) == {"max_in_flight": expected, "max_n": 3}
    if scaling is not None:
        notes = only(objects, "ScaledObject")["metadata"]["annotations"]
        assert notes["tuneline/formula-limit"].startswith("the largest of 16, 5 x the target")


def test_keda_reads_the_worst_objective_and_credits_pods_that_load(deployed: Objects) -> None:
    item = only(deployed, "ScaledObject")
    spec = item["spec"]
    in_flight, objectives = spec["triggers"]
    assert spec["scaleTargetRef"] == {"name": "support-tickets-model-server"}
    assert "replicas" not in only(deployed, "Deployment")["spec"]
    assert in_flight["metadata"]["threshold"] == "2.6"  # 0.8 x 3.3, to one place
    where = 'namespace="tuneline",service="support-tickets-model-server"'
    assert in_flight["metadata"]["query"] == f"sum(tuneline_requests_in_flight{{{where}}})"
    query = objectives["metadata"]["query"]
    assert query.startswith("clamp_max(max(label_replace(histogram_quantile(0.9,")
    # TTFT of a queue is not in proportion to the load: at most half as many pods again.
    assert f"), 1.5) * count(tuneline_ready_seconds{{{where}}})" in query
    # Times the pods that serve: a pod that still loads does not multiply the ratio again.
    assert query.endswith(f" * count(tuneline_ready_seconds{{{where}}})")
    assert "/ 1 >= 0" in query and "/ 0.1 >= 0" in query
    assert {trigger["metricType"] for trigger in spec["triggers"]} == {"AverageValue"}
    notes = item["metadata"]["annotations"]
    assert notes["tuneline/formula-in-flight"].endswith("of load report 555555555555")
    assert notes["tuneline/formula-pause"] == "max(450 s, 4 x 120 s until a pod serves)"
    behavior = spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    assert behavior["scaleDown"]["stabilizationWindowSeconds"] == 480


def test_no_pod_is_no_fault_where_none_may_run(
    tmp_path: Path, render_run: Render, objects_of: ObjectsOf
) -> None:
    scaling = {**KEDA, "min_replicas": 0, "wake_query": "sum(rate(gateway_requests_total[1m]))"}
    spec = only(
        objects_of(render_run(tmp_path / "out", autoscaling=scaling, monitoring_namespace="m")),
        "ScaledObject",
    )["spec"]
    *own, wake = spec["triggers"]
    assert spec["minReplicaCount"] == 0
    assert len(own) == 2
    # Only where Prometheus knows no pod: a pod whose scrape fails has `up` 0, and no load is known.
    where = 'namespace="tuneline",service="support-tickets-model-server"'
    for trigger in own:
        assert trigger["metadata"]["query"].endswith(f") or on() 0 * absent(up{{{where}}})")
    assert "vector" not in str(own)
    assert wake["metadata"]["query"] == scaling["wake_query"]
    assert wake["metadata"]["activationThreshold"] == "0"


@pytest.mark.parametrize(("least", "is_alerted"), [(0, False), (1, True)])
def test_an_absent_server_is_an_alert_where_a_pod_must_run(
    tmp_path: Path, render_run: Render, objects_of: ObjectsOf, least: int, is_alerted: bool
) -> None:
    scaling = {**KEDA, "min_replicas": least, "wake_query": None if least else "up{a='b'}"}
    out = render_run(tmp_path / "out", autoscaling=scaling, monitoring_namespace="observability")
    rules = only(objects_of(out), "PrometheusRule")["spec"]["groups"][0]["rules"]
    assert ("TunelineServerAbsent" in {rule["alert"] for rule in rules}) is is_alerted


@pytest.mark.parametrize(
    ("capacity", "expected"),
    [
        (CLOSED, "come from closed-loop scenario fast"),
        (CAPACITY, None),
    ],
)
def test_numbers_of_a_closed_loop_are_warned_of(
    tmp_path: Path,
    render_run: Render,
    caplog: pytest.LogCaptureFixture,
    capacity: Capacity,
    expected: str | None,
) -> None:
    with caplog.at_level("WARNING"):
        render_run(
            tmp_path / "out", autoscaling=KEDA, capacity=capacity, monitoring_namespace="monitoring"
        )
    assert len(caplog.messages) == (0 if expected is None else 1)
    assert (expected or "") in caplog.text


@pytest.mark.parametrize(("ready_s", "pause"), [(30, 450), (120, 480), (900, 3600), (1500, 3600)])
def test_a_pause_is_one_that_kubernetes_takes(ready_s: float, pause: int) -> None:
    scaling = Autoscaling(by="hpa", max_replicas=2, ready_s=ready_s)
    found = pause_s(scaling)
    assert found.value == pause
    assert ("at most 3600 s" in found.formula) == (ready_s > 900)


def test_the_autoscaler_of_kubernetes_gets_the_same_target(
    tmp_path: Path, render_run: Render, objects_of: ObjectsOf
) -> None:
    scaling = {"by": "hpa", "max_replicas": 5, "min_replicas": 2, "ready_s": 30, "headroom": 0.5}
    objects = objects_of(
        render_run(tmp_path / "out", autoscaling=scaling, monitoring_namespace="m")
    )
    spec = only(objects, "HorizontalPodAutoscaler")["spec"]
    assert spec["scaleTargetRef"]["name"] == "support-tickets-model-server"
    assert (spec["minReplicas"], spec["maxReplicas"]) == (2, 5)
    assert spec["metrics"][0]["pods"]["target"]["averageValue"] == "1.6"  # 0.5 x 3.3 = 1.65
    assert spec["behavior"]["scaleDown"]["stabilizationWindowSeconds"] == 450
    assert "replicas" not in only(objects, "Deployment")["spec"]


@pytest.mark.parametrize(("scaling", "interval"), [(KEDA, "5s"), (None, "15s")])
def test_an_autoscaler_reads_metrics_of_the_last_five_seconds(
    tmp_path: Path,
    render_run: Render,
    objects_of: ObjectsOf,
    scaling: dict[str, Any] | None,
    interval: str,
) -> None:
    objects = objects_of(
        render_run(tmp_path / "out", autoscaling=scaling, monitoring_namespace="m")
    )
    (endpoint,) = only(objects, "ServiceMonitor")["spec"]["endpoints"]
    assert endpoint["interval"] == interval
    # Prometheus refuses a timeout above the interval.
    assert int(endpoint["scrapeTimeout"][:-1]) <= int(interval[:-1])


def test_without_a_load_report_nothing_is_scaled(tmp_path: Path, render_run: Render) -> None:
    with pytest.raises(ConfigError, match=r"k8s.autoscaling: its numbers come from a load test"):
        render_run(tmp_path / "out", autoscaling=KEDA, monitoring_namespace="m", capacity=None)
    assert list(tmp_path.iterdir()) == []


def test_limits_of_alerts_come_from_the_load_report(
    deployed: Objects, tmp_path: Path, render_run: Render, objects_of: ObjectsOf
) -> None:
    def alerts(objects: Objects) -> dict[str, Any]:
        (group,) = only(objects, "PrometheusRule")["spec"]["groups"]
        return {rule["alert"]: rule for rule in group["rules"]}

    with_report = alerts(deployed)
    assert with_report["TunelineTtft"]["expr"].endswith(" > 1")
    assert with_report["TunelineTpot"]["expr"].endswith(" > 0.1")
    assert with_report["TunelineQueue"]["expr"].endswith("> 7")  # 2 x 3.3, rounded up
    assert "open-4rps" in with_report["TunelineTtft"]["annotations"]["tuneline_formula"]
    assert "sha256:0123" in with_report["TunelineOtherModel"]["expr"]
    out = render_run(tmp_path / "out", monitoring_namespace="observability", capacity=None)
    measured = {"TunelineTtft", "TunelineTpot", "TunelineQueue"}
    assert set(alerts(objects_of(out))) == set(with_report) - measured
    whole = dataclasses.replace(CAPACITY, objectives={"e2e_s": Objective(95.0, 0.25)})
    out = render_run(tmp_path / "whole", autoscaling=KEDA, monitoring_namespace="m", capacity=whole)
    of_scores = alerts(objects_of(out))
    assert of_scores.keys() & {*measured, "TunelineLatency"} == {"TunelineLatency", "TunelineQueue"}
    assert of_scores["TunelineLatency"]["expr"].startswith("histogram_quantile(0.95, ")
    assert of_scores["TunelineLatency"]["expr"].endswith(" > 0.25")
    (scaled,) = (one for one in objects_of(out) if one["kind"] == "ScaledObject")
    query = scaled["spec"]["triggers"][1]["metadata"]["query"]
    assert "vllm:e2e_request_latency_seconds_bucket" in query and "/ 0.25" in query

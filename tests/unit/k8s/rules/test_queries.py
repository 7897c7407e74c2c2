"""Every PromQL query, parsed by a parser of PromQL, against the metrics that a server has."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

import promql_parser
import pytest
import yaml

from k8s.rules.traffic import queries, series_names
from tuneline.core.vllm_metrics import TUNELINE_METRICS, VLLM_METRICS

Objects: TypeAlias = list[dict[str, Any]]
PROMTOOL = shutil.which("promtool")


def selectors(node: Any) -> Iterator[Any]:
    """Yield every vector selector of a parsed query."""
    if isinstance(node, promql_parser.VectorSelector):
        yield node
        return
    for name in ("expr", "lhs", "rhs", "vector_selector", "vs", "param"):
        inner = getattr(node, name, None)
        if inner is not None and not isinstance(inner, str | float | int):
            yield from selectors(inner)
    for inner in getattr(node, "args", None) or ():
        yield from selectors(inner)


def test_a_histogram_shows_three_series() -> None:
    names = series_names()
    assert "vllm:time_to_first_token_seconds_bucket" in names
    assert "vllm:time_to_first_token_seconds" not in names
    assert len(names) == 1 + sum(
        3 if kind == "histogram" else 1 for kind in {**VLLM_METRICS, **TUNELINE_METRICS}.values()
    )


def test_every_query_parses_and_asks_for_metrics_that_exist(trees: dict[str, Objects]) -> None:
    found = {query for objects in trees.values() for _, query in queries(objects)}
    assert len(found) > 30
    asked = set()
    for query in found:
        # Grafana puts its variables in before Prometheus sees the query.
        parsed = promql_parser.parse(query)
        named = list(selectors(parsed))
        assert named, query
        for node in named:
            asked.add(node.name)
            labels = {matcher.name for matcher in node.matchers.matchers}
            assert {"namespace", "service"} <= labels, query
    assert asked <= series_names()
    assert len(asked) > 15


@pytest.mark.parametrize("query", ["sum(rate(x[5m]", "sum by le (x)", "x{a=b}"])
def test_the_parser_refuses_what_prometheus_refuses(query: str) -> None:
    with pytest.raises(ValueError):
        promql_parser.parse(query)


if PROMTOOL is not None:  # Debian's package `prometheus` has it; every parser above runs without

    def test_promtool_accepts_and_fires_the_alerts(deployed: Objects, tmp_path: Path) -> None:
        assert PROMTOOL is not None
        (rule,) = (item for item in deployed if item["kind"] == "PrometheusRule")
        (tmp_path / "rules.yaml").write_text(yaml.safe_dump(rule["spec"]))
        labels = 'namespace="tuneline",service="support-tickets-model-server",pod="a"'
        bucket = f"vllm:time_to_first_token_seconds_bucket{{{labels}"
        cases = {
            "rule_files": ["rules.yaml"],
            "evaluation_interval": "1m",
            "tests": [
                {  # A slow server: nine of ten tokens come after 2 s, and it has traffic.
                    "interval": "1m",
                    "input_series": [
                        {"series": f"up{{{labels}}}", "values": "1x20"},
                        {"series": f'{bucket},le="1"}}', "values": "0+1x20"},
                        {"series": f'{bucket},le="2"}}', "values": "0+1x20"},
                        {"series": f'{bucket},le="4"}}', "values": "0+10x20"},
                        {"series": f'{bucket},le="+Inf"}}', "values": "0+10x20"},
                    ],
                    "promql_expr_test": [
                        {"expr": 'count(ALERTS{alertname="TunelineTtft",alertstate="firing"})',
                         "eval_time": "15m", "exp_samples": [{"labels": "{}", "value": 1}]},
                        {"expr": 'count(ALERTS{alertname="TunelineServerAbsent"})',
                         "eval_time": "15m", "exp_samples": []},
                    ],
                },
                {  # A pod that drains: its probes get 503, and no client does.
                    "interval": "1m",
                    "input_series": [
                        {"series": f"up{{{labels}}}", "values": "1x20"},
                        {"series": f'tuneline_http_requests_total{{{labels},route="/ready",'
                         'status="503"}', "values": "0+6x20"},
                        {"series": f'tuneline_key_requests_total{{{labels},status="200"}}',
                         "values": "0+6x20"},
                        {"series": f"tuneline_keys_file_ok{{{labels}}}", "values": "1x20"},
                    ],
                    "promql_expr_test": [
                        {"expr": 'count(ALERTS)', "eval_time": "15m", "exp_samples": []},
                    ],
                },
                {  # No server at all: quantiles are silent, the absence is not.
                    "interval": "1m",
                    "input_series": [],
                    "promql_expr_test": [
                        {"expr": 'count(ALERTS{alertstate="firing"})',
                         "eval_time": "15m", "exp_samples": [{"labels": "{}", "value": 1}]},
                        {"expr": 'count(ALERTS{alertname="TunelineServerAbsent"})',
                         "eval_time": "15m", "exp_samples": [{"labels": "{}", "value": 1}]},
                    ],
                },
                {  # Another model, a stalled engine, a full disk and refused requests.
                    "interval": "1m",
                    "input_series": [
                        {"series": f"up{{{labels}}}", "values": "1x60"},
                        {"series": f'tuneline_artifact_info{{{labels},digest="sha256:other"}}',
                         "values": "1x60"},
                        {"series": f"tuneline_stalled{{{labels}}}", "values": "1x60"},
                        {"series": f"vllm:admission_rejections_total{{{labels}}}",
                         "values": "0+60x60"},
                        {"series": f'tuneline_key_requests_total{{{labels},status="503"}}',
                         "values": "0+6x60"},
                        {"series": f"tuneline_keys_file_ok{{{labels}}}", "values": "0x60"},
                        {"series": f'tuneline_unrecorded_total{{{labels},reason="disk"}}',
                         "values": "0+6x60"},
                        {"series": f'tuneline_unrecorded_total{{{labels},reason="unfinished"}}',
                         "values": "0+6x60"},
                        {"series": f"tuneline_requests_in_flight{{{labels}}}", "values": "8x60"},
                        {"series": f"tuneline_ready_seconds{{{labels}}}", "values": "30x60"},
                        {"series": f"vllm:kv_cache_usage_perc{{{labels}}}", "values": "0.99x60"},
                        {"series": f"vllm:num_requests_waiting{{{labels}}}", "values": "3x60"},
                    ],
                    "promql_expr_test": [
                        {"expr": 'count(ALERTS{alertstate="firing"})',
                         "eval_time": "50m", "exp_samples": [{"labels": "{}", "value": 8}]},
                    ],
                },
                {  # A key above its limits, preemptions, restarts and a failed proof.
                    "interval": "1m",
                    "input_series": [
                        {"series": f"up{{{labels}}}", "values": "1x120"},
                        {"series": f'tuneline_key_requests_total{{{labels},key="a",status="429"}}',
                         "values": "0+1x120"},
                        {"series": f'tuneline_key_requests_total{{{labels},key="a",status="200"}}',
                         "values": "0+9x120"},
                        {"series": f'tuneline_key_requests_total{{{labels},key="b",status="429"}}',
                         "values": "0+1x120"},
                        {"series": f'tuneline_key_requests_total{{{labels},key="b",status="200"}}',
                         "values": "0+99x120"},
                        {"series": f"vllm:num_preemptions_total{{{labels}}}", "values": "0+1x120"},
                        {"series": f"vllm:generation_tokens_total{{{labels}}}",
                         "values": "0+9x10 0+9x10 0+9x100"},
                        {"series": f'tuneline_adapter_proofs_total{{{labels},adapter="x",'
                         'verdict="FAIL"}', "values": "_x20 1x100"},
                        {"series": f'tuneline_adapter_proofs_total{{{labels},adapter="y",'
                         'verdict="PASS"}', "values": "0+1x120"},
                    ],
                    "promql_expr_test": [
                        {"expr": 'count by (alertname) (ALERTS{alertstate="firing"})',
                         "eval_time": "40m", "exp_samples": [
                             {"labels": f'{{alertname="{name}"}}', "value": 1} for name in (
                                 "TunelineAdapterProof", "TunelineKeyRefused",
                                 "TunelinePreemptions", "TunelineRestarts",
                             )
                         ]},
                        # An hour later the failed proof and the restarts are past.
                        {"expr": 'count by (alertname) (ALERTS{alertstate="firing"})',
                         "eval_time": "110m", "exp_samples": [
                             {"labels": f'{{alertname="{name}"}}', "value": 1}
                             for name in ("TunelineKeyRefused", "TunelinePreemptions")
                         ]},
                    ],
                },
            ],
        }  # fmt: skip
        (tmp_path / "cases.yaml").write_text(yaml.safe_dump(cases))
        for command in (["check", "rules", "rules.yaml"], ["test", "rules", "cases.yaml"]):
            done = subprocess.run(
                [PROMTOOL, *command], cwd=tmp_path, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stdout + done.stderr

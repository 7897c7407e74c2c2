import subprocess
import sys

import pytest

from loadtest.config import LoadTestConfig, quick_config
from loadtest.longest import longest_s
from tuneline.core.config import validate_config
from tuneline.core.errors import ConfigError


@pytest.mark.parametrize(
    ("scenario", "problem"),
    [
        ({"name": "x", "num_requests": 3}, "either rate_rps"),
        ({"name": "x", "rate_rps": 1, "concurrency": 2, "num_requests": 3}, "either rate_rps"),
        ({"name": "x", "rate_rps": 1}, "either num_requests or duration_s"),
        ({"name": "x", "rate_rps": 1, "num_requests": 2, "duration_s": 3}, "either num_requests"),
        ({"name": "x", "rate_rps": 1, "arrival": "gamma", "num_requests": 2}, "burstiness"),
        ({"name": "x", "concurrency": 1, "arrival": "poisson", "num_requests": 2}, "open loops"),
        ({"name": "x", "arrival": "burst", "rate_rps": 2, "num_requests": 2}, "no rate_rps"),
        ({"name": "x", "arrival": "burst", "duration_s": 2}, "burst needs num_requests"),
        ({"name": "x", "arrival": "uniform", "rate_rps": 2, "num_requests": 2}, "'poisson'"),
        (
            {"name": "x", "rate_rps": 1, "burstiness": 2, "num_requests": 2},
            "burstiness is for arrival: gamma",
        ),
        (
            {"name": "x", "rate_rps": 1, "rate_end_rps": 2, "num_requests": 2},
            "rate_end_rps is for arrival: ramp",
        ),
        (
            {"name": "x", "rate_rps": 1, "arrival": "ramp", "num_requests": 2},
            "ramp needs rate_end_rps",
        ),
        (
            {"name": "x", "rate_rps": 1, "trace_speed": 2, "num_requests": 2},
            "trace_speed is for arrival: trace",
        ),
        (
            {"name": "x", "concurrency": 1, "burstiness": 2, "num_requests": 2},
            "burstiness is for arrival: gamma",
        ),
        ({"name": "X y", "rate_rps": 1, "num_requests": 2}, "name"),
        ({"name": "x", "rate_rps": 0, "num_requests": 2}, "rate_rps"),
        ({"name": "x", "rate_rps": 5, "num_requests": 10**12}, "less than or equal to 100000000"),
        ({"name": "x", "rate_rps": 5, "duration_s": 1e15}, "above 100,000,000 requests"),
        ({"name": "x", "rate_rp": 1, "num_requests": 2}, "did you mean rate_rps"),
    ],
)
def test_a_scenario_that_contradicts_itself_is_refused(
    scenario: dict[str, object], problem: str
) -> None:
    with pytest.raises(ConfigError, match=problem):
        validate_config(LoadTestConfig, {"scenarios": [scenario]}, "run.yaml")


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"slo": {"min_goodput_rps": 3}}, "goodput_ttft_s"),
        ({"slo": {"ttft_p90_s": 3}}, r"slo.ttft_p90_s: is called ttft_s: {p90: ...} here"),
        ({"slo": {"e2e_p50_s": 3}}, r"is called e2e_s: {p50: ...} here"),
        ({"slo": {"ttft_ms": {"p95": 3}}}, "did you mean ttft_s"),
        ({"slo": {"ttft_s": {"p49": 3}}}, "'p49' is not a percentile; expected p50 to p99.9"),
        ({"slo": {"ttft_s": {"p100": 3}}}, "'p100' is not a percentile"),
        ({"slo": {"ttft_s": {"p99.99": 3}}}, "'p99.99' is not a percentile"),
        ({"slo": {"ttft_s": {"p90.0": 3}}}, "'p90.0' is not a percentile"),
        ({"slo": {"ttft_s": {"P95": 3}}}, "such as p95"),
        ({"slo": {"ttft_s": {"p95": 0}}}, "greater than 0"),
        ({"slo": {"ttft_s": {"p95": float("inf")}}}, "finite number"),
        (
            {"scenarios": [{"name": "x", "arrival": "trace", "num_requests": 2}]},
            "arrival: trace needs workload.source: mooncake",
        ),
        ({"extra_body": {"stream": False}}, "extra_body may not set stream"),
        ({"extra_body": {"api_key": "k"}}, "extra_body.api_key: the report would show it"),
        ({"extra_body": {"x-api-key": "k"}}, "extra_body.x-api-key: the report would show it"),
        ({"extra_body": {"a": [{"Authorization": "k"}]}}, "extra_body.a.0.Authorization"),
        ({"extra_body": {"access_token": "k"}}, "extra_body.access_token"),
        ({"headers": {"api-key": "k"}}, "headers.api-key: the report would show it"),
        ({"headers": {"Host": "a"}}, "headers may not set Host: the load test sets it"),
        ({"headers": {"a b": "c"}}, "headers: 'a b' is not the name of a header"),
        ({"headers": {"x-a": "b\r\nc: d"}}, "headers.x-a: the value is not printable ASCII"),
        ({"extra_body": {"metadata": {"password": "p"}}}, "extra_body.metadata.password"),
        ({"slo": {"e2e_s": {"p90": 61}}}, "slo.e2e_s.p90 is 61; a request fails after timeout_s"),
        ({"slo": {"goodput_ttft_s": 5}, "timeout_s": 4}, "slo.goodput_ttft_s is 5"),
        ({"slo": {"ttft_s": {"p90": 5}}, "timeout_s": 4}, "timeout_s, 4: it must be as long"),
        ({"scenarios": []}, "at least 1"),
        (
            {"scenarios": [{"name": "x", "rate_rps": 1, "num_requests": 2}] * 2},
            "scenario names must differ; found twice: x",
        ),
    ],
)
def test_a_section_that_cannot_be_used_is_refused(values: dict[str, object], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        validate_config(LoadTestConfig, values, "run.yaml")


def test_options_of_the_command_line_become_one_scenario() -> None:
    config = quick_config(rate_rps=3.0, duration_s=5.0, max_tokens=9)
    (scenario,) = config.scenarios
    assert (scenario.loop, scenario.rate_rps, scenario.duration_s) == ("open", 3.0, 5.0)
    assert config.max_tokens == 9
    (scenario,) = quick_config().scenarios
    assert (scenario.loop, scenario.concurrency, scenario.num_requests) == ("closed", 1, 100)
    trace = ["source=mooncake", "path=x"]
    (scenario,) = quick_config(
        overrides=[
            *(f"loadtest.workload.{one}" for one in trace),
            "loadtest.scenarios.0.arrival=trace",
        ]
    ).scenarios
    assert (scenario.name, scenario.loop, scenario.rate_rps) == ("open", "open", None)
    with pytest.raises(ConfigError, match="either rate_rps"):
        quick_config(rate_rps=1.0, concurrency=1)


@pytest.mark.parametrize(
    ("code", "heavy"),
    [
        (
            "import loadtest.config; loadtest.config.LoadTestConfig()",
            {"numpy", "torch", "uvloop", "matplotlib"},
        ),
        # Each scenario and each probe of a search starts client processes.
        ("import loadtest.client.process", {"pydantic", "torch", "matplotlib", "httpx"}),
        ("import loadtest.calibration.known_server", {"pydantic", "torch", "matplotlib"}),
    ],
    ids=["the section", "a client process", "the server of known delays"],
)
def test_an_import_loads_nothing_heavy(code: str, heavy: set[str]) -> None:
    code += f"\nimport sys; print(sorted({heavy} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_the_longest_time_holds_two_measurements_of_the_slowest_answers() -> None:
    config = LoadTestConfig.model_validate(
        {
            "scenarios": [
                {"name": "open", "rate_rps": 2.0, "num_requests": 90},
                {"name": "closed", "concurrency": 4, "num_requests": 90},
                {"name": "timed", "concurrency": 4, "duration_s": 600.0},
            ],
            "num_warmup_requests": 10,
            "timeout_s": 30.0,
        }
    )
    # 100 arrivals at 2 a second, twice; 25 rounds of 30 s; 600 s and 3 rounds of warm-up; and for
    # each one time-out and a minute more. Each may be measured a second time.
    once_s = 2 * 50 + 25 * 30 + (600 + 3 * 30) + 3 * (30 + 60)
    assert longest_s(config) == 2 * once_s

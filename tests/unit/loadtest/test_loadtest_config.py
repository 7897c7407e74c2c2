import subprocess
import sys

import pytest

from loadtest.config import LoadTestConfig, longest_s, quick_config
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
        ({"name": "X y", "rate_rps": 1, "num_requests": 2}, "name"),
        ({"name": "x", "rate_rps": 0, "num_requests": 2}, "rate_rps"),
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
        ({"slo": {"ttft_p95_s": 3}}, "did you mean"),
        ({"extra_body": {"stream": False}}, "extra_body may not set stream"),
        ({"scenarios": []}, "at least 1"),
        (
            {"scenarios": [{"name": "x", "rate_rps": 1, "num_requests": 2}] * 2},
            "scenario names stand twice: x",
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
    with pytest.raises(ConfigError, match="either rate_rps"):
        quick_config(rate_rps=1.0, concurrency=1)


def test_the_section_is_read_without_numpy_or_torch() -> None:
    code = (
        "import sys, loadtest.config; loadtest.config.LoadTestConfig(); "
        "print(sorted({'numpy', 'torch', 'uvloop', 'matplotlib'} & set(sys.modules)))"
    )
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

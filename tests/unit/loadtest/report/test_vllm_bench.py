"""The keys of `vllm bench serve`."""

import pytest

from loadtest.config import Scenario
from loadtest.report.vllm_bench import backend_of, request_rate
from loadtest.workload_config import WorkloadConfig


@pytest.mark.parametrize(
    ("options", "of_conversations", "expected"),
    [
        ({"rate_rps": 5.0}, False, 5.0),
        ({"rate_rps": 5.0, "arrival": "constant"}, False, 5.0),
        ({"rate_rps": 5.0}, True, 12.5),
        ({"rate_rps": 5.0, "rate_end_rps": 20.0, "arrival": "ramp"}, False, 12.5),
        ({"arrival": "trace"}, False, 12.5),
        ({"arrival": "burst"}, False, "inf"),
        ({"concurrency": 8}, False, "inf"),
    ],
)
def test_the_request_rate_is_that_of_requests(
    options: dict[str, float | str], of_conversations: bool, expected: float | str
) -> None:
    scenario = Scenario.model_validate({"name": "x", "num_requests": 9, **options})
    assert request_rate(scenario, 12.5, of_conversations=of_conversations) == expected


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "openai-chat"),
        ({"source": "synthetic", "input_tokens": {"mean": 9}}, "openai"),
        ({"route": "responses"}, "openai-responses"),
        (
            {"route": "embeddings", "source": "synthetic", "input_tokens": {"mean": 9}},
            "openai-embeddings",
        ),
        ({"route": "rerank"}, "vllm-rerank"),
        ({"route": "classify"}, "classify"),
    ],
)
def test_the_backend_is_vllms_name_of_the_route(options: dict[str, object], expected: str) -> None:
    assert backend_of(WorkloadConfig.model_validate(options)) == expected

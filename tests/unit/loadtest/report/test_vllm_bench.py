"""The keys of `vllm bench serve`."""

import pytest

from loadtest.config import Scenario
from loadtest.report.vllm_bench import request_rate


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

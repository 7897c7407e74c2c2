"""When a probe of a study is given up."""

from typing import cast

import pytest

from loadtest.client.plan import Plan, SessionPlan
from loadtest.config import LoadTestConfig
from loadtest.studies.load import Load
from loadtest.studies.measure_load import longest_run_s, most_in_flight


class Planned:
    """The part of a plan that counts."""

    def __init__(self, num_requests: int, sessions: SessionPlan | None = None) -> None:
        self.num_requests = num_requests
        self.sessions = sessions


def plan(num_requests: int, *, turns: int = 0, delays_s: float = 0.0) -> Plan:
    sessions = None
    if turns:
        sessions = SessionPlan(
            offsets=[0, turns], stride=turns, opens=[""], closes=[""] * turns,
            answers=[""] * turns, is_fresh=[True] * turns,
            delays_s=[[0.0, *[delays_s] * (turns - 1)]], keeps_own=False, order=[0],
        )  # fmt: skip
    return cast("Plan", Planned(num_requests, sessions))


CONFIG = LoadTestConfig.model_validate({"slo": {"e2e_s": {"p90": 2.0}}})


@pytest.mark.parametrize(
    ("turns", "expected"),
    # 4 x 2 s x 20 arrivals/s: 160 requests, and ten times as many with ten turns each.
    [(0, 160.0), (10, 1600.0)],
)
def test_an_open_loop_is_given_up_by_the_requests_that_its_arrivals_bring(
    turns: int, expected: float
) -> None:
    load = Load("rate", 20.0)
    assert most_in_flight(CONFIG, load, plan(300, turns=turns)) == pytest.approx(expected)
    assert longest_run_s(CONFIG, load, plan(300, turns=turns)) == float("inf")


@pytest.mark.parametrize(
    ("turns", "delays_s", "expected"),
    # 100 arrivals by 10 at a time: 11 rounds of 4 x 2 s; with five turns and 60 s of thinking
    # between them, 11 rounds of 5 x 8 s and 240 s.
    [(0, 0.0, 88.0), (5, 0.0, 440.0), (5, 60.0, 3080.0)],
)
def test_a_closed_loop_is_given_up_by_the_time_of_its_turns_and_delays(
    turns: int, delays_s: float, expected: float
) -> None:
    load = Load("concurrency", 10.0)
    found = plan(100, turns=turns, delays_s=delays_s)
    assert longest_run_s(CONFIG, load, found) == pytest.approx(expected)
    assert most_in_flight(CONFIG, load, found) == float("inf")


@pytest.mark.parametrize(
    ("load", "expected"),
    [
        (Load("rate", 2.5), "2.5 requests/s"),
        (Load("rate", 2.5, "conversations"), "2.5 conversations/s"),
        (Load("concurrency", 1.0), "1 stream"),
        (Load("concurrency", 1.0, "conversations"), "1 conversation"),
        (Load("concurrency", 8.0, "conversations"), "8 conversations"),
    ],
)
def test_a_load_names_what_it_counts(load: Load, expected: str) -> None:
    assert str(load) == expected

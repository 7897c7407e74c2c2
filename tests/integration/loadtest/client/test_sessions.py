"""Sessions against a server that keeps what it was asked, and against one of known delays."""

from __future__ import annotations

import itertools
import json
import os
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loadtest import report_text, run_loadtest
from loadtest.calibration.start import known_server
from loadtest.client.prepare import make_plan, with_unsent
from loadtest.client.processes import Counters, run_workers
from loadtest.client.records import SUCCEEDED, UNFINISHED
from loadtest.config import LoadTestConfig
from loadtest.measure import judged
from loadtest.report.build import Result
from tests.integration.loadtest.client.talk_server import TalkServer, talk_server
from tuneline.core.endpoint import Endpoint

pytestmark = pytest.mark.usefixtures("shared_host")


def talk(*questions: str, name: str = "") -> list[dict[str, str]]:
    """A recorded conversation: each question but the last has an answer."""
    found = []
    for number, question in enumerate(questions):
        found.append({"role": "user", "content": f"{name} {question}".strip()})
        found.append({"role": "assistant", "content": f"recorded {number}"})
    return found[:-1]


TALKS = [talk("one", "two", "three", name=f"talk{n}") for n in range(6)]


def config(scenario: dict[str, Any], sessions: dict[str, Any], **options: Any) -> LoadTestConfig:
    values = {
        "scenarios": [{"name": "x", **scenario}], "num_warmup_requests": 0, "calibrate": False,
        "max_tokens": 4, "max_client_lag_s": 1.0, "timeout_s": 5.0,
        "workload": {"sessions": {"think_s": {"mean": 0.05}, **sessions}}, **options,
    }  # fmt: skip
    return LoadTestConfig.model_validate(values)


def measure(
    endpoint: Endpoint, talks: list[Any], scenario: dict[str, Any], **options: Any
) -> Result:
    chosen = config(scenario, options.pop("sessions", {}), **options)
    plan, workload = make_plan(chosen, chosen.scenarios[0], endpoint, talks, seed=0)
    measured = run_workers(plan, endpoint.api_key)
    return judged(chosen, chosen.scenarios[0], plan, workload, measured)


def turns_of(server: TalkServer) -> dict[str, list[Any]]:
    """The requests of each conversation in the order of their arrival, by its first words."""
    found: dict[str, list[Any]] = {}
    for one in server.asked:
        found.setdefault(one.messages[0]["content"], []).append(one)
    return found


@pytest.mark.parametrize("scenario", [{"rate_rps": 20.0}, {"concurrency": 3}])
@pytest.mark.parametrize("num_workers", [1, 2])
def test_turns_follow_each_other_with_the_recorded_history(
    scenario: dict[str, Any], num_workers: int
) -> None:
    with talk_server() as server:
        result = measure(
            server.endpoint, TALKS, {**scenario, "num_requests": 6}, num_workers=num_workers
        )
    assert result.stats.num_offered == result.stats.num_succeeded == 18
    found = turns_of(server)
    assert len(found) == 6
    all_waited_s = []
    for asked in found.values():
        whole = next(one for one in TALKS if one[0] == asked[0].messages[0])
        assert [one.messages for one in asked] == [whole[:1], whole[:3], whole]
        for before, after in itertools.pairwise(asked):
            all_waited_s.append((after.received_ns - before.answered_ns) / 1e9)
    assert len(all_waited_s) == 12
    assert min(all_waited_s) >= 0.05
    assert np.median(all_waited_s) < 0.15
    sessions = result.stats.sessions
    assert sessions is not None
    assert (sessions.offered, sessions.succeeded, sessions.num_turns_sent) == (6, 6, 18)
    assert [one.offered for one in sessions.turns] == [6, 6, 6]
    delay_s = sessions.delay_s.percentiles["p50"]
    assert delay_s is not None and 0.03 < delay_s < 0.15
    waiting = result.stats.latencies["session_wait_s"].percentiles["p50"]
    whole_s = result.stats.latencies["session_s"].percentiles["p50"]
    assert waiting is not None and whole_s is not None
    assert 0.06 < whole_s - waiting < 0.3  # two delays


def agents_config(tmp_path: Path, scenario: dict[str, Any], num: int = 4) -> LoadTestConfig:
    """A session: a turn, two sub-agents next to each other, one with two turns, and a turn."""

    def asks(think_s: float | None = None, kind: str = "n") -> dict[str, Any]:
        return {"t": 0.0, "type": kind, "in": 8, "out": 4, "think_time": think_s}

    def agent(*requests: Any) -> dict[str, Any]:
        return {"t": 1.0, "type": "subagent", "requests": requests}

    requests = [asks(), agent(asks(), asks(0.05)), agent(asks()), asks(0.1)]
    path = tmp_path / "trace"
    lines = [{"id": f"s{n}", "block_size": 64, "requests": requests} for n in range(num)]
    path.write_text("\n".join(map(json.dumps, lines)))
    workload = {"source": "weka", "path": str(path), "sessions": {"think_s": "recorded"}}
    return config(scenario, {}, workload=workload)


@pytest.mark.parametrize("scenario", [{"rate_rps": 10.0}, {"concurrency": 2}])
def test_sub_agents_run_next_to_each_other_and_the_next_turn_waits_for_them(
    scenario: dict[str, Any], tmp_path: Path
) -> None:
    chosen = agents_config(tmp_path, {**scenario, "num_requests": 4})
    with known_server("--ttft-s", "0.08", "--itl-s", "0.01") as server:
        plan, workload = make_plan(chosen, chosen.scenarios[0], server.endpoint, [], seed=0)
        measured = run_workers(plan, None)
        result = judged(chosen, chosen.scenarios[0], plan, workload, measured)
    records = result.records
    assert records.turn.tolist() == [0, 1, 2, 3, 4] * 4 and (records.state == SUCCEEDED).all()
    waits_s, naive_s = [], []
    for number in range(4):
        one = records.select(records.session == number)
        due_s, end_s = one.intended_s, one.end_s
        # 0 and 1 are the conversation's own, 2 and 3 of the first sub-agent, 4 of the other.
        after_s = due_s - [0.0, end_s[[3, 4]].max(), end_s[0], end_s[2], end_s[0]]
        assert after_s[1:] == pytest.approx([0.1, 0.0, 0.05, 0.0], abs=0.005)
        both = min(end_s[2], end_s[4]) - max(due_s[2], due_s[4])
        assert both > 0.05  # they wait at the same time
        naive_s.append(float(np.sum(one.last_token_s - due_s)))
        waits_s.append(naive_s[-1] - both)
    sessions = result.stats.sessions
    assert sessions is not None and sessions.succeeded == 4
    assert [one.offered for one in sessions.turns] == [4, 4]
    assert sessions.delay_s.n == 16 and sessions.delay_s.max_of_succeeded == pytest.approx(
        0.1, abs=0.01
    )
    waiting = result.stats.latencies["session_wait_s"].mean_of_succeeded
    assert waiting == pytest.approx(np.mean(waits_s), abs=0.005)
    whole = result.stats.latencies["session_s"].mean_of_succeeded
    assert whole is not None and waiting is not None
    assert waiting + 0.14 < whole < np.mean(naive_s) + 0.15


def test_branches_of_a_recorded_trace_run_next_to_each_other(tmp_path: Path) -> None:
    """Two spans begin with the conversation, 20 ms apart, and a third waits for both."""

    def span(start_s: float, end_s: float, text: str) -> dict[str, Any]:
        messages = json.dumps([{"role": "user", "parts": [{"type": "text", "content": text}]}])
        attribute = {"key": "gen_ai.input.messages", "value": {"stringValue": messages}}
        return {
            "traceId": "t", "attributes": [attribute],
            "startTimeUnixNano": round(start_s * 1e9), "endTimeUnixNano": round(end_s * 1e9),
        }  # fmt: skip

    spans = [span(5.0, 5.5, "one"), span(5.02, 5.4, "two"), span(5.6, 6.0, "join")]
    path = tmp_path / "trace"
    path.write_text(json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": spans}]}]}))
    workload = {"source": "otel", "path": str(path), "sessions": {"think_s": "recorded"}}
    chosen = config({"concurrency": 2, "num_requests": 6}, {}, workload=workload)
    with known_server("--ttft-s", "0.08", "--itl-s", "0.01") as server:
        plan, workload_ = make_plan(chosen, chosen.scenarios[0], server.endpoint, [], seed=0)
        result = judged(chosen, chosen.scenarios[0], plan, workload_, run_workers(plan, None))
    records = result.records
    assert records.turn.tolist() == [0, 1, 2] * 6 and (records.state == SUCCEEDED).all()
    one, join, two = (records.select(records.turn == turn) for turn in range(3))
    assert (two.intended_s - one.intended_s) == pytest.approx([0.02] * 6, abs=0.001)
    both_s = np.maximum(one.end_s, two.end_s)
    assert join.intended_s - both_s == pytest.approx([0.1] * 6, abs=0.005)
    sessions = result.stats.sessions
    assert sessions is not None and (sessions.succeeded, len(sessions.turns)) == (6, 2)


def test_a_server_that_dies_ends_sessions_with_sub_agents(tmp_path: Path) -> None:
    chosen = agents_config(tmp_path, {"concurrency": 8, "num_requests": 400}, num=8)
    with known_server("--ttft-s", "0.08", "--itl-s", "0.01") as server:
        plan, workload = make_plan(chosen, chosen.scenarios[0], server.endpoint, [], seed=0)

        def kill(counters: Counters) -> bool:
            if counters.num_answered > 50:
                os.kill(server.pid, signal.SIGKILL)
            return False

        measured = run_workers(plan, None, kill)
    result = judged(chosen, chosen.scenarios[0], plan, workload, measured)
    assert result.judgement.verdict == "FAIL"
    sessions = result.stats.sessions
    assert sessions is not None and sessions.succeeded > 0 and sessions.failed > 8
    assert sessions.offered == sessions.succeeded + sessions.failed + sessions.unfinished == 400


def test_the_history_may_have_the_servers_own_answers() -> None:
    with talk_server() as server:
        result = measure(
            server.endpoint, TALKS, {"concurrency": 2, "num_requests": 4},
            sessions={"history": "own"},
        )  # fmt: skip
    assert result.stats.num_succeeded == 12
    for asked in turns_of(server).values():
        said = [one["content"] for one in asked[2].messages if one["role"] == "assistant"]
        assert said == ["r1.0 r1.1 r1.2 r1.3 ", "r3.0 r3.1 r3.2 r3.3 "]


def test_a_turn_is_due_when_its_delay_has_passed_since_the_last_byte() -> None:
    """The client's times against the server's own record of both turns."""
    chosen = config(
        {"concurrency": 24, "num_requests": 48},
        {"think_s": {"distribution": "exponential", "mean": 0.1}},
        max_tokens=8,
    )
    with known_server("--ttft-s", "0.03", "--itl-s", "0.004", "--num-tokens", "8") as server:
        plan, _ = make_plan(chosen, chosen.scenarios[0], server.endpoint, TALKS, seed=0)
        records = run_workers(plan, None).records
        truths = {int(one["request_id"]): one for one in server.truths()}
    assert plan.sessions is not None
    assert len(records) == len(truths) == 144
    excess_s = []
    for row in range(len(records)):
        if records.turn[row] == 0:
            continue
        before, after = truths[records.index[row - 1]], truths[records.index[row]]
        true_s = (after["received_ns"] - before["done_ns"]) / 1e9
        delay_s = plan.sessions.delays_s[records.session[row]][records.turn[row]]
        # The last byte came before the client saw it.
        assert records.intended_s[row] - delay_s < records.end_s[row - 1] + 1e-6
        # The server saw the planned delay, and the client's own send lag.
        excess_s.append(true_s - delay_s - (records.sent_s[row] - records.intended_s[row]))
    assert len(excess_s) == 96
    # A turn is due by the kernel's time of the last byte.
    assert abs(np.median(excess_s)) < 0.002


def test_warm_up_sessions_and_a_duration_are_sessions() -> None:
    with talk_server() as server:
        result = measure(
            server.endpoint, TALKS, {"rate_rps": 20.0, "duration_s": 0.5}, num_warmup_requests=2
        )
        closed = measure(
            server.endpoint, TALKS, {"concurrency": 2, "duration_s": 0.4}, num_warmup_requests=2
        )
    for one in (result, closed):
        sessions = one.stats.sessions
        assert sessions is not None and sessions.warmup == 2
        assert one.stats.num_warmup == 6
        assert sessions.offered == sessions.succeeded > 1
        assert one.stats.num_offered == 3 * sessions.offered


def test_each_way_to_fail_ends_its_session_and_is_counted() -> None:
    talks = [
        talk("one", "fail", "three", name="a"),
        talk("one", "nothing", "three", name="b"),
        talk("one", "switch", "three", name="c"),
        talk("1", "2", "3", "4", "5", "6", "7", name="d"),
        talk("one", "two", name="e"),
    ]
    with talk_server() as server:
        result = measure(server.endpoint, talks, {"rate_rps": 50.0, "num_requests": 10})
    stats = result.stats
    assert Counter(stats.errors) == {
        "http_500": 2, "empty_answer": 2, "model_changed": 2, "context_exceeded": 2,
    }  # fmt: skip
    sessions = stats.sessions
    assert sessions is not None
    assert (sessions.offered, sessions.succeeded, sessions.failed) == (10, 2, 8)
    assert sessions.num_model_changes == 2
    # After an HTTP error no turn follows: one of a, and one of d.
    assert (sessions.num_turns, sessions.num_turns_not_reached) == (2 * (3 + 3 + 3 + 7 + 2), 4)
    assert stats.num_offered == stats.num_succeeded + stats.num_failed + stats.num_unfinished
    assert stats.num_offered == sessions.num_turns_sent
    assert "maximum context length" in result.examples["context_exceeded"][0]
    assert "the answer names the model m2" in result.examples["model_changed"][0]
    assert result.judgement.verdict == "FAIL"


def test_an_empty_answer_ends_a_session_with_own_history() -> None:
    with talk_server() as server:
        result = measure(
            server.endpoint, [talk("one", "nothing", "three")],
            {"concurrency": 1, "num_requests": 2}, sessions={"history": "own"},
        )  # fmt: skip
    assert result.stats.errors == {"empty_answer": 2}
    assert result.stats.sessions is not None
    assert result.stats.sessions.num_turns_not_reached == 2


@pytest.mark.parametrize("scenario", [{"rate_rps": 20.0}, {"concurrency": 2}])
def test_a_server_that_dies_ends_the_run_in_bounded_time(scenario: dict[str, Any]) -> None:
    talks = [talk("one", "two", name="a"), talk("one", "die", name="b")]
    begin_s = time.monotonic()
    with talk_server() as server:
        result = measure(server.endpoint, talks, {**scenario, "num_requests": 20}, timeout_s=2.0)
    assert time.monotonic() - begin_s < 15
    stats = result.stats
    assert stats.num_failed > 3
    assert set(stats.errors) <= {"connection_refused", "connection_reset", "connection_failed"}
    assert stats.num_offered == stats.num_succeeded + stats.num_failed + stats.num_unfinished
    assert stats.sessions is not None and stats.sessions.offered == 20
    assert result.judgement.verdict == "FAIL"


def test_a_session_that_never_began_offers_its_first_turn_only() -> None:
    chosen = config({"rate_rps": 5.0, "num_requests": 4}, {})
    endpoint = Endpoint("http://127.0.0.1:1/v1", "m")
    plan, _ = make_plan(chosen, chosen.scenarios[0], endpoint, TALKS, seed=0)
    with talk_server() as server:
        other, _ = make_plan(chosen, chosen.scenarios[0], server.endpoint, TALKS, seed=0)
        records = run_workers(other, None).records
    rows = with_unsent(plan, records.select(records.session != 2))
    assert len(rows) == 10
    unsent = rows.select(rows.state == UNFINISHED)
    assert (unsent.index.tolist(), unsent.session.tolist(), unsent.turn.tolist()) == ([6], [2], [0])


def test_the_report_shows_sessions_in_every_form(tmp_path: Path) -> None:
    with talk_server() as server:
        chosen = config(
            {"rate_rps": 20.0, "num_requests": 40}, {"think_s": {"mean": 0.01}},
            slo={"session_s": {"p50": 5.0}, "session_wait_s": {"p50": 5.0},
                 "max_session_error_rate": 0.0},
        )  # fmt: skip
        artifact = run_loadtest(chosen, server.endpoint, tmp_path / "r", prompts=TALKS)
    document = json.loads(report_text(artifact, "json"))
    (scenario,) = document["scenarios"]
    assert scenario["verdict"] == "PASS", scenario["problems"]
    names = [one["name"] for one in scenario["objectives"]]
    assert names == [
        "session_s.p50",
        "session_wait_s.p50",
        "max_error_rate",
        "max_session_error_rate",
    ]
    sessions = scenario["sessions"]
    assert (sessions["offered"], sessions["succeeded"], sessions["num_turns"]) == (40, 40, 120)
    # The words of the first turn and of two recorded answers come again.
    assert 0.4 < sessions["prefix_reuse"] < 0.7
    assert scenario["server"]["figures"]["prefix_hit_rate"] > 0.4
    assert sessions["turns"][2]["mean_prompt_tokens"] == 15
    table = report_text(artifact, "table")
    assert "40 of 40 conversations succeeded" in table and "turn 3: TTFT" in table
    assert "conversation  " in table and "waiting in it" in table
    rows = report_text(artifact, "csv").splitlines()
    assert rows[0].startswith("scenario,index,session,turn,") and len(rows) == 121
    text = report_text(artifact, "prometheus")
    assert (
        'tuneline_loadtest_sessions{scenario="x",model="m",digest="",state="succeeded"} 40' in text
    )
    assert "tuneline_loadtest_session_seconds{" in text
    assert len(json.loads(report_text(artifact, "vllm"))) == 1
    page = report_text(artifact, "html")
    assert "40 of 40 conversations succeeded" in page and "Turns of x" in page


def test_a_cache_that_forgets_the_history_is_noted(tmp_path: Path) -> None:
    with talk_server(has_cache=False) as server:
        chosen = config({"concurrency": 4, "num_requests": 12}, {"think_s": {"mean": 0.0}})
        artifact = run_loadtest(chosen, server.endpoint, tmp_path / "r", prompts=TALKS)
    (scenario,) = json.loads(report_text(artifact, "json"))["scenarios"]
    assert any("computed a part of the history again" in one for one in scenario["warnings"])


def test_a_missed_session_objective_fails(tmp_path: Path) -> None:
    with talk_server() as server:
        result = measure(
            server.endpoint, TALKS, {"concurrency": 8, "num_requests": 40},
            slo={"session_s": {"p50": 0.05}}, sessions={"think_s": {"mean": 0.04}},
        )  # fmt: skip
    (missed,) = [one for one in result.judgement.objectives if one.name == "session_s.p50"]
    assert missed.verdict == "FAIL" and missed.n == 40
    assert result.judgement.verdict == "FAIL"
    assert result.records.select(result.records.state == SUCCEEDED).turn.max() == 2

"""The heartbeat: a stuck engine is found, a slow engine goes on."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import REGISTRY, Counter, Gauge, Histogram

from serving.middleware import watch as watch_module
from serving.middleware.app import TunelineMiddleware
from serving.middleware.heartbeat import (
    Heartbeat,
    count_steps,
    cpu_waits_s,
    engine_compiles,
    engine_progress,
    is_compiler,
    largest_step,
)
from tests.unit.serving.middleware.harness import CHAT, Inner, send_request


async def until(middleware: TunelineMiddleware, state: str) -> None:
    while middleware.state != state:
        await asyncio.sleep(0.01)


def states(beat: Heartbeat, events: Sequence[tuple[float, float, bool]]) -> list[str]:
    return [beat.observe(progress, busy, now_s) for now_s, progress, busy in events]


def test_a_silent_engine_is_not_ready_and_then_stuck() -> None:
    beat = Heartbeat(stall_after_s=12, first_limit_s=0)
    events = [(0.0, 1, False), (1.0, 1, True), (12.0, 1, True), (13.0, 1, True), (23.9, 1, True),
              (25.0, 1, True)]  # fmt: skip
    # The silence counts from the last look at which nothing was asked.
    assert states(beat, events) == ["moving", "moving", "silent", "silent", "silent", "stuck"]


def test_an_idle_engine_is_never_silent() -> None:
    beat = Heartbeat(stall_after_s=1, first_limit_s=0)
    assert set(states(beat, [(float(now), 5, False) for now in range(1000)])) == {"moving"}


def test_an_engine_that_moves_is_never_silent_however_long_its_requests_are() -> None:
    beat = Heartbeat(stall_after_s=2, first_limit_s=0)
    assert set(states(beat, [(float(now), now, True) for now in range(1000)])) == {"moving"}


def test_a_slow_engine_is_given_four_times_its_longest_step() -> None:
    beat = Heartbeat(stall_after_s=1, first_limit_s=100)
    assert states(beat, [(0.0, 0, True), (90.0, 1, True)]) == ["moving", "moving"]
    assert beat.limit_s == 360


@pytest.mark.parametrize(
    ("step_s", "silent_s", "stuck_s"), [(1, 12, 24), (4, 16, 28), (30, 120, 180)]
)
def test_a_slow_machine_does_not_double_the_time_until_stuck(
    step_s: float, silent_s: float, stuck_s: float
) -> None:
    beat = Heartbeat(stall_after_s=12, first_limit_s=0)
    events = [(0.0, 0, True), (step_s, 1, True)]
    for silence_s in (silent_s - 1, silent_s, stuck_s - 1, stuck_s):
        events.append((step_s + silence_s, 1, True))
    assert states(beat, events)[2:] == ["moving", "silent", "silent", "stuck"]


def test_the_question_tells_an_idle_engine_from_a_silent_one() -> None:
    """Requests are in flight for two hours, and vLLM's front end gives the engine none of them."""
    beat, answers_s, questions = Heartbeat(stall_after_s=12, first_limit_s=5), None, 0
    progress, now_s = 0, 0.0
    for now_s in (half / 2 for half in range(2 * 7200)):
        if answers_s is not None and now_s > answers_s:
            progress, answers_s = progress + 1, None
        assert beat.observe(progress, True, now_s) == "moving"
        if beat.is_in_doubt and answers_s is None:
            beat.note_question()
            answers_s, questions = now_s + 0.1, questions + 1
    assert questions > 1000
    assert beat.limit_s == 12, "no question makes the next silence longer"
    hung_s = now_s
    while beat.observe(progress, True, now_s) != "stuck":
        if beat.is_in_doubt:
            beat.note_question()
        now_s += 0.5
    assert now_s - hung_s < 30


def test_a_step_after_the_question_raises_the_limit() -> None:
    beat = Heartbeat(stall_after_s=12, first_limit_s=0)
    assert states(beat, [(0.0, 0, True), (5.5, 0, True)]) == ["moving", "moving"]
    assert not beat.is_in_doubt
    assert states(beat, [(6.0, 0, True)]) == ["moving"]
    assert beat.is_in_doubt
    beat.note_question()
    assert states(beat, [(12.0, 0, True), (20.0, 1, True)]) == ["silent", "moving"]
    assert beat.limit_s == 4 * (20 - 6)
    assert not beat.is_in_doubt


def test_a_move_between_two_looks_ends_the_first_limit() -> None:
    beat = Heartbeat(stall_after_s=12, first_limit_s=600)
    assert states(beat, [(0.0, 7, False), (1.0, 7, False)]) == ["moving"] * 2
    assert beat.limit_s == 600
    assert states(beat, [(2.0, 8, False)]) == ["moving"]
    assert beat.limit_s == 12


def test_before_the_first_step_the_limit_is_the_time_that_loading_took() -> None:
    beat = Heartbeat(stall_after_s=12, first_limit_s=60)
    assert states(beat, [(0.0, 0, True), (59.0, 0, True), (60.0, 0, True)])[1:] == [
        "moving", "silent",
    ]  # fmt: skip


@pytest.mark.parametrize("first_limit_s", [3, 600])
def test_an_engine_has_120_s_after_its_last_compiler(first_limit_s: float) -> None:
    compiling = False
    beat = Heartbeat(stall_after_s=12, first_limit_s=first_limit_s, compiles=lambda: compiling)
    beat.observe(0, True, 0.0)
    beat.observe(1, True, 1.0)  # it has moved: from now on 12 s are its limit
    assert states(beat, [(2.0, 1, True), (4.0, 1, True)]) == ["moving", "moving"]
    compiling = True
    assert set(states(beat, [(float(now), 1, True) for now in range(5, 502)])) == {"moving"}
    compiling = False
    events = [(620.9, 1, True), (621.0, 1, True), (740.9, 1, True), (741.0, 1, True)]
    assert states(beat, events) == ["moving", "silent", "silent", "stuck"]
    assert states(beat, [(742.0, 2, True)]) == ["moving"]
    # The silence of a compilation says nothing of a step.
    assert beat.limit_s == 12
    assert states(beat, [(753.0, 2, True), (754.0, 2, True)]) == ["moving", "silent"]


def test_a_compiler_at_the_start_does_not_shorten_the_first_limit() -> None:
    compiling = True
    beat = Heartbeat(stall_after_s=12, first_limit_s=600, compiles=lambda: compiling)
    assert states(beat, [(0.0, 0, True), (5.0, 0, True)]) == ["moving", "moving"]
    compiling = False
    assert states(beat, [(599.0, 0, True), (600.0, 0, True)]) == ["moving", "silent"]


def _ends_if_engine_compiles() -> None:
    os._exit(3 if engine_compiles() else 4)


def test_a_compiler_is_known_by_its_name(tmp_path: Path) -> None:
    compiler = tmp_path / "cc1plus"
    shutil.copy("/bin/sleep", compiler)
    compiler.chmod(0o755)
    processes = [subprocess.Popen([program, "60"]) for program in ("/bin/sleep", str(compiler))]
    try:
        other, compiling = (process.pid for process in processes)
        deadline_s = time.monotonic() + 30
        while not is_compiler([other, compiling]):  # between fork and exec it has another name
            assert time.monotonic() < deadline_s
        assert not is_compiler([other])
        assert engine_compiles(), "it runs below this process"
        front_end = multiprocessing.get_context("fork").Process(target=_ends_if_engine_compiles)
        front_end.start()
        front_end.join()
        assert front_end.exitcode == 3, "one of several front ends has the engine next to it"
    finally:
        for process in processes:
            process.kill()
    deadline_s = time.monotonic() + 30
    while is_compiler([compiling]):  # a zombie, since nobody has waited for it
        assert time.monotonic() < deadline_s
    assert processes[1].returncode is None
    for process in processes:
        process.wait()
    assert not is_compiler([other, compiling])


def test_a_name_that_is_not_utf_8_is_not_a_compiler(tmp_path: Path) -> None:
    program = tmp_path / "fourteen-bytesü"  # Linux keeps 15 bytes: half of the last letter
    shutil.copy("/bin/sleep", program)
    program.chmod(0o755)
    process = subprocess.Popen([str(program), "60"])
    try:
        deadline_s = time.monotonic() + 30
        while b"\xc3\n" not in Path(f"/proc/{process.pid}/comm").read_bytes():
            assert time.monotonic() < deadline_s
        assert not is_compiler([process.pid])
    finally:
        process.kill()
        process.wait()


def test_time_in_which_the_engine_waits_for_a_cpu_is_no_silence() -> None:
    beat = Heartbeat(stall_after_s=10, first_limit_s=0)
    beat.observe(0, True, 0.0, {1: 100.0, 2: 0.0})
    # On a loaded machine one process of the engine has waited 45 of 50 s for a CPU.
    assert beat.observe(0, True, 50.0, {1: 145.0, 2: 0.0, 3: 1.0}) == "moving"
    assert beat.observe(0, True, 60.0, {1: 145.0, 2: 0.0, 3: 1.0}) == "silent"


def test_a_process_that_waits_for_a_cpu_is_seen() -> None:
    """Three loops on one CPU: each waits for about two thirds of the time."""
    cpu = min(os.sched_getaffinity(0))
    program = f"import os; os.sched_setaffinity(0, [{cpu}])\nwhile True: pass"
    loops = [subprocess.Popen([sys.executable, "-c", program]) for _ in range(3)]
    try:
        time.sleep(2.0)
        waits_s = cpu_waits_s([loop.pid for loop in loops])
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()
    assert set(waits_s) == {loop.pid for loop in loops}
    assert sum(waits_s.values()) > 1.0


def test_a_stuck_engine_stays_stuck_until_it_moves() -> None:
    beat = Heartbeat(stall_after_s=1, first_limit_s=0)
    events = [(0.0, 0, True), (2.0, 0, True), (3.0, 0, False), (50.0, 0, False), (51.0, 1, False)]
    assert states(beat, events) == ["moving", "stuck", "stuck", "stuck", "moving"]


@pytest.mark.parametrize("stream", [True, False])
def test_open_requests_of_a_stuck_engine_end_with_an_error(
    monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    monkeypatch.setenv("TUNELINE_SETTINGS", '{"stall_after_s": 0.2}')
    monkeypatch.setattr(watch_module, "INTERVAL_S", 0.02)
    monkeypatch.setattr(watch_module, "process_age_s", lambda: 0.0)
    steps = 0.0
    monkeypatch.setattr(watch_module, "engine_progress", lambda: lambda: steps)

    async def scene() -> tuple[bytes, int, list[int], list[int]]:
        nonlocal steps
        inner = Inner()
        inner.gate = asyncio.Event()
        middleware = TunelineMiddleware(inner)
        watching = asyncio.create_task(watch_module.watch_engine(middleware))
        request = asyncio.create_task(send_request(middleware, CHAT, {"stream": stream}))
        await until(middleware, "stuck")
        await asyncio.sleep(0.1)
        during = [
            (await send_request(middleware, path)).status for path in ("/ready", "/health")
        ] + [(await send_request(middleware, CHAT, {})).status]
        steps = 1.0
        inner.gate.set()
        answer = await request
        await until(middleware, "moving")
        after = [(await send_request(middleware, path)).status for path in ("/ready", "/health")]
        watching.cancel()
        return answer.body, answer.status, during, after

    body, status, during, after = asyncio.run(asyncio.wait_for(scene(), 30))
    assert during == [503, 503, 503]
    assert after == [200, 200]
    if stream:
        events = body.decode().split("\n\n")
        assert json.loads(events[1].removeprefix("data: "))["error"]["code"] == 503
        assert events[2] == "data: [DONE]"
        assert status == 200
    else:
        assert (status, json.loads(body)["error"]["type"]) == (503, "ServiceUnavailableError")


def test_open_requests_of_an_engine_that_ends_get_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """vLLM tells the only front end of the end, and several front ends nothing."""
    monkeypatch.setattr(watch_module, "INTERVAL_S", 0.02)
    monkeypatch.setattr(watch_module, "engine_progress", lambda: lambda: 0.0)
    lives = True

    class Engine:
        def is_alive(self) -> bool:
            return lives

    async def scene() -> bytes:
        nonlocal lives
        inner = Inner()
        inner.gate = asyncio.Event()
        middleware = TunelineMiddleware(inner)
        middleware._engines = [Engine()]
        watching = asyncio.create_task(watch_module.watch_engine(middleware))
        request = asyncio.create_task(send_request(middleware, CHAT, {"stream": True}))
        while not inner.running:
            await asyncio.sleep(0.001)
        lives = False
        (exchange,) = middleware.in_flight
        while not exchange.is_done:
            await asyncio.sleep(0.01)
        inner.gate.set()
        watching.cancel()
        return (await request).body

    events = asyncio.run(asyncio.wait_for(scene(), 30)).decode().split("\n\n")
    error = json.loads(events[1].removeprefix("data: "))["error"]
    assert (error["code"], "has ended" in error["message"]) == (503, True)
    assert events[2] == "data: [DONE]"


def test_a_server_without_an_engine_is_not_ready() -> None:
    class Ended:
        def is_alive(self) -> bool:
            return False

    async def scene() -> list[int]:
        inner = Inner()
        middleware = TunelineMiddleware(inner)
        middleware._engines = [Ended()]
        ready = await send_request(middleware, "/ready")
        work = await send_request(middleware, CHAT, {})
        assert inner.paths == []
        return [ready.status, work.status]

    assert asyncio.run(scene()) == [503, 503]


def test_progress_is_the_sum_of_vllm_s_counters() -> None:
    tokens = Counter("vllm:prompt_tokens", "Prompt tokens.", ["engine"])
    steps = Histogram("vllm:iteration_tokens_total", "Tokens of a step.", ["engine"])
    cache = Gauge("vllm:kv_cache_usage_perc", "Used share of the cache.", ["engine"])
    try:
        tokens.labels("0")  # vLLM makes both when it starts
        steps.labels("0")
        progress = engine_progress()
        assert progress is not None
        before = progress()
        tokens.labels("0").inc(7)
        steps.labels("0").observe(100)
        assert progress() == before + 7 + 1  # seven tokens in one step
        # A piece of a long prompt: vLLM counts no token before the prompt is computed as a whole.
        cache.labels("0").set(0.25)
        assert progress() == before + 7 + 1 + 0.25
    finally:
        for metric in (tokens, steps, cache):
            REGISTRY.unregister(metric)
    assert engine_progress() is None


SHARED_PROGRESS = """
import os
from prometheus_client import Counter
from serving.middleware.heartbeat import ENGINE_STEPS, engine_progress

tokens = Counter("vllm:prompt_tokens", "Prompt tokens.")
tokens.inc(5)
if os.fork():
    os.wait()
    progress = engine_progress()
    print(progress())
else:
    ENGINE_STEPS.inc()  # another front end
"""


def test_progress_is_that_of_all_front_ends(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SHARED_PROGRESS], capture_output=True, text=True, check=False,
        timeout=60, cwd=Path(__file__).parents[4],
        env=os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)},
    )  # fmt: skip
    assert (done.stdout, done.returncode) == ("6.0\n", 0), done.stderr


def test_a_step_counts_as_progress_if_requests_go_on_after_it() -> None:
    recorded: list[object] = []

    class Manager:
        def record(self, *, engine_idx: int, scheduler_stats: Any, iteration_stats: Any) -> None:
            recorded.append((engine_idx, scheduler_stats, iteration_stats))

    manager = Manager()
    client = SimpleNamespace(logger_manager=manager)
    count_steps(SimpleNamespace(state=SimpleNamespace(engine_client=client)))
    before = REGISTRY.get_sample_value("tuneline_engine_steps_total") or 0.0
    # A piece of a prompt; an engine that looks for work without any; outputs without a step.
    stats = [SimpleNamespace(num_running_reqs=1), SimpleNamespace(num_running_reqs=0), None]
    for one in stats:
        manager.record(engine_idx=0, scheduler_stats=one, iteration_stats=None)
    assert REGISTRY.get_sample_value("tuneline_engine_steps_total") == before + 1
    assert recorded == [(0, one, None) for one in stats], "vLLM's own metrics have each of them"
    count_steps(None)


def test_the_largest_step_is_estimated_from_the_fastest_prompts() -> None:
    seconds = Histogram("vllm:request_prefill_time_seconds", "Prefill.", ["engine"])
    tokens = Histogram("vllm:request_prefill_kv_computed_tokens", "Computed.", ["engine"])

    def after(prefill_s: float, num_tokens: int) -> float:
        seconds.labels("0").observe(prefill_s)
        tokens.labels("0").observe(num_tokens)
        return estimate_s()

    try:
        estimate_s = largest_step(2048)
        assert estimate_s() == 0
        assert after(1.0, 20) == pytest.approx(2 * 2048 / 20)
        assert after(10.0, 1000) == pytest.approx(2 * 2048 / 100)
        assert after(60.0, 10) == pytest.approx(2 * 2048 / 100), "a stall makes no step longer"
        assert estimate_s() == pytest.approx(2 * 2048 / 100)
    finally:
        REGISTRY.unregister(seconds)
        REGISTRY.unregister(tokens)


def test_a_slow_engine_has_the_time_of_its_largest_step() -> None:
    """A CPU computes 100 tokens a second, so a step with 2,048 tokens takes 20 s and more."""
    beat = Heartbeat(stall_after_s=12, first_limit_s=0, largest_step_s=41)
    assert states(beat, [(0.0, 0, True), (40.9, 0, True), (41.0, 0, True), (82.0, 0, True)]) == [
        "moving", "moving", "silent", "stuck",
    ]  # fmt: skip


def test_time_in_which_the_loop_was_held_up_is_no_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    """A body that takes seconds to parse, or `docker pause`: what the engine has computed in that
    time is read after it."""
    monkeypatch.setenv("TUNELINE_SETTINGS", '{"stall_after_s": 0.2}')
    monkeypatch.setattr(watch_module, "INTERVAL_S", 0.02)
    monkeypatch.setattr(watch_module, "process_age_s", lambda: 0.0)
    steps = 0.0
    monkeypatch.setattr(watch_module, "engine_progress", lambda: lambda: steps)

    async def scene() -> tuple[int, bytes]:
        nonlocal steps
        inner = Inner()
        inner.gate = asyncio.Event()
        middleware = TunelineMiddleware(inner)
        watching = asyncio.create_task(watch_module.watch_engine(middleware))
        request = asyncio.create_task(send_request(middleware, CHAT, {"stream": True}))
        while not inner.running:
            await asyncio.sleep(0.001)
        time.sleep(1.0)  # five times the limit of silence
        await asyncio.sleep(0.05)
        steps = 1.0
        inner.gate.set()
        answer = await request
        watching.cancel()
        return answer.status, answer.body

    status, body = asyncio.run(asyncio.wait_for(scene(), 30))
    assert (status, b"error" in body) == (200, False)

"""The heartbeat: does the engine make progress while requests wait for it?

A stopped or stuck engine keeps its process and its connections, so `/health` stays 200 and clients
wait. A busy engine is slow but moves: vLLM computes a long prompt in pieces, and each piece takes
room in the KV cache.

A request may be in flight without work for the engine: its client does not read, or vLLM's front
end still prepares the prompt. So the heartbeat asks the engine for one token before it calls the
engine silent. An idle engine answers.
"""

from __future__ import annotations

import functools
import glob
import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from prometheus_client import REGISTRY
from prometheus_client.multiprocess import MultiProcessCollector

from serving.middleware.asgi import App, Scope
from serving.middleware.engine import descendants, first_process
from serving.middleware.inner import call_inner
from serving.middleware.metrics import ENGINE_STEPS

INTERVAL_S = 0.5
SLACK = 4.0
"""A silence is too long at this multiple of the longest silence of an engine with work."""

PROGRESS = (
    "vllm:iteration_tokens_total_count", "vllm:generation_tokens_total", "vllm:prompt_tokens_total",
    "vllm:kv_cache_usage_perc", "tuneline_engine_steps_total",
)  # fmt: skip
"""Metrics of which one moves with each step of the engine. vLLM's counters do not move before a
prompt is computed as a whole (vLLM 0.32), and the cache of a model with states or sliding windows
does not grow with it."""
PREFILL_S, PREFILL_TOKENS = (
    "vllm:request_prefill_time_seconds_sum", "vllm:request_prefill_kv_computed_tokens_sum",
)  # fmt: skip
PREFILL_SLACK = 2.0
"""A token costs more in a long prompt than in a short one."""

LOOK_FOR_COMPILERS_AFTER_S = 2.0
COMPILE_LIMIT_S = 120.0
"""The limit of a silence after a compiler was last seen in it. Between compilers, torch generates
code and triton measures it."""
COMPILERS = frozenset({
    "as", "c++", "cc1", "cc1plus", "cicc", "clang", "clang++", "collect2", "fatbinary", "g++",
    "gcc", "ld", "ninja", "nvcc", "ptxas",
})  # fmt: skip
"""Programs by which torch and triton compile a function at its first use, while vLLM waits."""

State = Literal["moving", "silent", "stuck"]


@dataclass
class Heartbeat:
    """The present silence, and the longest silence of an engine with work. Times in seconds."""

    stall_after_s: float
    first_limit_s: float
    """The limit until the engine has moved once under a request, since nothing is known of its
    speed."""
    compiles: Callable[[], bool] = lambda: False
    """Return whether the engine compiles a function; asked only when it is silent."""
    state: State = "moving"
    largest_step_s: float = 0.0
    """An estimate of how long a step with the most tokens takes; 0 if nothing is known."""
    _compiled_s: float | None = None
    """How long the silence was when a compiler was last seen in it."""
    _has_moved: bool = False
    _silence_s: float = 0.0
    _asked_s: float = 0.0
    """How long the silence was when the engine was asked last; 0 if it was not asked."""
    _longest_s: float = 0.0
    _progress: float = -1.0
    _since_s: float | None = None
    _waits_s: Mapping[int, float] = field(default_factory=dict)

    def observe(
        self,
        progress: float,
        is_busy: bool,
        now_s: float,
        waits_s: Mapping[int, float] = MappingProxyType({}),
    ) -> State:
        """Return the engine's state.

        An engine that was silent stays so until it moves, also when nobody asks it any longer.

        Args:
            progress: Any number that changes whenever the engine computes a step.
            is_busy: Requests wait for the engine.
            waits_s: By process of the engine, how long it has waited for a CPU since it started. A
                process that waits for a CPU is not stuck, so that time does not count.

        Returns:
            `silent` from `limit_s` on: no new requests should come. `stuck` from `stuck_after_s`
            on: nothing will come of the open requests.
        """
        if self._since_s is None or (not is_busy and self.state == "moving"):
            self._has_moved |= self._since_s is not None and progress != self._progress
            self._begin(progress, now_s, waits_s)
            return self.state
        waited_s = (wait_s - self._waits_s.get(process, 0) for process, wait_s in waits_s.items())
        silence_s = self._silence_s = now_s - self._since_s - max(waited_s, default=0)
        if progress != self._progress:
            self._has_moved = True
            if is_busy and self._compiled_s is None:
                # Before the question the engine may have been idle. Only the time after it is sure
                # to be a step; otherwise each question would let the next silence be longer.
                self._longest_s = max(self._longest_s, silence_s - self._asked_s)
            self._begin(progress, now_s, waits_s)
            self.state = "moving"
            return self.state
        if is_busy and silence_s >= LOOK_FOR_COMPILERS_AFTER_S and self.compiles():
            self._compiled_s = silence_s
        silent_s, stuck_s = self.limit_s, self.stuck_after_s
        if self._compiled_s is not None:
            silent_s = max(silent_s, self._compiled_s + COMPILE_LIMIT_S)
            stuck_s = max(stuck_s, self._compiled_s + 2 * COMPILE_LIMIT_S)
        if is_busy and silence_s >= stuck_s:
            self.state = "stuck"
        elif is_busy and silence_s >= silent_s:
            self.state = "silent"
        return self.state

    def _begin(self, progress: float, now_s: float, waits_s: Mapping[int, float]) -> None:
        """Begin a silence at this moment."""
        self._progress, self._since_s, self._waits_s = progress, now_s, waits_s
        self._silence_s = self._asked_s = 0.0
        self._compiled_s = None

    @property
    def is_in_doubt(self) -> bool:
        """Return whether the engine should be asked for a token, to tell silent from idle."""
        return self.state != "moving" or self._silence_s >= self.stall_after_s / 2

    def note_question(self) -> None:
        """Note that the engine is asked for a token now."""
        self._asked_s = self._silence_s

    @property
    def limit_s(self) -> float:
        """Return how long the engine may be silent under a request."""
        least = self.stall_after_s
        if not self._has_moved:
            least = max(least, self.first_limit_s)
        return max(least, SLACK * self._longest_s, self.largest_step_s)

    @property
    def stuck_after_s(self) -> float:
        """Return the silence from which on nothing comes of the open requests.

        A limit above `stall_after_s` has the slowness of the machine in it already.
        """
        return self.limit_s + max(self.stall_after_s, self.limit_s / 2)


def engine_progress() -> Callable[[], float] | None:
    """Return a function that adds up the metrics of progress; None if vLLM keeps none."""
    page = REGISTRY.restricted_registry(PROGRESS)
    if not any(metric.name.startswith("vllm:") for metric in page.collect()):
        return None
    folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR")

    def metrics() -> Iterable[Any]:
        if folder is None:
            return page.collect()
        # Front ends share the engine: a request of this one may wait for requests of the others.
        # Histograms would take five times as long to read, and move with the counters.
        files = glob.glob(f"{folder}/counter_*.db")  # noqa: PTH207
        return MultiProcessCollector.merge(files, accumulate=True)  # type: ignore[no-untyped-call, no-any-return]

    def total() -> float:
        samples = (sample for metric in metrics() for sample in metric.samples)
        return float(sum(sample.value for sample in samples if sample.name in PROGRESS))

    return total


def count_steps(app: Any) -> None:
    """Count the steps of the engine, which reports each of them to one of the front ends.

    Args:
        app: vLLM's application. Without an engine's client of vLLM 0.32 nothing is counted.
    """
    client = getattr(getattr(app, "state", None), "engine_client", None)
    manager = getattr(client, "logger_manager", None)
    if manager is None:
        return
    record = manager.record

    @functools.wraps(record)
    def counted(*args: Any, **kwargs: Any) -> Any:
        stats = kwargs["scheduler_stats"] if "scheduler_stats" in kwargs else args[0]
        # An engine that looks for work without finding any makes no progress.
        if stats is not None and stats.num_running_reqs > 0:
            ENGINE_STEPS.inc()
        return record(*args, **kwargs)

    manager.record = counted


def largest_step(max_tokens: int) -> Callable[[], float]:
    """Return a function that estimates the seconds of a step with `max_tokens`, 0 if it does not
    know; it is called at each look.

    It uses the fastest prompts so far: their seconds per token have the smallest share of waiting.
    """
    page = REGISTRY.restricted_registry((PREFILL_S, PREFILL_TOKENS))
    before, fastest_s = {PREFILL_S: 0.0, PREFILL_TOKENS: 0.0}, math.inf

    def estimate_s() -> float:
        nonlocal before, fastest_s
        now = dict.fromkeys(before, 0.0)
        for metric in page.collect():
            for sample in metric.samples:
                now[sample.name] += sample.value
        tokens = now[PREFILL_TOKENS] - before[PREFILL_TOKENS]
        if tokens > 0:
            fastest_s = min(fastest_s, (now[PREFILL_S] - before[PREFILL_S]) / tokens)
        before = now
        return 0.0 if fastest_s == math.inf else PREFILL_SLACK * fastest_s * max_tokens

    return estimate_s


def cpu_waits_s(processes: Iterable[int]) -> dict[int, float]:
    """Return by process how long its main thread has waited for a CPU (the second field of
    /proc/ID/schedstat). vLLM's engine and workers compute in their main threads.

    A kernel without that file gives nothing, and all silence counts.
    """
    waits_s = {}
    for process in processes:
        try:
            # pathlib would triple the cost of a look.
            with open(f"/proc/{process}/schedstat", encoding="ascii") as file:  # noqa: PTH123
                waits_s[process] = int(file.read().split()[1]) / 1e9
        except (OSError, IndexError):
            continue  # the process is gone
    return waits_s


def engine_compiles() -> bool:
    """Return whether a compiler runs below the server's first process.

    The first request with log-probabilities, for example, compiles a function: for seconds, or for
    more than half a minute on a machine with other work.
    """
    return is_compiler(descendants(first_process()))


def is_compiler(processes: Iterable[int]) -> bool:
    """Return whether one of the processes is a compiler that has not ended."""
    for process in processes:
        try:
            # A name may be cut off inside a character.
            with open(f"/proc/{process}/stat", encoding="utf-8", errors="replace") as file:  # noqa: PTH123
                name, _, fields = file.read().partition("(")[2].rpartition(")")
        except OSError:
            continue  # the process is gone
        # A zombie, in state Z, has ended and computes nothing.
        if name in COMPILERS and not fields.startswith(" Z"):
            return True
    return False


async def ask_engine(app: App, model: str, given: Scope, *, pools: bool = False) -> None:
    """Ask for one token, so that an engine that nobody asks can show that it moves.

    Args:
        given: The parts of the scope that the server sets, and vLLM's key as `headers`.
        pools: The model gives vectors or scores in place of text.
    """
    if pools:
        await call_inner(app, given, "/pooling", {"model": model, "input": "a"})
    else:
        fields = {"model": model, "prompt": "a", "max_tokens": 1}
        await call_inner(app, given, "/v1/completions", fields)

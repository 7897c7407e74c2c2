"""One client process: `python -m loadtest.client.process`, told by its parent on standard input.

First a JSON line with the plan, the key (which so never lies on disk) and where the results go;
it answers `ready` when its connections are open; then the line `start NANOSECONDS`, a time on the
monotonic clock, which all processes of a machine share.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import mmap
import os
import resource
import signal
import sys
import time
from collections.abc import MutableSequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import uvloop

from loadtest.client.client import Client
from loadtest.client.connection import Request, receive_times
from loadtest.client.greedy import greedy_answer
from loadtest.client.host import end_with_parent
from loadtest.client.plan import Plan
from loadtest.client.records import CANCELLED, FAILED, LEFT, SUCCEEDED, UNFINISHED, Records
from loadtest.client.self_check import Lags, self_check_document
from loadtest.client.session_client import SessionClient, find_model_changes
from loadtest.client.sse import Answer, parse_response

MAX_EXAMPLES = 3
NICE = -10
POOL_LEAD_S = 1.0
"""How long before a start that all pods share the connections are opened anew."""


def main() -> None:
    end_with_parent()
    # The client must not wait for the server that it measures. Without permission it goes on.
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, NICE)
    # If the kernel groups processes by session, a priority counts only inside the session.
    with contextlib.suppress(OSError):
        os.setsid()
        Path("/proc/self/autogroup").write_text(str(NICE))
    _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most_files, most_files))
    order = json.loads(sys.stdin.readline())
    plan = Plan.from_json(order["plan"])
    out = Path(order["out"])
    mapped = mmap.mmap(order["counters"], 0)
    counters = cast("MutableSequence[int]", memoryview(mapped).cast("B").cast("q"))
    requests, client, start_ns = uvloop.run(_run(plan, order["key"], counters))
    parse_started_s = time.process_time()
    reads = list(itertools.chain.from_iterable(request.reads for request in requests))
    seen_ns = np.array([read[0] for read in reads], np.int64)
    stamps = [read[1] for read in reads]
    times = receive_times(seen_ns, stamps, client.clock_offsets)
    lags = Lags((seen_ns - times) / 1e9, len(stamps) - stamps.count(None))
    records, examples, text_sample = to_records(plan, requests, times.tolist(), start_ns)
    records.save(out / f"records-{plan.worker}.npz")
    report = {
        "self_check": self_check_document(client.check, lags),
        "parse_cpu_s": time.process_time() - parse_started_s,
        "examples": examples,
        "text_sample": text_sample,
        "checked": checked_answers(plan, requests, records),
    }
    (out / f"worker-{plan.worker}.json").write_text(json.dumps(report), encoding="utf-8")


async def _run(
    plan: Plan, key: str | None, counters: MutableSequence[int]
) -> tuple[list[Request], Client, int]:
    client = (Client if plan.sessions is None else SessionClient)(plan, key, counters)
    for name in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(name, client.stop)
    await client.open_pool()
    print("ready", flush=True)  # to the parent
    line = sys.stdin.readline()
    if not line.startswith("start "):
        os._exit(0)  # the parent has given up
    start_ns = int(line.split()[1])
    wait_s = (start_ns - time.monotonic_ns()) / 1e9 - POOL_LEAD_S
    if wait_s > POOL_LEAD_S:
        # Servers close connections that nothing is asked on for a few seconds.
        client.close_pool()
        await asyncio.sleep(wait_s)
        await client.open_pool()
    return await client.run(start_ns), client, start_ns


@dataclass(frozen=True)
class _Row:
    request: Request
    answer: Answer
    first_byte_ns: int | None


def to_records(
    plan: Plan, requests: list[Request], read_times: list[int], start_ns: int
) -> tuple[Records, dict[str, list[str]], list[str]]:
    """Parse the recorded reads into answers.

    Args:
        plan: The orders of this process.
        requests: With their reads.
        read_times: When each read's bytes had arrived, over all requests; monotonic nanoseconds.
        start_ns: The start of the schedule.

    Returns:
        The records, up to three messages per class of failure, and the first texts.
    """
    answers = []
    num_texts = end = 0
    for request in requests:
        begin, end = end, end + len(request.reads)
        answer = parse_response(
            read_times[begin:end],
            [data for _, _, data in request.reads],
            closed=request.closed,
            keep_text=num_texts < MAX_EXAMPLES,
        )
        # The connection's error has priority over the parser's, unless the server itself named a
        # more exact error before.
        if request.error is not None and not _says_more(answer):
            answer.error, answer.message = request.error, request.message
        num_texts += answer.error is None and request.end_ns is not None
        answers.append(answer)
    if plan.sessions is not None:
        find_model_changes(plan, requests, answers)
    examples: dict[str, list[str]] = {}
    texts: list[str] = []
    rows = []
    end = 0
    for request, answer in zip(requests, answers, strict=True):
        begin, end = end, end + len(request.reads)
        if answer.error is None and request.end_ns is not None and len(texts) < MAX_EXAMPLES:
            texts.append(answer.text[:400])
        if answer.error not in (None, LEFT) and request.end_ns is not None:
            seen = examples.setdefault(answer.error or "", [])
            if len(seen) < MAX_EXAMPLES and answer.message not in seen:
                seen.append(answer.message)
        rows.append(_Row(request, answer, read_times[begin] if end > begin else None))
    return _columns(plan, rows, start_ns), examples, texts


def checked_answers(
    plan: Plan, requests: list[Request], records: Records
) -> list[tuple[int, int, dict[str, Any]]]:
    """Return index, prompt of the reference and answer of each check that succeeded."""
    if plan.num_unchecked is None:
        return []
    found = []
    for request, state in zip(requests, records.state, strict=True):
        number = plan.check_of(request.index)
        if number is not None and state == SUCCEEDED:
            reads = [data for _, _, data in request.reads]
            found.append((request.index, number, greedy_answer(reads)))
    return found


def _says_more(answer: Answer) -> bool:
    error = answer.error or ""
    return error in ("error_event", "invalid_sse", "aborted") or error.startswith("http_")


def _columns(plan: Plan, rows: list[_Row], start_ns: int) -> Records:
    def seconds(times_ns: list[int | None]) -> np.ndarray[Any, np.dtype[np.float64]]:
        return np.array(
            [np.nan if time is None else (time - start_ns) / 1e9 for time in times_ns], np.float64
        )

    def counts(values: list[int | float | None]) -> np.ndarray[Any, np.dtype[np.float64]]:
        return np.array([np.nan if value is None else value for value in values], np.float64)

    answers = [row.answer for row in rows]
    requests = [row.request for row in rows]
    states = []
    for row in rows:
        if row.request.end_ns is None:
            states.append(UNFINISHED)
        elif row.answer.error == LEFT:
            states.append(CANCELLED)
        else:
            states.append(SUCCEEDED if row.answer.error is None else FAILED)
    num_events = np.array([len(answer.token_times) for answer in answers], np.int64)
    event_ns = itertools.chain.from_iterable(answer.token_times for answer in answers)
    event_tokens = itertools.chain.from_iterable(map(_event_tokens, answers))
    return Records(
        index=np.array([request.index for request in requests], np.int64),
        session=np.array([plan.split(r.index)[0] for r in requests], np.int64),
        turn=np.array([plan.split(r.index)[1] for r in requests], np.int64),
        warmup=np.array([plan.is_warmup(r.index) for r in requests], np.bool_),
        state=np.array(states, np.uint8),
        error=np.array(
            [a.error or "" if s == FAILED else "" for a, s in zip(answers, states, strict=True)],
            np.dtype("U32"),
        ),
        intended_s=seconds([request.intended_ns for request in requests]),
        sent_s=seconds([request.sent_ns for request in requests]),
        first_byte_s=seconds([row.first_byte_ns for row in rows]),
        first_token_s=seconds([_first_token(answer) for answer in answers]),
        last_token_s=seconds([_last_token(answer) for answer in answers]),
        end_s=seconds([request.end_ns for request in requests]),
        tokens=counts([answer.completion_tokens for answer in answers]),
        first_tokens=counts([_first_tokens(answer) for answer in answers]),
        prompt_tokens=counts([answer.prompt_tokens for answer in answers]),
        cached_tokens=counts([answer.cached_tokens for answer in answers]),
        retry_after_s=counts([answer.retry_after_s for answer in answers]),
        resent=np.array([request.resent for request in requests], np.bool_),
        without_done=np.array([answer.without_done for answer in answers], np.bool_),
        merged_events=np.array([answer.num_merged_events for answer in answers], np.int64),
        num_events=num_events,
        event_s=(np.fromiter(event_ns, np.int64, num_events.sum()) - start_ns) / 1e9,
        event_tokens=np.fromiter(event_tokens, np.float64, num_events.sum()),
    )


def _first_token(answer: Answer) -> int | None:
    """The stop token, where it is the only one."""
    return answer.token_times[0] if answer.token_times else answer.finish_time


def _last_token(answer: Answer) -> int | None:
    """The stop token is a token without text: it comes as the event with the finish reason."""
    times = answer.token_times[-1:]
    if answer.finish_time is not None:
        times = [*times, answer.finish_time]
    return max(times, default=None)


def _first_tokens(answer: Answer) -> int | None:
    if answer.token_counts:
        return answer.token_counts[0]
    if answer.completion_tokens is None or not answer.token_times:
        return answer.completion_tokens
    extra = answer.completion_tokens - len(answer.token_times)
    return 1 if extra in (0, 1) else None


def _event_tokens(answer: Answer) -> list[float]:
    num_events = len(answer.token_times)
    if len(answer.token_counts) == num_events and num_events:
        counts = [0, *answer.token_counts]
        return [float(after - before) for before, after in itertools.pairwise(counts)]
    if answer.completion_tokens is None:
        return [float("nan")] * num_events
    return [answer.completion_tokens / num_events] * num_events if num_events else []


if __name__ == "__main__":
    main()

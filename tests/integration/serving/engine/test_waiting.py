"""vLLM's own condition between processes: it loops before it sleeps; corrected, it sleeps soon."""

from __future__ import annotations

import importlib.util
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import zmq

from serving.engine.waiting import sleep_soon

TIMEOUT_S = 0.5


@pytest.fixture
def address() -> str:
    return "inproc://notifications"


@pytest.fixture
def context() -> Iterator[zmq.Context[Any]]:
    with zmq.Context() as made:
        yield made
        made.destroy(linger=0)


@pytest.fixture
def condition_type() -> Any:
    """Return the class of a fresh copy of vLLM's module.

    The module itself may be corrected already: vLLM loads its plugins when it parses flags.
    """
    spec = importlib.util.find_spec("vllm.distributed.device_communicators.shm_broadcast")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.SpinCondition


def reader_and_writer(condition_type: Any, context: Any, address: str) -> tuple[Any, Any]:
    writer = condition_type(is_reader=False, context=context, notify_address=address)
    reader = condition_type(is_reader=True, context=context, notify_address=address)
    reader.record_read()
    return reader, writer


def wait_until(reader: Any, is_there: Callable[[], bool]) -> tuple[float, float]:
    """Wait as vLLM's queue does, and return the seconds of the clock and of the processor."""
    start_s, start_cpu_s = time.monotonic(), time.thread_time()
    while not is_there() and time.monotonic() - start_s < 8 * TIMEOUT_S:
        reader.wait(timeout_ms=round(4000 * TIMEOUT_S))
    return time.monotonic() - start_s, time.thread_time() - start_cpu_s


def cpu_share(reader: Any) -> float:
    """Return how much of a CPU a process uses that has read a message and waits for the next."""
    reader.record_read()
    end_s = time.monotonic() + TIMEOUT_S
    waited_s, cpu_s = wait_until(reader, lambda: time.monotonic() > end_s)
    return cpu_s / waited_s


def test_vllm_loops_after_a_message(condition_type: Any, context: Any, address: str) -> None:
    # If this fails after an update of vLLM, its processes sleep at once: delete the correction.
    reader, _ = reader_and_writer(condition_type, context, address)
    calls = itertools.count()
    wait_until(reader, lambda: next(calls) == 100)
    start_s = time.monotonic()
    reader.wait(timeout_ms=round(1000 * TIMEOUT_S))
    assert time.monotonic() - start_s < TIMEOUT_S / 2


def test_a_corrected_process_sleeps_until_the_notification(
    condition_type: Any, context: Any, address: str
) -> None:
    for _ in range(2):  # a forked process corrects what its parent has corrected
        sleep_soon(condition_type)
    reader, writer = reader_and_writer(condition_type, context, address)
    assert cpu_share(reader) < 0.2
    message = threading.Event()

    def send() -> None:
        message.set()
        writer.notify()

    notifying = threading.Timer(TIMEOUT_S / 10, send)
    notifying.start()
    waited_s, _ = wait_until(reader, message.is_set)
    notifying.join()
    assert TIMEOUT_S / 10 <= waited_s < TIMEOUT_S


def test_a_lost_notification_costs_little(condition_type: Any, context: Any, address: str) -> None:
    sleep_soon(condition_type)
    reader, _ = reader_and_writer(condition_type, context, address)
    message = threading.Event()
    silent = threading.Timer(TIMEOUT_S / 10, message.set)
    silent.start()
    waited_s, _ = wait_until(reader, message.is_set)
    silent.join()
    assert TIMEOUT_S / 10 <= waited_s < TIMEOUT_S

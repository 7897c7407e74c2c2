"""vLLM's own condition between processes: it loops before it sleeps, and corrected it sleeps."""

from __future__ import annotations

import importlib.util
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import zmq

from serving.engine.waiting import sleep_at_once

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


def waited_s(reader: Any) -> float:
    start_s = time.monotonic()
    reader.wait(timeout_ms=round(1000 * TIMEOUT_S))
    return time.monotonic() - start_s


def test_vllm_loops_after_a_message(condition_type: Any, context: Any, address: str) -> None:
    # If this fails after an update of vLLM, its processes sleep at once: delete the correction.
    reader, _ = reader_and_writer(condition_type, context, address)
    assert min(waited_s(reader) for _ in range(5)) < TIMEOUT_S / 2


def test_a_corrected_process_sleeps_until_the_notification(
    condition_type: Any, context: Any, address: str
) -> None:
    for _ in range(2):  # a forked process corrects what its parent has corrected
        sleep_at_once(condition_type)
    reader, writer = reader_and_writer(condition_type, context, address)
    assert waited_s(reader) > 0.9 * TIMEOUT_S
    reader.record_read()
    start_s = time.monotonic()
    notifying = threading.Timer(TIMEOUT_S / 10, writer.notify)
    notifying.start()
    reader.wait(timeout_ms=60_000)
    notifying.join()
    assert TIMEOUT_S / 10 <= time.monotonic() - start_s < 30

"""`pytest --workers N`: collect the tests once, and run their files in N forked processes.

A worker inherits every import and every collected test, so it starts at once and shares their
memory. It asks for the next unit of work (`tests/distribution.py`) before the last test of its
unit, since pytest must know which fixtures the next test needs. Its reports go to this process,
whose plugins see them as if it had run the tests itself.
"""

from __future__ import annotations

import os
import pickle
import sys
import traceback
import warnings
from collections import deque
from dataclasses import dataclass, field
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.distribution import units_of_work
from tests.shared import WORKER


@dataclass
class Worker:
    """A forked process, and the numbers of its tests that have not ended."""

    name: str
    pid: int
    pipe: Connection
    left: deque[int] = field(default_factory=deque)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--workers", type=int, default=0, help="run the files in so many forked processes"
    )


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> bool | None:
    """Give each worker a unit of work whenever it asks, until all tests have run."""
    config: Any = session.config
    num_workers = config.getoption("workers")
    if not num_workers or config.option.collectonly or session.testsfailed:
        return None
    config._tmp_path_factory.getbasetemp()  # made here, once for all workers
    units = deque(units_of_work([item.nodeid for item in session.items]))
    workers = [_start(session, f"worker{n}") for n in range(min(num_workers, len(units)))]
    try:
        while workers:
            for pipe in wait([worker.pipe for worker in workers]):
                (worker,) = (one for one in workers if one.pipe is pipe)
                try:
                    kind, data = worker.pipe.recv()
                except EOFError:
                    workers.remove(worker)
                    if not _has_ended_well(session, worker):
                        if worker.left:
                            units.appendleft(list(worker.left))
                        workers.append(_start(session, worker.name))
                    continue
                if kind == "more":
                    unit = units.popleft() if units else []
                    worker.left.extend(unit)
                    worker.pipe.send(unit)
                elif kind == "ended":
                    worker.left.popleft()
                else:
                    _pass_on(config, worker, kind, data)
            if session.shouldfail:
                raise session.Failed(session.shouldfail)
            if session.shouldstop:
                raise session.Interrupted(session.shouldstop)
    finally:
        # A worker that is still at work cannot send the report of its test, and ends.
        for worker in workers:
            worker.pipe.close()
        for worker in workers:
            os.waitpid(worker.pid, 0)
    return True


def _has_ended_well(session: pytest.Session, worker: Worker) -> bool:
    """Wait for the end of a worker; fail the test in which it died."""
    status = os.waitstatus_to_exitcode(os.waitpid(worker.pid, 0)[1])
    if not worker.left:
        assert status == 0, f"{worker.name} died after its last test; its exit code is {status}"
        return True
    item = session.items[worker.left.popleft()]
    report = pytest.TestReport(
        item.nodeid, item.location, {}, "failed",
        f"{worker.name} died in this test; its exit code is {status}", "call",
    )  # fmt: skip
    session.config.hook.pytest_runtest_logreport(report=report)
    return False


def _start(session: pytest.Session, name: str) -> Worker:
    ours, its = Pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        its.close()
        return Worker(name, pid, ours)
    status = 1
    try:
        ours.close()
        _work(session, name, its)
        status = 0
    except Exception:  # noqa: BLE001 (the parent raises it)
        its.send(("broken", traceback.format_exc()))
    finally:
        os._exit(status)


def _work(session: pytest.Session, name: str, pipe: Connection) -> None:
    """Run units of work in this process, which is a fork, until there is no other one."""
    config: Any = session.config
    os.environ[WORKER] = name
    # The file of the parent's capture has one position for all processes that share it.
    capture = config.pluginmanager.getplugin("capturemanager")
    capture.stop_global_capturing()
    capture.start_global_capturing()
    nowhere = Path(os.devnull).open("w")  # noqa: SIM115 (open until the end)
    config.pluginmanager.getplugin("terminalreporter")._tw._file = nowhere
    # A folder of its own in the folder of the run.
    factory = config._tmp_path_factory
    factory._basetemp = factory.getbasetemp() / name
    factory._basetemp.mkdir(exist_ok=True)
    # A new plugin hears of every earlier warning; the parent has seen those.
    config.hook.pytest_warning_recorded._call_history.clear()
    config.pluginmanager.register(_sender(config, pipe))
    queue: deque[int] = deque()

    def next_number() -> int | None:
        if not queue:
            pipe.send(("more", None))
            queue.extend(pipe.recv())
        return queue.popleft() if queue else None

    number = next_number()
    try:
        while number is not None:
            following = next_number()
            config.hook.pytest_runtest_protocol(
                item=session.items[number],
                nextitem=None if following is None else session.items[following],
            )
            pipe.send(("ended", None))
            number = following
    finally:
        session._setupstate.teardown_exact(None)


def _sender(config: pytest.Config, pipe: Connection) -> Any:
    """Return a plugin that sends the reports and the warnings of tests to the parent."""

    def pytest_runtest_logreport(report: pytest.TestReport) -> None:
        data = config.hook.pytest_report_to_serializable(config=config, report=report)
        pipe.send(("report", data))

    def pytest_warning_recorded(
        warning_message: warnings.WarningMessage, nodeid: str, location: Any
    ) -> None:
        category = warning_message.category
        try:
            pickle.dumps(category)
        except (pickle.PicklingError, AttributeError):  # a class inside a function
            category = Warning
        words = str(warning_message.message), category
        place = warning_message.filename, warning_message.lineno
        pipe.send(("warning", (words + place, nodeid, location)))

    plugin: Any = ModuleType("sender")
    plugin.pytest_runtest_logreport = pytest_runtest_logreport
    plugin.pytest_warning_recorded = pytest_warning_recorded
    return plugin


def _pass_on(config: pytest.Config, worker: Worker, kind: str, data: Any) -> None:
    """Tell the plugins of this process what a worker has sent."""
    if kind == "report":
        report = config.hook.pytest_report_from_serializable(config=config, data=data)
        config.hook.pytest_runtest_logreport(report=report)
    elif kind == "warning":
        (text, category, filename, lineno), nodeid, location = data
        message = warnings.WarningMessage(text, category, filename, lineno)
        config.hook.pytest_warning_recorded.call_historic(
            kwargs={
                "warning_message": message, "when": "runtest", "nodeid": nodeid,
                "location": location,
            }
        )  # fmt: skip
    else:
        assert kind == "broken"
        raise RuntimeError(f"{worker.name}: {data}")

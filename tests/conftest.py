"""For all tests."""

import gc
import os
import shutil
import subprocess
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.browser import chromium
from tests.distribution import order, scheduler
from tests.skips import unexpected_skips
from tests.template import fork_workers
from tests.timing import MOST_AGAIN, measures_time
from tuneline.core.progress import logger

if TYPE_CHECKING:
    from playwright.sync_api import Browser

# ONNX Runtime would open a database when it is imported, which forked workers would share.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Collect without looks for garbage: modules and tests stay, and there are millions of them.

    Later looks are rarer than Python's own: they took a tenth of the CPU time of a run.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.set_threshold(50_000)
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: order(item.nodeid))
    for item in items:
        # Workers that collect other ids run no test at all.
        if " at 0x" in item.nodeid:
            raise pytest.UsageError(f"the id has an address: {item.nodeid}")
        if measures_time(item.nodeid):
            item.add_marker(pytest.mark.flaky(reruns=1))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Share the tests out by file; `tests/distribution.py` has the exceptions and the order."""
    return scheduler(config, log) if config.getoption("dist") == "loadfile" else None


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes(config: pytest.Config, specs: Any) -> None:
    """Fork the workers from one process; `tests/template.py` says why."""
    config.stash[TEMPLATE] = fork_workers(specs, config.args)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail a run that skipped a test for a reason that `tests/skips.py` does not list, or in which
    too many tests of time ran once more."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None or hasattr(session.config, "workerinput"):
        return
    reasons = [report.longrepr[2] for report in reporter.stats.get("skipped", [])]
    problems = unexpected_skips(reasons)
    num_again = len(reporter.stats.get("rerun", []))
    if num_again > MOST_AGAIN:
        problems.append(f"{num_again} tests ran once more; expected at most {MOST_AGAIN}")
    if problems and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
    session.config.stash[SKIPS] = (len(reasons), problems)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    num_skipped, problems = config.stash.get(SKIPS, (0, []))
    terminalreporter.write_line(f"skipped tests: {num_skipped}")
    again = [report.nodeid for report in terminalreporter.stats.get("rerun", [])]
    terminalreporter.write_line(f"tests that ran once more: {len(again)}")
    for node_id in again:
        terminalreporter.write_line(f"ran once more: {node_id}")
    for problem in problems:
        terminalreporter.write_line(f"error: {problem}", red=True)


SKIPS = pytest.StashKey[tuple[int, list[str]]]()
TEMPLATE = pytest.StashKey[subprocess.Popen[str] | None]()


@pytest.fixture(autouse=True)
def _no_handler_of_another_test() -> Iterator[None]:
    """A command that ran in this process logs to the stderr of its own test, closed by now."""
    yield
    logger.handlers = []
    logger.propagate = True


@pytest.fixture
def small_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Path]]:
    """A real file system of a few KiB, which is said to have room: what is filled is filled by the
    writing itself. It needs the right to mount one."""
    mounted: list[Path] = []

    def mount(size: str) -> Path:
        disk = tmp_path / "disk"
        disk.mkdir()
        options = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)]
        if os.geteuid() != 0 or subprocess.run(options, check=False).returncode:
            pytest.skip("may not mount a file system")
        mounted.append(disk)
        plenty = shutil.disk_usage(tmp_path)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: plenty)
        return disk

    yield mount
    for disk in mounted:
        # A writer that failed may still hold a file open.
        subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    with chromium() as started:
        yield started


@pytest.fixture(scope="session")
def calibration() -> Path:
    """llm-compressor's own environment, made on first use."""
    from export.quantize.llm_compressor_environment import install_calibration
    from tuneline.core.errors import MissingError

    try:
        return install_calibration()
    except MissingError as error:
        pytest.skip(f"llm-compressor cannot be installed here: {error.message}")

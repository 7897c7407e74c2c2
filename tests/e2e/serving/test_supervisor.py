"""The foreground server: a crash, a restart, signals, and that nothing of it stays."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar
from urllib.request import urlopen

import httpx
import openai
import pytest

from serving.scratch import new_scratch
from serving.supervisor.group import group_members
from tuneline.models.source import ModelSource

ROOT = Path(__file__).parents[3]
T = TypeVar("T")

SUPERVISOR = """
import json, sys
from pathlib import Path
from serving.config import ServingConfig
from serving.supervisor.restarts import serve_model
from tuneline.models.source import resolve_model
from tuneline.core.progress import set_up_logging

set_up_logging()
config = ServingConfig(**json.loads(sys.argv[2]))
ready = lambda server: print(json.dumps({"url": server.endpoint.url}), flush=True)
log_path = Path("vllm.log")
model = resolve_model(sys.argv[1])
sys.exit(serve_model(config, model, name="t", log_path=log_path, on_ready=ready))
"""


@pytest.fixture
def start(
    base: ModelSource, tmp_path: Path, serving_settings: dict[str, Any]
) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start the foreground server from another directory, as a user does."""
    started: list[subprocess.Popen[str]] = []

    def start_supervisor(**settings: Any) -> subprocess.Popen[str]:
        config = json.dumps({**serving_settings, **settings})
        with (tmp_path / "stderr").open("w") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-c", SUPERVISOR, str(base.path), config],
                cwd=tmp_path, stdout=subprocess.PIPE, stderr=stderr, text=True,
                env={**os.environ, "PYTHONPATH": str(ROOT), "VLLM_API_KEY": "k-123"},
            )  # fmt: skip
        started.append(process)
        return process

    yield start_supervisor
    for process in started:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


@pytest.mark.timeout(1200)  # two starts
def test_a_crash_restarts_it_and_sigterm_drains_it(
    start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    supervisor = start(max_restarts=1, max_model_len=1024, shutdown_timeout=180)
    first = ready_line(supervisor)
    crashed = server_group(supervisor.pid)
    assert crashed is not None
    folder, *segments = temporary_paths(crashed)
    assert len(list(folder.iterdir())) >= 4 and segments
    kill_engine_under_load(crashed, first["url"])
    address = first["url"].removeprefix("http://").removesuffix("/v1")
    errors = tmp_path / "stderr"
    ready = r"ready after [\d.]+ s: .*\n  seconds: imports [\d.]+, engine"
    wait_for(lambda: len(re.findall(ready, errors.read_text())) == 2, 180)
    assert status_of(address, "/ready") == 200, "the port stays the same"
    assert not [path for path in (folder, *segments) if path.exists()]
    group = server_group(supervisor.pid)
    assert group is not None
    assert group != crashed
    assert group_members(crashed) == []
    stderr = errors.read_text()
    assert "vLLM died while serving" in stderr
    assert "restart 1 of at most 1 within an hour" in stderr
    assert 'Authorization: Bearer $VLLM_API_KEY"' in stderr
    assert "k-123" not in stderr + (tmp_path / "vllm.log").read_text()

    url = first["url"]
    with urlopen(f"http://{address}/metrics") as page:
        metrics = page.read().decode()
    assert "\ntuneline_restarts_total 1.0\n" in metrics
    parts = re.findall(r'tuneline_ready_phase_seconds{phase="(\w+)"} [\d.]+', metrics)
    assert parts == ["imports", "engine", "routes", "answer"]
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=url, api_key="wrong").models.list()

    client = openai.OpenAI(base_url=url, api_key="k-123", max_retries=0)
    stream: Any = client.completions.create(
        model="t", prompt="Category", max_tokens=700, stream=True, extra_body={"ignore_eos": True}
    )
    finish_reasons = [next(stream).choices[0].finish_reason]
    assert finish_reasons == [None]
    reader = threading.Thread(
        target=lambda: finish_reasons.extend(chunk.choices[0].finish_reason for chunk in stream)
    )
    reader.start()
    supervisor.send_signal(signal.SIGTERM)
    wait_for(lambda: status_of(address, "/ready") == 503, 10)
    assert status_of(address, "/health") == 200
    with pytest.raises(openai.InternalServerError, match="shutting down") as refused:
        client.completions.create(model="t", prompt="Category")
    assert refused.value.status_code == 503
    assert refused.value.response.headers["retry-after"] == "5"
    reader.join(timeout=180)
    assert finish_reasons[-1] == "length", "the answer in progress is finished"
    left = temporary_paths(group)
    assert supervisor.wait(timeout=30) == 0
    assert group_members(group) == []
    assert not [path for path in left if path.exists()]


def kill_engine_under_load(group: int, url: str) -> None:
    """Kill the engine under eight streams; each stream that is not whole by then ends with an error
    of OpenAI's shape."""
    (engine,) = children_of(group)
    body = {"model": "t", "prompt": "Category", "max_tokens": 900, "stream": True,
            "ignore_eos": True}  # fmt: skip
    started = threading.Barrier(9)

    def stream() -> tuple[str | None, float]:
        lines = []
        headers = {"authorization": "Bearer k-123"}
        with httpx.stream(
            "POST", f"{url}/completions", json=body, headers=headers, timeout=60
        ) as answer:
            events = answer.iter_lines()
            next(events)
            started.wait(60)
            lines = [line.removeprefix("data: ") for line in events if line]
        if any('"finish_reason":"length"' in line for line in lines):
            return None, time.monotonic()
        return next(line for line in lines if '"error"' in line), time.monotonic()

    with ThreadPoolExecutor(8) as pool:
        streams = [pool.submit(stream) for _ in range(8)]
        started.wait(60)
        os.kill(engine, signal.SIGKILL)
        killed_s = time.monotonic()
        last_ready_s = last_probe_that_is_ready_s(url, killed_s + 5)
        assert last_ready_s - killed_s < 2, "/ready says 200 and no request can be answered"
        broken = [one for one in (future.result() for future in streams) if one[0] is not None]
        assert broken
        for event, ended_s in broken:
            assert event is not None
            assert {"message", "type", "code"} <= json.loads(event)["error"].keys()
            assert ended_s - killed_s < 15  # about 2 s on a machine without other work


def last_probe_that_is_ready_s(url: str, until_s: float) -> float:
    """Return when the last probe was sent that `/ready` answers with 200."""
    address = url.removeprefix("http://").removesuffix("/v1")
    last_s = 0.0
    while (sent_s := time.monotonic()) < until_s:
        try:
            if status_of(address, "/ready") == 200:
                last_s = sent_s
        except OSError:
            break  # the server has ended
        time.sleep(0.02)
    return last_s


def children_of(pid: int) -> list[int]:
    """Return the children of all threads of a process that are still alive."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += [int(child) for child in (task / "children").read_text().split()]
    return [child for child in found if "resource_tracker" not in command_of(child)]


def command_of(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_loading_ends_everything_at_once(
    start: Callable[..., subprocess.Popen[str]], number: signal.Signals
) -> None:
    supervisor = start()
    group = wait_for(lambda: server_group(supervisor.pid), 60)
    supervisor.send_signal(number)
    assert supervisor.wait(timeout=15) == 128 + number
    assert group_members(group) == []


def test_a_supervisor_that_is_killed_leaves_no_server(
    start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    supervisor = start()
    group = wait_for(lambda: server_group(supervisor.pid), 60)
    # By then the engine is a process of its own, which must go too.
    wait_for(lambda: len(group_members(group)) >= 3, 180)
    folder, *segments = wait_for(
        lambda: paths if len(paths := temporary_paths(group)) > 1 else [], 60
    )
    supervisor.kill()
    supervisor.wait()
    wait_for(lambda: not group_members(group), 15)
    assert not [path for path in segments if path.exists()]
    assert folder.exists(), "nobody was left to remove it"
    new_scratch(folder.parent).close()
    assert not folder.exists(), "the next start removes it"


def temporary_paths(group: int) -> list[Path]:
    """Return a server's folder for temporary files, then its files of shared memory."""
    variables = Path(f"/proc/{group}/environ").read_text().split("\0")
    folder = next(text for text in variables if text.startswith("TMPDIR="))
    found = set()
    for member in group_members(group):
        with contextlib.suppress(OSError):  # the process is gone
            maps = Path(f"/proc/{member}/maps").read_text()
            found |= set(re.findall(r"/dev/shm/psm_\w+", maps))  # noqa: S108 (a kernel's name)
    return [Path(folder.removeprefix("TMPDIR=")), *map(Path, sorted(found))]


def ready_line(supervisor: subprocess.Popen[str]) -> dict[str, str]:
    assert supervisor.stdout is not None
    line = supervisor.stdout.readline()
    assert line, "the supervisor ended before it was ready"
    document: dict[str, str] = json.loads(line)
    return document


def server_group(supervisor_pid: int) -> int | None:
    """The process group of the server that a supervisor started: its only child."""
    path = Path(f"/proc/{supervisor_pid}/task/{supervisor_pid}/children")
    children = [int(pid) for pid in path.read_text().split()]
    return next((pid for pid in children if os.getpgid(pid) == pid), None)


def status_of(address: str, path: str) -> int:
    connection = http.client.HTTPConnection(address, timeout=10)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    finally:
        connection.close()


def wait_for(condition: Callable[[], T | None], timeout_s: float) -> T:
    deadline_s = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline_s, f"not within {timeout_s:g} s"
        time.sleep(0.05)
    return value

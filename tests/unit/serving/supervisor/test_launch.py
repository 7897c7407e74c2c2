"""vLLM's worker is forked only where a fork computes like the spawned worker."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from serving.supervisor.launch import can_fork_workers

ROOT = Path(__file__).parents[4]


@pytest.fixture
def cpu_build(tmp_path: Path) -> Path:
    (tmp_path / "_C_AVX2.abi3.so").touch()
    return tmp_path


@pytest.mark.parametrize("num_cpus", [1, 2])
def test_a_worker_with_one_thread_is_forked(cpu_build: Path, num_cpus: int) -> None:
    assert can_fork_workers({}, num_cpus, cpu_build)


def test_a_worker_with_several_threads_is_spawned(cpu_build: Path) -> None:
    assert not can_fork_workers({}, 3, cpu_build)


@pytest.mark.parametrize(
    "environ",
    [
        {"VLLM_CPU_OMP_THREADS_BIND": "0-1"},
        {"VLLM_CPU_NUM_OF_RESERVED_CPU": "0"},
        {"VLLM_CPU_SIM_MULTI_NUMA": "1"},
    ],
)
def test_threads_that_the_user_binds_are_spawned(cpu_build: Path, environ: dict[str, str]) -> None:
    assert not can_fork_workers(environ, 2, cpu_build)


def test_a_build_for_a_device_spawns(tmp_path: Path) -> None:
    assert not can_fork_workers({}, 2, tmp_path)


def test_an_allocator_to_preload_is_spawned_unless_loaded(cpu_build: Path) -> None:
    (cpu_build / "libs").mkdir()
    (cpu_build / "libs" / "libtcmalloc_minimal.so.4").touch()
    assert not can_fork_workers({}, 2, cpu_build)
    assert can_fork_workers({"LD_PRELOAD": "/x/libtcmalloc_minimal.so.4"}, 2, cpu_build)


FORKED = """
import os, signal, socket, sys, time
from serving.supervisor.launch import _leave_to_parent

# vLLM binds its port, then starts the engine, then listens.
with socket.socket() as listener, socket.socketpair()[0] as other:
    listener.bind(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    other.setblocking(False)
    signal.set_wakeup_fd(other.fileno())
    os.environ["GOMP_CPU_AFFINITY"] = str(min(os.sched_getaffinity(0)))
    os.register_at_fork(after_in_child=_leave_to_parent)
    reader, writer = os.pipe()
    if (pid := os.fork()) == 0:
        os.write(writer, b"%d %d" % (signal.set_wakeup_fd(-1), len(os.sched_getaffinity(0))))
        time.sleep(60)
    print(os.read(reader, 100).decode())
    listener.listen()
    socket.create_connection(("127.0.0.1", port)).close()
try:
    socket.create_connection(("127.0.0.1", port))
except ConnectionRefusedError:
    print("refused")
os.kill(pid, signal.SIGKILL)
os.waitpid(pid, 0)
"""


def test_a_forked_child_leaves_port_and_signals_to_its_parent() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORKED], cwd=ROOT, capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip
    assert done.stdout.splitlines() == ["-1 1", "refused"], done.stderr

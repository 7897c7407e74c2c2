"""`python -m serving.supervisor.launch ARGS` runs `vllm serve ARGS` for any distribution of vLLM.

The console script of the CPU distribution ends at once (it asks for the metadata of a distribution
named `vllm`), so this module calls the same parser and the same `serve` command.

The supervisor passes the read end of a pipe in `TUNELINE_LIFELINE`. The kernel closes the other end
when the supervisor is gone, for whatever reason, and the process group then ends: a server that
outlives its supervisor would hold its GPU and its port for nobody. A byte in the pipe says that the
model's files are checked: imports need no model, so the supervisor checks the files during them.

vLLM for CPUs spawns two further processes, the engine and its worker, and each imports torch,
transformers and vLLM again: two thirds of the time to ready. They fork here if a fork gives the
same worker (`can_fork_workers`).
"""

from __future__ import annotations

import gc
import importlib.util
import multiprocessing
import os
import signal
import socket
import stat
import threading
from collections.abc import Mapping
from pathlib import Path

from serving.supervisor.group import end_own_group

LIFELINE = "TUNELINE_LIFELINE"

# Variables by which a user binds the worker's threads; libgomp reads the result when it is loaded.
BINDING = ("VLLM_CPU_OMP_THREADS_BIND", "VLLM_CPU_NUM_OF_RESERVED_CPU", "VLLM_CPU_SIM_MULTI_NUMA")


def main() -> None:
    descriptor = os.environ.pop(LIFELINE, None)
    may_load = threading.Event()
    if descriptor is None:
        may_load.set()
    else:
        threading.Thread(target=_follow, args=(int(descriptor), may_load), daemon=True).start()
    # Modules stay loaded, so a collection during their import only costs time.
    gc.disable()
    if can_fork_workers(os.environ, len(os.sched_getaffinity(0)), _vllm_folder()):
        _fork_workers()
    _serve(may_load)


def can_fork_workers(environ: Mapping[str, str], num_cpus: int, vllm: Path) -> bool:
    """Return whether a forked worker computes like the worker that vLLM would spawn.

    A spawned worker loads its OpenMP library anew, with the number and the places of its threads in
    the environment. A forked worker inherits a library that is loaded already. With two CPUs vLLM
    leaves one to the worker: the worker has one thread, and an affinity mask pins it.
    """
    if num_cpus > 2 or any(environ.get(name) for name in BINDING):
        return False
    if any((vllm / "libs").glob("libtcmalloc*")) and "tcmalloc" not in environ.get(
        "LD_PRELOAD", ""
    ):
        return False  # a spawned worker preloads this allocator
    # Only the build for x86 CPUs has this library; a device does not survive a fork.
    return (vllm / "_C_AVX2.abi3.so").is_file()


def _vllm_folder() -> Path:
    found = importlib.util.find_spec("vllm")
    if found is None or found.origin is None:
        return Path()
    return Path(found.origin).parent


def _fork_workers() -> None:
    """Make vLLM fork its engine and its worker from this process, which has imported everything."""
    os.environ["OMP_NUM_THREADS"] = "1"  # the worker's; read when torch is imported
    from vllm.utils import system_utils

    # vLLM's modules import this function by name, so it is replaced before they are imported.
    system_utils.get_mp_context = lambda: multiprocessing.get_context("fork")
    import vllm.v1.engine.core
    import vllm.v1.executor.multiproc_executor
    import vllm.v1.worker.cpu_worker  # noqa: F401
    from vllm.model_executor.models import registry

    # vLLM inspects a model's class that is not in its cache in a process of its own, which keeps
    # CUDA out of this one and imports everything again.
    registry._run_in_subprocess = lambda inspect: inspect()

    os.register_at_fork(after_in_child=_leave_to_parent)


def _leave_to_parent() -> None:
    """Give up what a spawned process would not have inherited, and bind the worker."""
    # A signal to the child would wake the event loop of the parent.
    signal.set_wakeup_fd(-1)
    # The port of the parent: a child that keeps it open takes connections that nobody answers.
    null = os.open(os.devnull, os.O_RDWR)
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 (numbers, no paths)
        if _is_tcp(int(name)):
            os.dup2(null, int(name))  # not closed: an object of the parent's still names it
    os.close(null)
    # vLLM sets this variable around the start of a worker.
    if cpus := os.environ.get("GOMP_CPU_AFFINITY"):
        os.sched_setaffinity(0, {int(cpu) for cpu in cpus.split()})


def _is_tcp(descriptor: int) -> bool:
    try:
        if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
            return False
        with socket.socket(fileno=os.dup(descriptor)) as copy:
            return copy.family in (socket.AF_INET, socket.AF_INET6)
    except OSError:
        return False


def _follow(descriptor: int, may_load: threading.Event) -> None:
    """Let the model be loaded after a byte, and end the group when the other end is closed."""
    while os.read(descriptor, 1):
        may_load.set()
    end_own_group()


def _serve(may_load: threading.Event) -> None:
    from vllm.entrypoints.cli.serve import ServeSubcommand
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.entrypoints.serve.utils.api_utils import cli_env_setup
    from vllm.logger import configure_logging_from_args
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    # Forked processes then share these objects with this one.
    gc.freeze()
    gc.enable()
    may_load.wait()
    cli_env_setup()
    parser = make_arg_parser(FlexibleArgumentParser(prog="vllm serve"))
    args = parser.parse_args()
    configure_logging_from_args(args)
    command = ServeSubcommand()
    command.validate(args)
    command.cmd(args)


if __name__ == "__main__":
    main()

"""The check before a model is loaded: every process is there, alike, and reaches every other."""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from training.launch.place import Place
from tuneline.core.errors import ConfigError, MissingError, TunelineError
from tuneline.core.shorten import shorten

POLL_S = 0.05
CONNECT_S = 5.0
"""Longest wait for one connection; the whole check ends with `timeout_s`."""
LAST_WORDS_S = 1.0
COLLECTIVE_TIMEOUT = timedelta(minutes=30)
"""Longest wait of a step for another process: rank 0 may be writing a checkpoint."""

Hello = dict[str, Any]


class PeerLostError(MissingError):
    """Another process ended, or the connection to it broke; only that process knows why."""


def join_processes(place: Place, timeout_s: float, facts: Mapping[str, Any]) -> None:
    """Meet the other processes, compare facts with them, and start the process group.

    Args:
        facts: Versions, settings and digests by name, which must be equal in all processes.

    Raises:
        MissingError: Processes did not arrive, or cannot reach one another; the message names them.
        ConfigError: Processes differ in a fact.
    """
    deadline_s = time.monotonic() + timeout_s
    store = _open_store(place, timeout_s)
    try:
        _meet(place, store, timeout_s, deadline_s, facts)
    except TunelineError:
        if place.rank == 0:
            time.sleep(LAST_WORDS_S)  # the store ends with rank 0; the others still read it
        raise
    _start_group(place, store, max(POLL_S, deadline_s - time.monotonic()))


def _meet(
    place: Place, store: Any, timeout_s: float, deadline_s: float, facts: Mapping[str, Any]
) -> None:
    address = _own_address(place)
    listener = socket.create_server((address if place.file else "", 0))
    threading.Thread(target=_answer, args=(listener,), daemon=True).start()
    hello = {"host": socket.gethostname(), "address": address, "port": listener.getsockname()[1]}
    store.set(f"hello/{place.rank}", json.dumps({**hello, "facts": dict(facts)}))
    hellos = _collect(
        store, "hello", place.size, deadline_s,
        lambda missing: f"{_ranks(missing)} of {place.size} did not arrive in {timeout_s:g} s; "
        f"{place.title} waited",
    )  # fmt: skip
    require_alike(hellos)
    store.set(f"reach/{place.rank}", json.dumps(_unreached(place, hellos, deadline_s)))
    reports = _collect(
        store, "reach", place.size, deadline_s,
        lambda missing: f"{_ranks(missing)} ended while the processes looked for one another",
    )  # fmt: skip
    require_reached(hellos, reports)
    listener.close()


def require_alike(hellos: Sequence[Hello]) -> None:
    """Check that all processes have the facts of rank 0.

    Raises:
        ConfigError: One line for each rank and fact that differ.
    """
    first = hellos[0]["facts"]
    problems = [
        f"rank {rank} on {hello['host']} has {name} {_short(hello['facts'].get(name))}; rank 0 on "
        f"{hellos[0]['host']} has {_short(first.get(name))}"
        for rank, hello in enumerate(hellos)
        for name in {**first, **hello["facts"]}
        if hello["facts"].get(name) != first.get(name)
    ]
    if problems:
        raise ConfigError(
            problems,
            hint="Run the same installation, run.yaml and data on each host.",
        )


def require_reached(hellos: Sequence[Hello], reports: Sequence[Sequence[int]]) -> None:
    """Check that each process reached every other.

    Args:
        reports: For each rank, the ranks that it did not reach.

    Raises:
        MissingError: One line for each pair of ranks without a connection.
    """
    lines = [
        f"rank {rank} on {hellos[rank]['host']} cannot reach rank {other} on "
        f"{hellos[other]['host']} at {hellos[other]['address']}:{hellos[other]['port']}"
        for rank, unreached in enumerate(reports)
        for other in unreached
    ]
    if lines:
        raise MissingError(
            "\n".join(lines),
            hint="Open all ports between the hosts; processes of a training connect in pairs.",
        )


def _open_store(place: Place, timeout_s: float) -> Any:
    if place.file is not None:
        # accelerate asks for an address as soon as it sees several processes; nothing connects.
        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
        return dist.FileStore(place.file, place.size)
    assert place.address is not None  # noqa: S101 (a place has a file or an address)
    host, port = place.address
    wait = timedelta(seconds=timeout_s)
    try:
        with _without_stack_traces():
            return dist.TCPStore(
                host, port, None, is_master=place.rank == 0, timeout=wait, wait_for_workers=False
            )
    except RuntimeError as error:
        if place.rank == 0 and "listen" not in str(error):
            raise ConfigError(
                f"{place.title} does not reach itself at {host}:{port}; expected a name or an "
                "address of this host",
                hint="Set the host of training.launch.rendezvous, or MASTER_ADDR, to the host of "
                "rank 0.",
            ) from None
        if place.rank == 0:
            raise ConfigError(
                f"{place.title} cannot listen on port {port}: {str(error).splitlines()[0]}",
                hint="Set another MASTER_PORT (or the port of training.launch.rendezvous) on all "
                "hosts.",
            ) from None
        raise MissingError(
            f"{place.title} does not reach rank 0 at {host}:{port} in {timeout_s:g} s",
            hint="Start rank 0, and open the port between the hosts.",
        ) from None


@contextmanager
def _without_stack_traces() -> Iterator[None]:
    """Keep torch from writing stack traces of C++ to the terminal; its error says the same."""
    sys.stderr.flush()
    kept = os.dup(2)
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _collect(
    store: Any, name: str, size: int, deadline_s: float, problem: Callable[[list[int]], str]
) -> list[Any]:
    """Return what each rank wrote under a name.

    Raises:
        MissingError: Ranks wrote nothing until the deadline.
    """
    missing = list(range(size))
    while missing:
        missing = [rank for rank in missing if not store.check([f"{name}/{rank}"])]
        if missing and time.monotonic() > deadline_s:
            raise MissingError(
                problem(missing),
                hint="Look at the logs of these ranks; training.launch.timeout_s is the wait.",
            )
        if missing:
            time.sleep(POLL_S)
    return [json.loads(store.get(f"{name}/{rank}")) for rank in range(size)]


def _own_address(place: Place) -> str:
    """Return the address of this host that other hosts see."""
    if place.address is None:
        return "127.0.0.1"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(place.address)  # sends nothing; the kernel chooses the interface
            address = str(probe.getsockname()[0])
        except OSError:
            return "127.0.0.1"
    return address


def _answer(listener: socket.socket) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:  # closed: the check is over
            return
        connection.close()


def _unreached(place: Place, hellos: Sequence[Hello], deadline_s: float) -> list[int]:
    """Return the ranks to which this process cannot connect."""

    def reached(rank: int) -> bool:
        wait_s = min(CONNECT_S, max(POLL_S, deadline_s - time.monotonic()))
        address = (hellos[rank]["address"], hellos[rank]["port"])
        try:
            socket.create_connection(address, timeout=wait_s).close()
        except OSError:
            return False
        return True

    others = [rank for rank in range(place.size) if rank != place.rank]
    with ThreadPoolExecutor(max_workers=16) as pool:
        found = list(pool.map(reached, others))
    return [rank for rank, is_reached in zip(others, found, strict=True) if not is_reached]


def _start_group(place: Place, store: Any, wait_s: float) -> None:
    """Start the process group, and add a number over all processes.

    Raises:
        MissingError: The sum does not arrive in time, or is another.
    """
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    if backend == "nccl":
        torch.cuda.set_device(place.local_rank)
    problem = f"{place.title}: the first exchange by {backend} with {place.size - 1} others failed"
    try:
        dist.init_process_group(
            backend, store=dist.PrefixStore("group", store), rank=place.rank,
            world_size=place.size, timeout=COLLECTIVE_TIMEOUT,
        )  # fmt: skip
        device = torch.device("cuda" if backend == "nccl" else "cpu")
        ones = torch.ones(1, device=device)
        dist.all_reduce(ones, async_op=True).wait(timedelta(seconds=wait_s))
    except RuntimeError as error:
        raise MissingError(
            f"{problem}: {str(error).splitlines()[0]}",
            hint="Name the network interface: GLOO_SOCKET_IFNAME, or NCCL_SOCKET_IFNAME with GPUs.",
        ) from None
    if int(ones) != place.size:
        raise MissingError(f"{problem}: the sum of ones is {int(ones)}; expected {place.size}")


def _ranks(ranks: Sequence[int]) -> str:
    return ("rank " if len(ranks) == 1 else "ranks ") + ", ".join(map(str, ranks))


def _short(value: Any) -> str:
    return shorten(str(value), 24)

"""Before a model is loaded, ranks that are missing, cut off or different are named."""

from __future__ import annotations

import json
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from training.launch.place import Place
from training.launch.preflight import join_processes, require_alike, require_reached
from tuneline.core.errors import ConfigError, MissingError

FACTS = {"torch": "2.13.0", "dataset": "abc"}


def _hello(store: Any, rank: int, port: int, facts: dict[str, str]) -> None:
    hello = {"host": f"host-{rank}", "address": "127.0.0.1", "port": port, "facts": facts}
    store.set(f"hello/{rank}", json.dumps(hello))


def _closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def _store(path: Path, size: int) -> tuple[Place, Any]:
    return Place(0, 0, size, None, str(path)), dist.FileStore(str(path), size)


def test_ranks_that_do_not_arrive_are_named(tmp_path: Path) -> None:
    place, store = _store(tmp_path / "store", 4)
    _hello(store, 2, _closed_port(), FACTS)
    started_s = time.monotonic()
    with pytest.raises(MissingError, match=r"ranks 1, 3 of 4 did not arrive in 0\.3 s") as error:
        join_processes(place, 0.3, FACTS)
    assert time.monotonic() - started_s < 5
    assert error.value.exit_code == 4


def test_a_rank_that_cannot_be_reached_is_named(tmp_path: Path) -> None:
    place, store = _store(tmp_path / "store", 2)
    port = _closed_port()
    _hello(store, 1, port, FACTS)
    store.set("reach/1", json.dumps([]))
    message = f"rank 0 on {socket.gethostname()} cannot reach rank 1 on host-1 at 127.0.0.1:{port}"
    with pytest.raises(MissingError, match=message):
        join_processes(place, 2.0, FACTS)


def test_a_rank_that_ends_during_the_check_is_named(tmp_path: Path) -> None:
    place, store = _store(tmp_path / "store", 2)
    _hello(store, 1, _closed_port(), FACTS)
    with pytest.raises(MissingError, match="rank 1 ended while the processes looked"):
        join_processes(place, 0.3, FACTS)


def test_a_rank_with_other_facts_is_named_before_anything_connects(tmp_path: Path) -> None:
    place, store = _store(tmp_path / "store", 2)
    _hello(store, 1, _closed_port(), {**FACTS, "dataset": "xyz"})
    with pytest.raises(ConfigError) as error:
        join_processes(place, 2.0, FACTS)
    assert error.value.problems == [
        f"rank 1 on host-1 has dataset xyz; rank 0 on {socket.gethostname()} has abc"
    ]
    assert error.value.exit_code == 2


def test_a_rank_without_rank_0_says_where_it_looked() -> None:
    port = _closed_port()
    place = Place(1, 0, 2, ("127.0.0.1", port))
    with pytest.raises(MissingError, match=rf"does not reach rank 0 at 127\.0\.0\.1:{port} in 1 s"):
        join_processes(place, 1.0, FACTS)


def test_a_port_that_is_taken_is_named() -> None:
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(ConfigError, match=f"cannot listen on port {port}"):
            join_processes(Place(0, 0, 2, ("127.0.0.1", port)), 1.0, FACTS)


def test_an_address_that_is_not_of_rank_0_is_named(capfd: pytest.CaptureFixture[str]) -> None:
    place = Place(0, 0, 2, ("no-such-host.invalid", _closed_port()))
    with pytest.raises(ConfigError, match=r"does not reach itself at no-such-host\.invalid") as got:
        join_processes(place, 0.5, FACTS)
    assert "MASTER_ADDR" in str(got.value.hint)
    assert "frame #" not in capfd.readouterr().err


def test_each_pair_without_a_connection_is_one_line() -> None:
    hellos = [
        {"host": f"h{rank}", "address": f"10.0.0.{rank}", "port": 7, "facts": {}}
        for rank in range(3)
    ]
    require_reached(hellos, [[], [], []])
    require_alike(hellos)
    with pytest.raises(MissingError) as error:
        require_reached(hellos, [[2], [], [0, 1]])
    assert error.value.message.splitlines() == [
        "rank 0 on h0 cannot reach rank 2 on h2 at 10.0.0.2:7",
        "rank 2 on h2 cannot reach rank 0 on h0 at 10.0.0.0:7",
        "rank 2 on h2 cannot reach rank 1 on h1 at 10.0.0.1:7",
    ]


def test_one_connection_to_a_listener_is_enough(tmp_path: Path) -> None:
    """Rank 1 listens and reports that it reached nobody: rank 0 reached it, and says the rest."""
    place, store = _store(tmp_path / "store", 2)
    with socket.create_server(("127.0.0.1", 0)) as server:
        reached: list[Any] = []
        threading.Thread(target=lambda: reached.append(server.accept()), daemon=True).start()
        _hello(store, 1, server.getsockname()[1], FACTS)
        store.set("reach/1", json.dumps([0]))
        with pytest.raises(MissingError) as error:
            join_processes(place, 5.0, FACTS)
    assert len(error.value.message.splitlines()) == 1
    assert error.value.message.startswith("rank 1 on host-1 cannot reach rank 0")
    assert reached

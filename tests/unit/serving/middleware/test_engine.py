"""The engine's processes, as one of several front ends sees them."""

from __future__ import annotations

import multiprocessing
import subprocess
import time
from multiprocessing.connection import Connection

from serving.middleware.engine import descendants, engine_and_workers, engine_processes


def _front_end(pipe: Connection) -> None:
    engines = engine_processes()
    pipe.send(engine_and_workers())
    while pipe.recv():
        pipe.send([engine.is_alive() for engine in engines])


def test_one_of_several_front_ends_sees_that_the_engine_next_to_it_ends() -> None:
    engine = subprocess.Popen(["VLLM::EngineCore", "60"], executable="/bin/sleep")
    other = subprocess.Popen(["VLLM::Coordinator", "60"], executable="/bin/sleep")
    here, there = multiprocessing.Pipe()
    fork = multiprocessing.get_context("fork")
    front_end = fork.Process(target=_front_end, args=(there,), daemon=True)
    try:
        front_end.start()
        # A front end's time without a CPU is not the engine's.
        assert here.recv() == [engine.pid]
        here.send(True)
        assert here.recv() == [True]
        engine.kill()
        deadline_s = time.monotonic() + 30
        while True:  # nobody has asked for its end yet: it is a zombie
            here.send(True)
            if here.recv() == [False]:
                break
            assert time.monotonic() < deadline_s
        here.send(False)
        front_end.join()
    finally:
        for process in (engine, other):
            process.kill()
            process.wait()


def test_descendants_are_children_and_their_children() -> None:
    parent = subprocess.Popen(
        ["bash", "-c", "sleep 60 & echo $!; wait"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert descendants(parent.pid) == [child]
    finally:
        subprocess.run(["kill", str(child)], check=True)
        parent.communicate()

"""The parts of the time to ready."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from serving.middleware.startup import process_age_s, start_phases_s


def test_the_age_of_a_process_is_the_kernels() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        time.sleep(0.3)
        assert 0.2 < process_age_s(child.pid) < 10
        assert process_age_s(child.pid) < process_age_s()
        child.communicate(b"\n")


def test_the_phases_add_up_to_the_time_to_ready() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as engine:
        time.sleep(0.2)
        age_s = process_age_s(engine.pid)
        phases = start_phases_s(built_s=9.5, ready_s=10.0, engines=[engine.pid])
        engine.communicate(b"\n")
    assert list(phases) == ["imports", "engine", "routes"]
    assert phases["routes"] == pytest.approx(0.5)
    assert sum(phases.values()) == pytest.approx(10.0)
    assert phases["imports"] == pytest.approx(min(10.0 - age_s, 9.5), abs=0.2)


def test_a_front_end_without_an_engine_of_its_own_has_no_imports() -> None:
    assert start_phases_s(built_s=9.0, ready_s=10.0, engines=[]) == {"engine": 9.0, "routes": 1.0}

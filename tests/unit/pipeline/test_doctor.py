"""Doctor on a machine whose packages are known: metadata and modules in a folder of the test."""

import json
import os
import shutil
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from tuneline.core import free_memory
from tuneline.pipeline import doctor

REQUIRES = (
    "alpha>=2; extra == 'train'",
    "beta-lib==1.*; extra == 'train'",
    "alpha>=2; extra == 'export'",
    "gamma; extra == 'serve'",
    "engine==7; extra == 'gpu'",
    "engine-cpu==7; extra == 'cpu'",
    "beta-lib==1.*; extra == 'loadtest'",
    "pytest; extra == 'dev'",
)
WHOLE = {"alpha": "2.1", "beta-lib": "1.4+cpu", "gamma": "0.1", "engine-cpu": "7"}


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A folder of packages in which Tuneline needs the packages of `REQUIRES`."""
    lines = "".join(f"Requires-Dist: {text}\n" for text in REQUIRES)
    install(tmp_path, "tuneline", "1.0", extra=lines)
    for name, version in WHOLE.items():
        install(tmp_path, name, version)
    return tmp_path


def install(machine: Path, name: str, version: str, *, extra: str = "") -> None:
    module = name.replace("-", "_")
    info = machine / f"{module}-{version}.dist-info"
    info.mkdir()
    head = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    (info / "METADATA").write_text(head + extra)
    (info / "top_level.txt").write_text(module + "\n")
    if name != "tuneline":
        (machine / f"{module}.py").write_text("raise SystemError('doctor imports nothing')\n")


def uninstall(machine: Path, name: str) -> None:
    module = name.replace("-", "_")
    for file in machine.glob(f"{module}-*.dist-info/*"):
        file.unlink()
    next(machine.glob(f"{module}-*.dist-info")).rmdir()


def rooms(machine: Path) -> dict[str, dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, "-m", "tuneline", "doctor", "--json"],
        capture_output=True, text=True, check=False, cwd=machine, timeout=100,
        env={**os.environ, "PYTHONPATH": str(machine)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    return {entry["room"]: entry for entry in found if str(entry["what"]).startswith("room ")}


def test_every_room_can_start_on_a_whole_machine(machine: Path) -> None:
    found = rooms(machine)
    assert {room: entry["ok"] for room, entry in found.items()} == {
        "train": True, "export": True, "serve": True, "loadtest": True,
    }  # fmt: skip
    assert found["train"]["found"] == "alpha 2.1, beta-lib 1.4+cpu"
    assert found["serve"]["found"] == "gamma 0.1, engine-cpu 7"


def test_a_version_out_of_range_is_not_ok(machine: Path) -> None:
    uninstall(machine, "alpha")
    install(machine, "alpha", "1.9")
    found = rooms(machine)
    assert [room for room, entry in found.items() if not entry["ok"]] == ["train", "export"]
    assert "alpha is 1.9; expected >=2" in found["train"]["found"]
    assert "make setup" in found["train"]["found"]


def test_a_library_that_is_not_installed_is_not_ok(machine: Path) -> None:
    uninstall(machine, "beta-lib")
    found = rooms(machine)
    assert [room for room, entry in found.items() if not entry["ok"]] == ["train", "loadtest"]
    assert "beta-lib is not installed" in found["loadtest"]["found"]


def test_metadata_without_modules_is_not_ok(machine: Path) -> None:
    (machine / "gamma.py").unlink()
    found = rooms(machine)
    assert [room for room, entry in found.items() if not entry["ok"]] == ["serve"]
    assert "none of its modules is there" in found["serve"]["found"]


def test_one_of_the_two_builds_of_the_server_is_enough(machine: Path) -> None:
    uninstall(machine, "engine-cpu")
    lacking = rooms(machine)["serve"]
    assert not lacking["ok"]
    assert "engine-cpu is not installed or engine is not installed" in lacking["found"]
    install(machine, "engine", "7")
    assert rooms(machine)["serve"]["ok"]


def test_a_run_stops_where_a_room_cannot_start(machine: Path) -> None:
    uninstall(machine, "beta-lib")
    example = Path(__file__).parents[3] / "examples" / "support-tickets" / "run.yaml"
    done = subprocess.run(
        [sys.executable, "-m", "tuneline", "doctor", str(example)],
        capture_output=True, text=True, check=False, cwd=machine, timeout=100,
        env={**os.environ, "PYTHONPATH": str(machine)},
    )  # fmt: skip
    assert done.returncode == 4
    assert "room train: beta-lib is not installed" in done.stderr


def test_disk_and_memory_are_those_that_a_run_gets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another disk that a new folder will be on, and the memory that a container may take."""
    asked = []

    def disk_usage(path: Path) -> Any:
        asked.append(path)
        return types.SimpleNamespace(free=7 * 2**30)

    (tmp_path / "memory.max").write_text(str(3 * 2**30))
    monkeypatch.setattr(free_memory, "CGROUP", tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    found = {entry["what"]: entry for entry in doctor.examine_machine(tmp_path / "new" / "runs")}
    assert asked == [tmp_path]
    assert found["free disk"]["found"].startswith("7 GiB")
    assert (found["memory"]["found"], found["memory"]["ok"]) == ("3.0 GiB", False)

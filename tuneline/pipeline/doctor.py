"""The machine, and the libraries that each room lacks on it."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

from tuneline.core.environment import hardware_facts
from tuneline.core.errors import MissingError
from tuneline.core.files import nearest_folder
from tuneline.core.free_memory import total_memory_bytes
from tuneline.core.requirements import installed_version, problem_of, requirements

ROOMS: dict[str, tuple[tuple[str, ...], ...]] = {
    "train": (("train",),),
    "export": (("export",),),
    "serve": (("serve",), ("cpu", "gpu")),
    "loadtest": (("loadtest",),),
}
"""The extras of each room; of the extras in one bracket, one is enough."""

MEMORY_GIB = 4.0
FREE_DISK_GIB = 5.0


def examine_machine(runs_dir: Path) -> list[dict[str, Any]]:
    """Return one finding for each part of this machine: `what`, `found`, `ok`, `room`."""
    from k8s import find_kubectl

    hardware = hardware_facts()
    findings: list[dict[str, Any]] = []

    def note(what: str, found: str, ok: bool, room: str | None = None) -> None:
        findings.append({"what": what, "found": found, "ok": ok, "room": room})

    python = sys.version_info
    note("python", sys.version.split()[0], (python.major, python.minor) == (3, 11))
    note("cpu", f"{hardware['cpu']}, {hardware['cpu_cores']} cores", True)
    memory_gib = total_memory_bytes() / 2**30
    note("memory", f"{memory_gib:.1f} GiB", memory_gib >= MEMORY_GIB)
    note("gpu", ", ".join(hardware["gpus"]) or "none; everything runs on the CPU", True)
    free_gib = shutil.disk_usage(nearest_folder(runs_dir)).free / 2**30
    note("free disk", f"{free_gib:.0f} GiB for {runs_dir}/", free_gib >= FREE_DISK_GIB)
    for room in ROOMS:
        problems, installed = room_state(room)
        found = "; ".join(problems) + "; try, in the checkout: make setup"
        note(f"room {room}", found if problems else ", ".join(installed), not problems, room)
    kubectl = find_kubectl()
    lack = "not found; it renders and applies k8s manifests"
    note("kubectl", kubectl or lack, kubectl is not None, "k8s")
    for form, lack in _lacking_forms().items():
        note(f"form {form}", lack, True)
    key = "set" if os.environ.get("VLLM_API_KEY") else "not set; needed beyond loopback only"
    note("VLLM_API_KEY", key, True)
    return findings


def _lacking_forms() -> dict[str, str]:
    """Return the forms that cannot be made on this machine, each with what it lacks."""
    from export import FORMS, missing_modules, prepare_form

    lacking = {}
    for name in FORMS:
        missing = missing_modules(name)
        if missing:
            lacking[name] = f"missing {', '.join(missing)}; try, in the checkout: make setup"
            continue
        try:
            prepare_form(name)
        except MissingError as error:
            lacking[name] = f"cannot be made here: {error}"
    return lacking


def room_state(room: str) -> tuple[list[str], list[str]]:
    """Return what a room lacks here, and the libraries that it has, by the package's metadata."""
    problems: list[str] = []
    installed: list[str] = []
    for extras in ROOMS[room]:
        lacks = {}
        for extra in extras:
            needed = requirements(extra)
            lacks[extra] = [p for entry in needed if (p := problem_of(entry))]
            if not needed:
                lacks[extra] = [f"the extra {extra!r} is not in the package's metadata"]
            versions = {entry.name: installed_version(entry.name) for entry in needed}
            installed += [f"{name} {version}" for name, version in versions.items() if version]
        if all(lacks.values()):
            problems += [" or ".join(", ".join(lack) for lack in lacks.values())]
    return problems, installed


def require_rooms(findings: list[dict[str, Any]]) -> None:
    """Check that every room of the line can start.

    Raises:
        MissingError: The first room that cannot.
    """
    for finding in findings:
        if not finding["ok"] and finding["room"] in ROOMS:
            raise MissingError(f"{finding['what']}: {finding['found']}")

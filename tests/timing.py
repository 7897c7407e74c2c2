"""Tests whose subject is time, on a machine that other work may share.

A burst of other work may delay such a test although the code is right. It runs once more then. Code
that is wrong fails twice. The summary of a run names the tests that ran again, and a run with more
than MOST_AGAIN of them fails: so many late tests are not a burst of other work.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

MEASURED = (
    "tests/integration/loadtest/",
    "tests/integration/k8s/cluster/",
    "tests/integration/pipeline/tune/",
    "tests/integration/serving/",
    "tests/e2e/k8s/",
    "tests/e2e/serving/",
)
"""Folders of tests that measure real time: of clients, servers, drains and starts."""


MOST_AGAIN = 8


@contextmanager
def on_a_shared_host() -> Iterator[None]:
    """Accept a host that takes the CPU away, for tests whose subject is another rule.

    A rented machine would otherwise make the load tests of this process INVALID. That the rule
    reaches the verdict is tested in tests/unit/loadtest/judging/test_verdict.py.
    """
    from loadtest.judging import validity

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(validity, "MAX_STEAL_SHARE", 1.0)
        patch.setattr(validity, "MAX_THROTTLED_SHARE", 1.0)
        yield


def measures_time(node_id: str) -> bool:
    """Return whether a test may run once more, by the folder that it is in."""
    return node_id.startswith(MEASURED)

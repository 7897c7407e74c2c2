"""Tests whose subject is time, on a machine that other work may share.

A burst of other work may delay such a test although the code is right. It runs once more then. Code
that is wrong fails twice. The summary of a run names the tests that ran again, and a run with more
than MOST_AGAIN of them fails: so many late tests are not a burst of other work.
"""

from __future__ import annotations

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


def measures_time(node_id: str) -> bool:
    """Return whether a test may run once more, by the folder that it is in."""
    return node_id.startswith(MEASURED)

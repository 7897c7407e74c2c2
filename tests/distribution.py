"""How `pytest -n` shares out the files of a run."""

from __future__ import annotations

from typing import Any

import pytest

# The tests that take longest come first, so that no worker ends long after the others. Load tests
# come before the servers, which would take the processor from their clients.
FIRST = (
    "tests/e2e/line/test_damages.py", "tests/e2e/line/test_line.py",
    "tests/integration/loadtest/", "tests/e2e/k8s/", "tests/e2e/serving/", "tests/e2e/line/",
    "tests/integration/training/loop/", "tests/integration/pipeline/", "tests/unit/k8s/",
    "tests/integration/",
)  # fmt: skip

# Each line is run by one worker, since its files share what takes long to make.
TOGETHER: tuple[tuple[str, ...], ...] = (
    # A finished line and its server.
    ("tests/e2e/line/test_damages.py", "tests/e2e/line/test_line.py"),
    # One server.
    ("tests/e2e/serving/test_vllm.py", "tests/e2e/serving/test_clients.py"),
    # vLLM, imported.
    (
        "tests/integration/serving/command/test_vllm_parser.py",
        "tests/integration/serving/command/test_parser_check.py",
        "tests/integration/serving/engine/", "tests/integration/k8s/test_container_args.py",
    ),
    # Trees of manifests that kubectl has built.
    ("tests/unit/k8s/",),
)  # fmt: skip


def order(path: str) -> int:
    """Return the place of a file in a run: the number of the first folder in `FIRST` with it."""
    return next((i for i, start in enumerate(FIRST) if path.startswith(start)), len(FIRST))


def unit_of_work(node_id: str) -> str:
    """Return the name of the tests that one worker runs in one go: a file, or files together."""
    path = node_id.partition("::")[0]
    return next((starts[0] for starts in TOGETHER if path.startswith(starts)), path)


def scheduler(config: pytest.Config, log: Any) -> Any:
    """Return xdist's scheduling by file, with the units of work of this module."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            return unit_of_work(nodeid)

    return Scheduling(config, log)

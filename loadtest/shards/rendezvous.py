"""Load pods that meet in a shared folder, begin together and leave one report.

DIR/ready-K     pod K has calibrated and waits
DIR/start       when all pods begin, in seconds since 1970, as pod 0 sets it
DIR/shard-K     the measurement of pod K
DIR/report      the report of all pods, which pod 0 joins
"""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from pathlib import Path

from loadtest.config import LoadTestConfig
from loadtest.shards.join import join_shards
from loadtest.shards.shard import run_shard
from tuneline.core.artifact import Artifact
from tuneline.core.disk import replace_file
from tuneline.core.endpoint import Endpoint
from tuneline.core.errors import ArtifactError, MissingError
from tuneline.core.messages import ChatPrompt
from tuneline.core.progress import logger

LEAD_S = 15.0
"""From the moment the last pod is ready to the start: in this time every pod reads the start."""

PATIENCE_S = 600.0
"""How long pods wait for one another; scheduling and pulling an image take minutes."""

INTERVAL_S = 0.5


def run_together(
    config: LoadTestConfig,
    endpoint: Endpoint,
    folder: Path,
    *,
    prompts: Sequence[ChatPrompt],
    shard: int,
    num_shards: int,
    patience_s: float = PATIENCE_S,
) -> Artifact:
    """Run one pod's share with the others, and on pod 0 join the shards of all.

    Args:
        folder: On a volume that all pods mount; empty at first.
        patience_s: How long to wait for the others at the begin and at the end.

    Returns:
        On pod 0 the load report of all pods, else this pod's shard.

    Raises:
        ArtifactError: The folder was used by an earlier load test.
        MissingError: A pod did not come, or did not end.
        ConfigError, ServerError: See `run_shard`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    ready = folder / f"ready-{shard}"
    if ready.exists() or (folder / "start").exists():
        raise ArtifactError(
            f"{folder}: was used by an earlier load test",
            hint="Give each load test its own folder.",
        )
    start = functools.partial(_agree, folder, shard, num_shards, patience_s)
    made = run_shard(
        config,
        endpoint,
        folder / f"shard-{shard}",
        prompts=prompts,
        shard=shard,
        num_shards=num_shards,
        start=start,
    )
    if shard != 0:
        return made
    names = [f"shard-{number}" for number in range(num_shards)]
    _wait(folder, shard, names, patience_s, "end")
    return join_shards([folder / name for name in names], folder / "report")


def _agree(folder: Path, shard: int, num_shards: int, patience_s: float) -> float:
    """Say that this pod is ready, and return when all pods begin."""
    ready = folder / f"ready-{shard}"
    start = folder / "start"
    ready.touch()
    try:
        if shard == 0:
            names = [f"ready-{number}" for number in range(num_shards)]
            _wait(folder, shard, names, patience_s, "come")
            replace_file(start, repr(time.time() + LEAD_S))
        else:
            _wait(folder, shard, ["start"], patience_s, "come")
        return float(start.read_text(encoding="utf-8"))
    except BaseException:
        ready.unlink(missing_ok=True)  # the others must not count on this pod
        raise


def _wait(folder: Path, shard: int, names: Sequence[str], patience_s: float, what: str) -> None:
    """Wait until all names are in the folder.

    Raises:
        MissingError: A name is still missing after `patience_s`.
    """
    ends_s = time.monotonic() + patience_s
    look = folder / f".look-{shard}"
    said = False
    while True:
        # A network file system may answer from a cache that a name is missing, until the folder
        # changes. So change the folder.
        look.touch()
        look.unlink()
        missing = [name for name in names if not (folder / name).exists()]
        if not missing:
            return
        if not said:
            logger.info("waiting for %s", ", ".join(missing))
            said = True
        if time.monotonic() > ends_s:
            raise MissingError(
                f"load pods that did not {what} within {patience_s:g} s: {', '.join(missing)}",
                hint="Look at their logs: kubectl logs -l app.kubernetes.io/name=load-test",
            )
        time.sleep(INTERVAL_S)

"""Load pods that find one another in a folder they share: they begin together and leave one report.

DIR/ready-K     pod K has calibrated and waits
DIR/start       when all begin, in seconds since 1970, as pod 0 set it
DIR/shard-K     what pod K measured
DIR/report      the report of all, which pod 0 merges
"""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from pathlib import Path

from loadtest.config import LoadTestConfig
from loadtest.shards.join import merge_shards, run_shard
from tuneline.core.artifact import Artifact
from tuneline.core.endpoint import Endpoint
from tuneline.core.errors import ArtifactError, MissingError
from tuneline.core.messages import Messages
from tuneline.core.progress import logger

LEAD_S = 15.0
"""From the last pod being ready to the start: in this time every pod has to read it."""

PATIENCE_S = 600.0
"""How long pods wait for one another; scheduling and pulling an image take minutes."""

INTERVAL_S = 0.5


def run_together(
    config: LoadTestConfig,
    endpoint: Endpoint,
    folder: Path,
    *,
    prompts: Sequence[Messages],
    shard: int,
    num_shards: int,
    patience_s: float = PATIENCE_S,
) -> Artifact:
    """Run one pod's share beside the others, and on pod 0 merge what all of them measured.

    Args:
        folder: The same on every pod, on a volume that all of them mount; empty at first.
        patience_s: How long to wait for the others, to begin and to end.

    Returns:
        On pod 0 the load report of all, else this pod's shard.

    Raises:
        ArtifactError: The folder was used by an earlier load test.
        MissingError: A pod did not come, or did not end.
        ConfigError, ServerError: As of `run_shard`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    ready = folder / f"ready-{shard}"
    if ready.exists() or (folder / "start").exists():
        raise ArtifactError(
            f"{folder}: was used by an earlier load test", hint="Give each its own folder."
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
    return merge_shards([folder / name for name in names], folder / "report")


def _agree(folder: Path, shard: int, num_shards: int, patience_s: float) -> float:
    """Say that this pod is ready, and learn when all begin."""
    ready = folder / f"ready-{shard}"
    start = folder / "start"
    ready.touch()
    try:
        if shard == 0:
            names = [f"ready-{number}" for number in range(num_shards)]
            _wait(folder, shard, names, patience_s, "come")
            written = folder / "start.partial"
            written.write_text(repr(time.time() + LEAD_S), encoding="utf-8")
            written.rename(start)
        else:
            _wait(folder, shard, ["start"], patience_s, "come")
        return float(start.read_text(encoding="utf-8"))
    except BaseException:
        ready.unlink(missing_ok=True)  # nobody shall count on this pod
        raise


def _wait(folder: Path, shard: int, names: Sequence[str], patience_s: float, what: str) -> None:
    """Until all of these are in the folder.

    Raises:
        MissingError: After `patience_s` one still is not.
    """
    ends_s = time.monotonic() + patience_s
    look = folder / f".look-{shard}"
    said = False
    while True:
        # A network file system may answer from memory that a name is not there, until the folder
        # changes: so it is changed.
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

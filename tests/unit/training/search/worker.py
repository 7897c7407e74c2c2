"""The work of a process on a study: each point it runs is a line of `points.log`."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from training.config.search import SearchConfig
from training.loop.progress import OnHeldout
from training.search.search import search_settings


def work(folder: Path, settings: str, dies_after: int | None) -> None:
    """Run points until the study has enough, or kill this process in the middle of one."""
    ran = 0

    def objective(values: Mapping[str, Any], place: Path, on_heldout: OnHeldout) -> float:
        nonlocal ran
        place.mkdir(parents=True, exist_ok=True)
        began_before = (place / "began").exists()
        (place / "began").touch()
        on_heldout(1, {"eval_loss": float(values["x"])})
        if ran == dies_after:
            os.kill(os.getpid(), signal.SIGKILL)
        ran += 1
        time.sleep(0.05)  # long enough that the processes take turns
        line = json.dumps({**values, "began_before": began_before}) + "\n"
        with (folder / "points.log").open("a") as log:
            log.write(line)
        return (float(values["x"]) - 3) ** 2

    config = SearchConfig.model_validate_json(settings)
    search_settings(config, folder, objective, facts={}, first=None)

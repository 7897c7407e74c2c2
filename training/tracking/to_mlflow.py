"""MLflow: one run of the experiment that its environment variables name."""

from __future__ import annotations

import json
from collections.abc import Mapping

from training.tracking.tracker import TrackedRun, Tracker

RUN_FILE = "mlflow-run"
"""Holds the id of the run, so that an interrupted training continues it."""


def open_mlflow(run: TrackedRun) -> Tracker:
    """Start a run, or continue it; the server and the experiment are MLflow's own settings."""
    import mlflow

    known = run.folder / RUN_FILE
    run_id = run.known_id(known)
    started = mlflow.start_run(run_id=run_id, run_name=run.name, log_system_metrics=False)
    known.write_text(started.info.run_id)
    if run_id is None:
        mlflow.log_params({name: json.dumps(value) for name, value in run.settings.items()})

    def log(step: int, figures: Mapping[str, float]) -> None:
        mlflow.log_metrics(dict(figures), step=step)

    return Tracker(log, lambda failed: mlflow.end_run("FAILED" if failed else "FINISHED"))

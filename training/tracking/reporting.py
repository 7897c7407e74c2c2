"""Figures to trackers, each in a thread of its own: no tracker delays or ends a training."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Self

from training.config import TrainingConfig
from training.tracking.to_mlflow import open_mlflow
from training.tracking.to_prometheus import open_prometheus
from training.tracking.to_tensorboard import open_tensorboard
from training.tracking.to_wandb import open_wandb
from training.tracking.tracker import TrackedRun, Tracker
from tuneline.core.errors import MissingError
from tuneline.core.progress import logger
from tuneline.core.secrets import hide_passwords

Open = Callable[[TrackedRun], Tracker]
TRACKERS: dict[str, tuple[Open, str]] = {
    "tensorboard": (open_tensorboard, "tensorboard"),
    "mlflow": (open_mlflow, "mlflow"),
    "wandb": (open_wandb, "wandb"),
    "prometheus": (open_prometheus, "prometheus_client"),
}
"""For each tracker, how it is opened, and the module that it needs."""
PATIENCE_S = 5.0
"""Seconds that the end of a training waits for a tracker that takes no figure."""
LONGEST = 6
"""Patiences from its start until a tracker is open (MLflow makes a database), and for all that
waits at the end."""
MAX_WAITING = 1000
"""Figures that wait for a slow tracker; later ones are left out."""

_Entry = tuple[int, Mapping[str, float]]


def chosen_trackers(config: TrainingConfig) -> list[str]:
    """Return the names of a run's trackers.

    Raises:
        MissingError: The package of one of them is not installed.
    """
    import importlib.util

    names: list[str] = [*config.report_to]
    names += ["prometheus"] if config.prometheus_port is not None else []
    for name in names:
        module = TRACKERS[name][1]
        if importlib.util.find_spec(module) is None:
            package = module.replace("_", "-")
            key, without = "report_to", f"take {name} out of training.report_to"
            if name == "prometheus":
                key, without = "prometheus_port", "remove training.prometheus_port"
            raise MissingError(
                f"training.{key}: {name} needs the package {package}, which is not installed",
                hint=f"Try: pip install {package}, or {without}.",
            )
    return names


class Reporting:
    """Hands figures to trackers; a tracker that fails is named once and left out."""

    def __init__(
        self, run: TrackedRun, trackers: Mapping[str, Open], patience_s: float = PATIENCE_S
    ) -> None:
        self.patience_s = patience_s
        self.threads = [_Thread(name, opened, run) for name, opened in trackers.items()]

    def __enter__(self) -> Self:
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        ended_s = time.monotonic()
        for thread in self.threads:
            thread.end(failed=kind is not None)
        for thread in self.threads:
            while time.monotonic() < thread.deadline_s(ended_s, self.patience_s):
                thread.join(0.02)
                if not thread.is_alive():
                    break
            else:
                logger.warning(
                    "  %s does not answer; its last figures are lost, and training is not affected",
                    thread.name,
                )

    def report(self, step: int, figures: Mapping[str, float]) -> None:
        """Hand over the figures of a step, and return at once."""
        for thread in self.threads:
            thread.put((step, figures))


class _Thread(threading.Thread):
    """Opens one tracker and feeds it; a daemon, so that it cannot keep the process alive."""

    def __init__(self, name: str, opened: Open, run: TrackedRun) -> None:
        super().__init__(name=name, daemon=True)
        self.opened, self.run_facts = opened, run
        self.waiting: queue.Queue[_Entry | None] = queue.Queue(MAX_WAITING)
        self.ended = threading.Event()
        self.failed = False
        self.began_s, self.moved_s = time.monotonic(), 0.0

    def put(self, entry: _Entry) -> None:
        if not self.waiting.full():
            self.waiting.put_nowait(entry)

    def end(self, *, failed: bool) -> None:
        self.failed = failed
        self.ended.set()
        if not self.waiting.full():
            self.waiting.put_nowait(None)

    def deadline_s(self, ended_s: float, patience_s: float) -> float:
        """Return until when the end of a training waits for this tracker."""
        if not self.moved_s:
            return max(ended_s + patience_s, self.began_s + LONGEST * patience_s)
        return min(max(ended_s, self.moved_s) + patience_s, ended_s + LONGEST * patience_s)

    def run(self) -> None:
        try:
            self.run_facts.folder.mkdir(parents=True, exist_ok=True)
            tracker = self.opened(self.run_facts)
            self.moved_s = time.monotonic()
            while (entry := self._next()) is not None:
                tracker.log(*entry)
                self.moved_s = time.monotonic()
            tracker.finish(self.failed)
        except (Exception, SystemExit) as error:  # noqa: BLE001 (a tracker may raise anything)
            logger.warning(
                "  %s gets no more figures: %s: %s; training goes on",
                self.name, type(error).__name__, hide_passwords(str(error)),
            )  # fmt: skip

    def _next(self) -> _Entry | None:
        if self.ended.is_set() and self.waiting.empty():
            return None
        return self.waiting.get()


def opened_trackers(names: Sequence[str]) -> dict[str, Open]:
    """Return how each tracker is opened, by name."""
    return {name: TRACKERS[name][0] for name in names}

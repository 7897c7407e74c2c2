"""Trackers get the figures, and none of them delays or ends a training."""

from __future__ import annotations

import logging
import socket
import sys
import threading
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from training.config import TrainingConfig
from training.tracking.curves import draw_curves, panel_limits
from training.tracking.reporting import (
    TRACKERS,
    Open,
    Reporting,
    chosen_trackers,
    opened_trackers,
)
from training.tracking.to_mlflow import open_mlflow
from training.tracking.to_prometheus import open_prometheus
from training.tracking.tracker import TrackedRun, Tracker
from tuneline.core.errors import MissingError

FIGURES = {"loss": 1.5, "rewards/margins": 0.25}


@pytest.fixture(autouse=True)
def shown(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("tuneline"), "propagate", True)
    caplog.set_level(logging.INFO)


def _run(folder: Path, first_step: int = 0, port: int | None = None) -> TrackedRun:
    return TrackedRun("adapter-1", folder, {"r": 16}, first_step, port)


class _Recorder:
    def __init__(self) -> None:
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.finished = False
        self.failed = False

    def open(self, _run: TrackedRun) -> Tracker:
        return Tracker(self._log, self._finish)

    def _log(self, step: int, figures: Mapping[str, float]) -> None:
        self.logged.append((step, dict(figures)))

    def _finish(self, failed: bool) -> None:
        self.finished, self.failed = True, failed


def _raises_at_open(_run: TrackedRun) -> Tracker:
    raise ConnectionError("no server")


def _raises_with_a_password(_run: TrackedRun) -> Tracker:
    raise ConnectionError("no answer from https://ada:s3cret@tracker.example/api")


def _raises_at_log(_run: TrackedRun) -> Tracker:
    def log(_step: int, _figures: Mapping[str, float]) -> None:
        raise ZeroDivisionError("a bug of the tracker")

    return Tracker(log, _ignore)


def _exits(_run: TrackedRun) -> Tracker:
    raise SystemExit(3)


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (_raises_at_open, "bad gets no more figures: ConnectionError: no server"),
        (
            _raises_with_a_password,
            "bad gets no more figures: ConnectionError: no answer from "
            "https://***@tracker.example/api",
        ),
        (_raises_at_log, "bad gets no more figures: ZeroDivisionError: a bug of the tracker"),
        (_exits, "bad gets no more figures: SystemExit: 3"),
    ],
)
def test_a_tracker_that_raises_is_named_once_and_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, bad: Open, said: str
) -> None:
    good = _Recorder()
    with Reporting(_run(tmp_path / "t"), {"bad": bad, "good": good.open}) as reporting:
        for step in (1, 2, 3):
            reporting.report(step, FIGURES)
    assert good.logged == [(step, FIGURES) for step in (1, 2, 3)] and good.finished
    assert [record.message for record in caplog.records if said in record.message] == [
        f"  {said}; training goes on"
    ]


def test_a_tracker_is_told_that_a_training_failed(tmp_path: Path) -> None:
    whole, broken = _Recorder(), _Recorder()
    with Reporting(_run(tmp_path), {"good": whole.open}):
        pass
    with pytest.raises(KeyboardInterrupt), Reporting(_run(tmp_path), {"good": broken.open}):
        raise KeyboardInterrupt
    assert (whole.finished, whole.failed) == (True, False)
    assert (broken.finished, broken.failed) == (True, True)


class _Mlflow:
    """The calls of MLflow that a training makes; the package is not installed here."""

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.metrics: list[Any] = []

    def start_run(self, **options: Any) -> Any:
        self.calls.append(options)
        return SimpleNamespace(info=SimpleNamespace(run_id="run-7"))

    def log_params(self, params: Mapping[str, str]) -> None:
        self.calls.append(dict(params))

    def log_metrics(self, figures: Mapping[str, float], step: int) -> None:
        self.metrics.append((step, dict(figures)))

    def end_run(self, status: str) -> None:
        self.calls.append(status)


def test_an_interrupted_training_continues_its_run_in_mlflow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = _Mlflow()
    monkeypatch.setitem(sys.modules, "mlflow", theirs)
    tracker = open_mlflow(_run(tmp_path))
    tracker.log(1, FIGURES)
    tracker.finish(True)
    tracker = open_mlflow(_run(tmp_path, first_step=1))
    tracker.log(2, FIGURES)
    tracker.finish(False)
    first, params, failed, second, finished = theirs.calls
    assert (first["run_id"], second["run_id"]) == (None, "run-7")
    assert params == {"r": "16"} and (failed, finished) == ("FAILED", "FINISHED")
    assert theirs.metrics == [(1, FIGURES), (2, FIGURES)]


def test_a_tracker_that_hangs_delays_the_end_by_the_patience_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    release = threading.Event()

    def hangs(_run: TrackedRun) -> Tracker:
        return Tracker(lambda _step, _figures: _ignore(release.wait(60)), _ignore)

    good = _Recorder()
    began_s = time.monotonic()
    trackers = {"bad": hangs, "good": good.open}
    with Reporting(_run(tmp_path), trackers, patience_s=0.3) as reporting:
        for step in range(2000):  # more than the queue takes
            reporting.report(step, FIGURES)
    assert time.monotonic() - began_s < 20
    assert good.finished and len(good.logged) >= 1000
    assert any("bad does not answer" in record.message for record in caplog.records)
    release.set()


def _ignore(_value: Any) -> None:
    return None


@pytest.mark.parametrize(("open_s", "log_s"), [(0.5, 0.0), (0.0, 0.05)])
def test_a_tracker_that_opens_late_or_is_slow_gets_its_last_figures(
    open_s: float, log_s: float, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = _Recorder()

    def slow(run: TrackedRun) -> Tracker:
        time.sleep(open_s)
        tracker = recorder.open(run)

        def log(step: int, figures: Mapping[str, float]) -> None:
            time.sleep(log_s)
            tracker.log(step, figures)

        return Tracker(log, tracker.finish)

    with Reporting(_run(tmp_path), {"slow": slow}, patience_s=0.2) as reporting:
        for step in range(10):
            reporting.report(step, FIGURES)
    assert len(recorder.logged) == 10 and recorder.finished
    assert "does not answer" not in caplog.text


@pytest.mark.parametrize(
    ("first_step", "text", "expected"), [(3, "run-7", "run-7"), (3, "", None), (0, "run-7", None)]
)
def test_an_id_is_that_of_the_interrupted_run(
    first_step: int, text: str, expected: str | None, tmp_path: Path
) -> None:
    (tmp_path / "id").write_text(text)
    assert _run(tmp_path, first_step).known_id(tmp_path / "id") == expected
    assert _run(tmp_path, first_step).known_id(tmp_path / "no-file") is None


def test_tensorboard_in_a_place_that_cannot_be_written_ends_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    folder = tmp_path / "file" / "tracking"
    good = _Recorder()
    trackers = {**opened_trackers(["tensorboard"]), "good": good.open}
    with Reporting(_run(folder), trackers, patience_s=60) as reporting:
        reporting.report(1, FIGURES)
    assert any("tensorboard gets no more figures" in record.message for record in caplog.records)


def test_tensorboard_reads_the_figures_and_a_restart_replaces_lost_steps(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for first, steps, loss in ((0, (1, 2, 3), 1.0), (2, (3, 4), 2.0)):
        trackers = opened_trackers(["tensorboard"])
        with Reporting(_run(tmp_path, first), trackers, patience_s=60) as reporting:
            for step in steps:
                reporting.report(step, {"loss": loss})
        time.sleep(1.1)  # the names of the event files have seconds
    found = EventAccumulator(str(tmp_path))
    found.Reload()
    assert [(e.step, e.value) for e in found.Scalars("loss")] == [
        (1, 1.0), (2, 1.0), (3, 2.0), (4, 2.0),
    ]  # fmt: skip


def test_prometheus_serves_the_newest_step_on_the_loopback_interface(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    trackers = opened_trackers(["prometheus"])
    text = ""
    with Reporting(_run(tmp_path, port=port), trackers, patience_s=60) as reporting:
        for step in (1, 7):
            reporting.report(step, FIGURES)
        deadline_s = time.monotonic() + 60
        while "step 7.0" not in text and time.monotonic() < deadline_s:
            time.sleep(0.02)
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
                    text = answer.read().decode()
            except OSError:
                continue
    assert "tuneline_training_step 7.0\n" in text
    assert "tuneline_training_loss 1.5\n" in text
    assert "tuneline_training_rewards_margins 0.25\n" in text
    with socket.socket() as again:  # nothing listens there any more
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        again.bind(("127.0.0.1", port))


def test_a_tracker_without_its_package_is_an_error_before_training(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = TrainingConfig.model_validate({"report_to": "mlflow"})
    with pytest.raises(MissingError, match="mlflow needs the package mlflow") as caught:
        chosen_trackers(config)
    assert caught.value.exit_code == 4
    chosen = TrainingConfig.model_validate({"prometheus_port": 9100})
    assert chosen_trackers(chosen) == ["tensorboard", "prometheus"]
    assert chosen_trackers(TrainingConfig.model_validate({"report_to": []})) == []
    monkeypatch.setitem(TRACKERS, "prometheus", (open_prometheus, "no_such_package"))
    with pytest.raises(MissingError, match=r"^training\.prometheus_port: prometheus ") as caught:
        chosen_trackers(chosen)
    assert "remove training.prometheus_port" in str(caught.value.hint)


def test_curves_that_cannot_be_drawn_end_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "tracking").write_text("a file where the folder should be")
    draw_curves([{"step": 1, "loss": 2.0}], tmp_path / "tracking" / "adapter")
    assert "curves.png is not drawn: " in caplog.text
    draw_curves([{"step": 1, "loss": 2.0}], tmp_path / "good")
    assert (tmp_path / "good" / "curves.png").stat().st_size > 5000


@pytest.mark.parametrize(
    ("values", "limits"),
    [
        ([800.0, 820.0], (0.0, 861.0)),  # no line under the frame
        ([0.0, 0.0], (0.0, 1.0)),
        ([2.0, float("inf"), float("nan")], (0.0, 2.1)),
        ([-1.0, 2.0], None),
        ([float("nan")], None),
    ],
)
def test_a_panel_has_room_above_its_curve(
    values: list[float], limits: tuple[float, float] | None, tmp_path: Path
) -> None:
    assert panel_limits(values) == (None if limits is None else pytest.approx(limits))
    draw_curves([{"step": at, "loss": value} for at, value in enumerate(values)], tmp_path)
    assert (tmp_path / "curves.png").is_file()

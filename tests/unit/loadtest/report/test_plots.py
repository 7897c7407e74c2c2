"""The pictures of a study."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from loadtest.report.plots import plot_loads
from loadtest.studies.schema import Probe
from tuneline.core.verdict import Verdict


def test_every_point_of_a_picture_lies_below_its_top(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures: list[Any] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: figures.append(figure))
    probes = [
        Probe(
            rate_rps=rate, verdict=Verdict.PASS, stopped_early=False, num_requests=70,
            latency={"ttft_s": {"p90": ttft_s}, "e2e_s": {"p90": 2 * ttft_s}},
            output_tokens_per_s=100.0, error_rate=0.0, problems=[],
        )
        for rate, ttft_s in ((1.0, 0.0342), (2.0, 0.0358))
    ]  # fmt: skip
    plot_loads(probes, tmp_path, "requests/s")
    (figure,) = figures
    for axes in figure.axes:
        low, high = axes.get_ylim()
        highest = max(max(line.get_ydata()) for line in axes.lines)
        assert low == 0
        assert highest < 0.97 * high

"""The front of points whose order is known, and the picture and page of a sweep."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from loadtest.config import SLO
from loadtest.report.formats import report_text
from loadtest.report.plots import plot_pareto
from loadtest.studies.pareto import pareto_lines, with_front
from loadtest.studies.schema import ParetoPoint, ParetoReport, ParetoServer
from tuneline.core.artifact import Artifact, new_artifact, open_artifact
from tuneline.core.errors import ArtifactError
from tuneline.core.verdict import Verdict


def point(server: str, streams: int, user: float | None, total: float, **more: Any) -> ParetoPoint:
    values: dict[str, Any] = {
        "server": server, "concurrency": streams, "verdict": Verdict.PASS, "problems": [],
        "num_requests": 100, "tokens_per_s_per_user": user,
        "tokens_per_s_per_user_ci95": None if user is None else (0.9 * user, 1.1 * user),
        "tokens_per_s": total, "tokens_per_s_ci95": None, "ttft_p90_s": 0.2, "is_on_front": False,
    }  # fmt: skip
    return ParetoPoint.model_validate(values | more)


POINTS = [
    point("a", 1, 100.0, 100.0),
    point("a", 8, 60.0, 400.0),
    point("b", 1, 90.0, 90.0),  # a is better in both
    point("b", 8, 70.0, 350.0),
    point("b", 32, 60.0, 300.0),  # as fast for a user, and less in all
    point("b", 64, 500.0, 900.0, verdict=Verdict.INVALID),
    point("b", 65, None, 900.0),
]


def test_the_front_has_the_points_that_no_other_beats() -> None:
    found = with_front(POINTS)
    front = [(one.server, one.concurrency) for one in found if one.is_on_front]
    assert front == [("a", 1), ("a", 8), ("b", 8)]


def test_equal_points_are_both_on_the_front() -> None:
    found = with_front([point("a", 1, 5.0, 5.0), point("b", 1, 5.0, 5.0)])
    assert [one.is_on_front for one in found] == [True, True]


@pytest.fixture
def swept(tmp_path: Path) -> Artifact:
    report = ParetoReport(
        schema_version=5, verdict=Verdict.FAIL, problems=["c: it died"], inputs=[], slo=SLO(),
        servers=[
            ParetoServer(name="a", settings={}, endpoint=None, problem=None),
            ParetoServer(name="b", settings={"serving.x": 1}, endpoint=None, problem=None),
            ParetoServer(name="c", settings={}, endpoint=None, problem="it <died>"),
        ],
        points=with_front(POINTS), environment={},
    )  # fmt: skip
    with new_artifact(tmp_path / "swept", "load-pareto", config={}) as draft:
        (draft.dir / "report.json").write_text(report.model_dump_json())
        plot_pareto(report.points, draft.dir)
        draft.metrics["verdict"] = "FAIL"
    assert pareto_lines(report)[1].endswith("PASS *")
    return open_artifact(tmp_path / "swept")


def test_the_picture_and_the_page_show_every_server(swept: Artifact) -> None:
    assert (swept.path / "pareto.png").read_bytes().startswith(b"\x89PNG")
    page = report_text(swept, "html")
    assert "it &lt;died&gt;" in page and "serving.x=1" in page and "<svg" in page
    assert "a, 8 streams" in page, "the most tokens/s"
    text = report_text(swept, "markdown")
    assert "| b | 8 |" in text
    assert len(json.loads(report_text(swept, "json"))["points"]) == len(POINTS)


def test_a_sweep_has_no_requests_to_list(swept: Artifact) -> None:
    with pytest.raises(ArtifactError, match="load-pareto; --format csv is for a load report"):
        report_text(swept, "csv")


def test_a_sweep_without_a_usable_point_has_a_page(swept: Artifact) -> None:
    path = swept.path / "report.json"
    document = json.loads(path.read_text())
    document["points"] = [one for one in document["points"] if one["verdict"] == "INVALID"]
    path.write_text(json.dumps(document))
    assert "<svg" not in report_text(swept, "html")

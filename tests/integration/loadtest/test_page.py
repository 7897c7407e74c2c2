"""The page of a load report: real requests to the known server, read in a real browser."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from loadtest import build_load_blocks, report_text, run_loadtest
from tests.browser import OVERFLOW, opened
from tests.integration.loadtest.small import PROMPTS, config, report_of
from tuneline.core.artifact import Artifact
from tuneline.core.page.blocks import Plots, Table
from tuneline.core.page.numbers import seconds

if TYPE_CHECKING:
    from playwright.sync_api import Browser

SCENARIOS: list[dict[str, Any]] = [
    {"name": "open", "rate_rps": 60.0, "num_requests": 60},
    {"name": "closed", "concurrency": 4, "num_requests": 60},
]
SLO = {"ttft_s": {"p90": 1.0}, "tpot_s": {"p90": 0.0001}}


@pytest.fixture(scope="module")
def measured(known: Any, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    out = tmp_path_factory.mktemp("load") / "load"
    return run_loadtest(config(scenarios=SCENARIOS, slo=SLO), known.endpoint, out, prompts=PROMPTS)


def test_the_page_shows_the_figures_of_the_report(browser: "Browser", measured: Artifact) -> None:
    path = measured.path.with_name("load.html")
    path.write_text(report_text(measured, "html"), encoding="utf-8")
    report = report_of(measured)
    with opened(browser, path, width=360) as shown:
        text = shown.page.inner_text("body")
        headings = shown.page.get_by_role("heading", level=1).all_inner_texts()
        pictures = [
            one.get_attribute("aria-label") or "" for one in shown.page.get_by_role("img").all()
        ]
        assert shown.page.evaluate(OVERFLOW) <= 0
        assert shown.violations() == []
        assert shown.problems == []
        assert shown.requests == [f"file://{path}"]
    assert [" ".join(one.split()) for one in headings] == [f"known {report['verdict']}"]
    for scenario in report["scenarios"]:
        p90 = seconds(scenario["latency"]["ttft_s"]["percentiles"]["p90"])
        assert p90 in text
        assert any(scenario["name"] in picture and p90 in picture for picture in pictures)
    # The hypervisor may take the CPU from both scenarios in equal shares, and from the first try of
    # each, which a warning then quotes.
    problems = [problem for scenario in report["scenarios"] for problem in scenario["problems"]]
    warnings = [warning for scenario in report["scenarios"] for warning in scenario["warnings"]]
    for problem in set(problems):
        assert text.count(problem) == sum(one.count(problem) for one in [*problems, *warnings])
    assert len(pictures) == 5
    assert "open loop, poisson arrivals, 60 requests/s, 60 requests" in text
    assert "closed loop, 4 requests at once, 60 requests, after 5 requests of warm-up" in text
    assert text.count("not calibrated") == 2


def test_a_printed_table_keeps_its_caption(browser: "Browser", measured: Artifact) -> None:
    path = measured.path.with_name("printed.html")
    path.write_text(report_text(measured, "html"), encoding="utf-8")
    with opened(browser, path) as shown:
        shown.page.emulate_media(media="print")
        rules = shown.page.eval_on_selector_all(
            "caption", "all => all.map(one => getComputedStyle(one).breakAfter)"
        )
    assert set(rules) == {"avoid"}


def test_a_copy_without_records_keeps_its_tables(measured: Artifact, tmp_path: Path) -> None:
    (tmp_path / "report.json").write_bytes((measured.path / "report.json").read_bytes())
    blocks = build_load_blocks(Artifact(tmp_path, measured.manifest))
    assert sum(isinstance(block, Table) for block in blocks) == 4
    # The objectives need no record of a request.
    (plots,) = (block for block in blocks if isinstance(block, Plots))
    assert [plot.title for plot in plots.plots] == ["Latency objectives"]


def test_the_markdown_has_the_verdict_and_every_scenario(measured: Artifact) -> None:
    text = report_text(measured, "markdown")
    first = text.splitlines()[0]
    assert first.startswith("# known: ") and f"**{report_of(measured)['verdict']}**" in first
    assert all(one["name"] in text for one in SCENARIOS)

"""Reports of finished lines: every fact as HTML and Markdown, every gate as JUnit XML."""

import json
import re
import shutil
import time
from pathlib import Path
from subprocess import CompletedProcess

import pycmarkgfm
import pytest
from junitparser import Error, Failure, JUnitXml, Skipped

from tests.commands import tuneline_here
from tests.integration.release.line import (
    EXAMPLE,
    NUM_HELDOUT,
    Answers,
    FinishedLine,
    write_line,
)
from tests.unit.core.page.pages import HOSTILE
from tests.unit.core.page.test_to_html import Reader
from tuneline.core.release import Outcome, read_release
from tuneline.report.facts import Facts, facts_of_folder
from tuneline.report.junit import junit_text
from tuneline.report.page import report_document

FORGETTING = {"evaluation": {"metrics": ["exact_match"], "forgetting": True}}


def report(line: FinishedLine, *options: str) -> CompletedProcess[str]:
    runs = str(line.run.dir.parent)
    return tuneline_here("report", str(line.run.path), "--runs-dir", runs, *options)


def text_of(path: Path) -> str:
    """Return the text of a page."""
    page = Reader(re.sub("<style>.*?</style>", "", path.read_text("utf-8"), flags=re.DOTALL))
    return re.sub(r"\s+", " ", "".join(page.texts))


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> FinishedLine:
    return write_line(tmp_path_factory.mktemp("line"), config=FORGETTING)


@pytest.fixture(scope="module")
def released(line: FinishedLine) -> Path:
    return line.released()


def test_a_release_holds_its_report_in_three_forms(released: Path) -> None:
    page = text_of(released / "report.html")
    markdown = (released / "report.md").read_text("utf-8")
    shown = "".join(Reader(pycmarkgfm.gfm_to_html(markdown)).texts)
    shown = re.sub(r"\s+", " ", shown)
    release = read_release(released)
    assert len(release.gates) > 8
    for gate in release.gates:
        assert gate.title in page and gate.title in shown, gate.name
        assert gate.words in page and gate.words in shown, gate.name
    for link in release.chain:
        assert link.digest in page
        assert link.digest in shown
    for title in ("Model, data and training", "Evaluation", "Forgetting suite", "Parity ladder",
                  "Load test", "Provenance", "How to reproduce"):  # fmt: skip
        assert title in page and title in shown, title
    assert "98.0%" in page and "98.0%" in shown  # 2 of 100 answers are wrong
    assert "2 of 100 held-out rows that the tuned model answers wrongly" in page
    assert len(markdown) < 65_536
    assert (released / "report.html").stat().st_size < 1_500_000


def test_the_top_says_what_was_judged_and_by_which_limits(released: Path) -> None:
    top = (released / "report.md").read_text("utf-8").partition("## Gates")[0]
    assert "12 gates: 10 passed, 2 not asked (regression, speed)." in top
    assert "is tiny-base, trained on 60 rows of train.jsonl and judged by 100 held-out rows." in top
    assert "| exact match | 98.0% | 93.0% to 99.4% (95 %), base 0.0% |" in top
    assert "| TTFT p90 | 51.7 ms | limit 1.00 s, closed-4 |" in top


def test_objectives_have_their_intervals(released: Path) -> None:
    text = (released / "report.md").read_text("utf-8")
    assert (
        "| `max_error_rate` | closed-4 | ✅ **PASS** | 0.0% | 0.0% to 2.5% | 0.0% | 150 |" in text
    )
    assert "The client sent up to 0.0604 ms late (p99), and run.yaml allows 250 ms" in text
    assert "tuneline verify RELEASE_DIR --model MODEL_DIR --key PUB.pem" in text


def test_the_training_is_shown_with_its_curve(released: Path) -> None:
    page = text_of(released / "report.html")
    assert "SFT, LoRA r 16, alpha 32, targets all-linear" in page
    markdown = (released / "report.md").read_text("utf-8")
    curve = "from 3.25 at optimizer step 6 to 0.500 at 12"
    assert f"- **Loss.** training: {curve}" in markdown
    assert "held-out rows: from 8.50 at optimizer step 0 to 0.250 at 12" in markdown
    assert "- **Learning rate.** training: from 0.001 at optimizer step 6 to 0.0001" in markdown


def test_every_figure_of_a_release_is_on_its_page(released: Path) -> None:
    page = text_of(released / "report.html")
    figures = read_release(released).figures
    assert len(figures) > 30
    for figure in figures:
        assert figure.title in page, figure.name
        assert f"{figure.source.file}{figure.source.pointer}" in page, figure.name


def test_the_command_makes_the_report_again(line: FinishedLine, released: Path) -> None:
    folder = line.run.path.parent
    paths = [folder / name for name in ("again.html", "again.md", "again.xml")]
    options = ["--html", str(paths[0]), "--markdown", str(paths[1]), "--junit", str(paths[2])]
    start_s = time.monotonic()
    done = report(line, *options, "--json")
    assert time.monotonic() - start_s < 20  # 3 s on a machine with nothing else to do
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["verdict"] == "PASS"
    assert paths[2].read_text("utf-8") == (released / "junit.xml").read_text("utf-8")
    # Only the command lines differ: they have run.yaml and --runs-dir as they were typed.
    typed = f"{line.run.path} --runs-dir {line.run.dir.parent}"
    for path, name in zip(paths[:2], ("report.html", "report.md"), strict=True):
        assert path.read_text("utf-8").replace(typed, "run.yaml") == (
            (released / name).read_text("utf-8")
        )
    done = tuneline_here("report", str(released))
    assert done.returncode == 0, done.stderr
    assert (line.run.dir / "report.html").is_file()


def test_a_waiver_is_loud(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("no licence", encoding="utf-8")
    line = write_line(tmp_path)
    release = line.released(*line.waiving("licenses", HOSTILE))
    page = Reader((release / "report.html").read_text("utf-8"))
    assert "PASS, 1 WAIVED" in page.texts
    text = text_of(release / "report.html")
    assert text.count("document.title='broken'") >= 2
    assert "script" not in page.tags and "img" not in page.tags
    markdown = (release / "report.md").read_text("utf-8")
    assert "**PASS, 1 WAIVED**" in markdown.splitlines()[0]
    (suite,) = JUnitXml.fromfile(str(release / "junit.xml"))
    (case,) = (one for one in suite if one.name == "licenses")
    (skipped,) = case.result
    assert isinstance(skipped, Skipped)
    # XML cannot hold a line break within an attribute.
    assert skipped.message.split() == f"waived: {HOSTILE}".split()


def test_long_prompts_do_not_make_a_large_page(tmp_path: Path) -> None:
    """Twenty wrong answers to prompts of 100 kB would be a page of 2 MB."""
    source = (EXAMPLE / "heldout.jsonl").read_text("utf-8").split("\n")[:NUM_HELDOUT]
    rows = [json.loads(line) for line in source]
    for row in rows[:25]:
        row["input"] += f" {row['input']}" * (100_000 // len(row["input"]))
    lines = (json.dumps(row) + "\n" for row in rows)
    (tmp_path / "heldout.jsonl").write_text("".join(lines), "utf-8")
    line = write_line(tmp_path, Answers(tuned_wrong=range(25), served_wrong=range(25)))
    report(line, "--html", str(tmp_path / "r.html"))
    assert 100_000 < (tmp_path / "r.html").stat().st_size < 1_500_000
    page = text_of(tmp_path / "r.html")
    assert "The first 20. All rows, with their whole texts, are in evaluation-report-" in page


def test_a_failing_release_has_its_report(tmp_path: Path) -> None:
    line = write_line(tmp_path, Answers(tuned_wrong=range(100), served_wrong=range(100)))
    assert line.release().returncode == 6
    target = tmp_path / "report.html"
    done = report(line, "--html", str(target), "--junit", str(tmp_path / "junit.xml"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("support-tickets: FAIL")
    (folder,) = line.run.dir.glob("release-*")
    failed = read_release(folder).failed()
    assert failed
    page = text_of(target)
    for gate in failed:
        assert page.count(gate.words) >= 2  # at the top, and in the table of gates
    suites = JUnitXml.fromfile(str(tmp_path / "junit.xml"))
    (suite,) = suites
    failures = [case.name for case in suite if any(isinstance(r, Failure) for r in case.result)]
    assert failures == [gate.name for gate in failed]
    assert suites.failures == suite.failures == len(failed)


def test_a_run_without_a_release_shows_its_artifacts_and_what_lacks(tmp_path: Path) -> None:
    line = write_line(tmp_path)
    shutil.rmtree(line.artifact("loadtest"))
    done = report(line, "--junit", str(tmp_path / "junit.xml"), "--html", str(tmp_path / "r.html"))
    assert done.returncode == 0, done.stderr
    page = text_of(tmp_path / "r.html")
    assert "NOT RELEASED" in page
    assert "loadtest: not made yet" in page
    assert "98.0%" in page
    (suite,) = JUnitXml.fromfile(str(tmp_path / "junit.xml"))
    (case,) = suite
    (error,) = case.result
    assert isinstance(error, Error)
    assert "tuneline release" in error.message


@pytest.mark.parametrize(
    ("absent", "following"),
    [({"loadtest": "not made yet"}, "tuneline up run.yaml"), ({}, "tuneline release run.yaml")],
)
def test_the_top_of_a_run_names_the_next_command(absent: dict[str, str], following: str) -> None:
    page = report_document(Facts("a", "tuneline up run.yaml", None, {}, absent))
    assert str(page.lead).endswith(f"Next: {following}")


def test_a_release_about_other_artifacts_is_not_shown(tmp_path: Path) -> None:
    line = write_line(tmp_path)
    line.released()
    shutil.rmtree(line.artifact("loadtest"))
    done = report(line)
    assert done.stdout.startswith("support-tickets: not released")


def test_a_release_without_its_artifacts_says_so(released: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved" / released.name
    shutil.copytree(released, moved)
    done = tuneline_here("report", str(moved))
    assert done.returncode == 0, done.stderr
    page = text_of(tmp_path / "moved" / "report.html")
    assert "no such directory" in page
    assert all(figure.title in page for figure in read_release(moved).figures)


def test_a_load_report_of_another_version_is_named(tmp_path: Path) -> None:
    line = write_line(tmp_path)
    path = line.artifact("loadtest") / "report.json"
    text = path.read_text("utf-8")
    # The same length: the artifact is opened by the sizes of its files.
    path.write_text(re.sub(r'"schema_version":( ?)\d', r'"schema_version":\g<1>0', text, count=1))
    done = report(line, "--html", str(tmp_path / "r.html"))
    assert done.returncode == 0, done.stderr
    page = text_of(tmp_path / "r.html")
    assert "schema_version is 0; expected" in page
    assert "98.0%" in page


def test_characters_that_xml_cannot_hold_are_replaced(released: Path) -> None:
    facts = facts_of_folder(released)
    assert facts.release is not None
    gate = facts.release.gates[0].model_copy(
        update={"outcome": Outcome.FAILED, "words": "a\x00b\x1b[31m\ufffe c]]> <&"}
    )
    release = facts.release.model_copy(update={"gates": [gate]})
    suites = JUnitXml.fromstring(junit_text(type(facts)(**{**vars(facts), "release": release})))
    (suite,) = suites
    (case,) = suite
    assert case.result[0].message == "a�b�[31m� c]]> <&"


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["{released}", "--html", "{released}/x.html"], 2, "is an artifact, which is written once"),
        (["{released}", "--html", "{tmp}/no/x.html"], 2, "there is no directory"),
        (["{released}", "--markdown", "{tmp}"], 2, "is a directory; expected a file"),
        (["{tmp}"], 3, "no such file; expected the directory of a release"),
        (["{tmp}/run.yaml"], 2, "run.yaml"),
        (["{released}", "--junit", "/proc/x.xml"], 3, "cannot be written"),
    ],
)
def test_a_target_that_cannot_be_used_is_named(
    released: Path, tmp_path: Path, options: list[str], code: int, message: str
) -> None:
    done = tuneline_here(
        "report", *(one.format(released=released, tmp=tmp_path) for one in options)
    )
    assert done.returncode == code, done.stderr
    assert message in done.stderr


def test_a_release_that_was_judged_by_other_limits_is_not_shown(
    line: FinishedLine, released: Path
) -> None:
    assert released.is_dir()
    page = line.run.path.parent / "stricter.html"
    limits = ["--set", "release.threshold=0.99"]
    done = report(line, *limits, "--html", str(page), "--json")
    assert json.loads(done.stdout)["verdict"] == "not released"
    words = f"No gate was judged. {released.name} was judged with other values of release.threshold"
    assert words in text_of(page)
    assert json.loads(report(line, "--json").stdout)["verdict"] == "PASS"


def test_the_release_that_was_returned_last_is_shown(tmp_path: Path) -> None:
    """FAIL, then a waiver, then none again: the third call returns the first release."""
    line = write_line(tmp_path, Answers(parity_noise=0.5))

    def verdict() -> str:
        return str(json.loads(report(line, "--json").stdout)["verdict"])

    assert line.release().returncode == 6
    assert verdict() == "FAIL"
    line.released(*line.waiving("parity-served", "known"))
    assert verdict() == "PASS"
    assert line.release().returncode == 6
    assert verdict() == "FAIL"

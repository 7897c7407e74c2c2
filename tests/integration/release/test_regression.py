"""Gates `regression` and `speed`: what an earlier release is a baseline of, and what it is not."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from loadtest.config import LoadTestConfig
from loadtest.report.schema import SCHEMA_VERSION, LoadReport
from loadtest.studies.schema import ComparisonReport
from serving import engine_settings
from tests.integration.release.line import (
    EXAMPLE,
    LOAD_REPORT,
    NUM_HELDOUT,
    Answers,
    FinishedLine,
    rewrite,
    write_line,
)
from tuneline.core.artifact import new_artifact, open_artifact
from tuneline.core.release import Gate, Outcome, read_release


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> FinishedLine:
    return write_line(tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def previous(whole: FinishedLine) -> Path:
    return whole.released()


def with_previous(folder: Path, previous: Path, answers: Answers, comparison: str) -> FinishedLine:
    release = {"previous": str(previous), "load_comparison": comparison}
    return write_line(folder, answers, {"release": release})


def with_heldout(folder: Path, *rows: int) -> None:
    """Write the held-out file of a line with these rows of the example."""
    folder.mkdir(parents=True)
    lines = (EXAMPLE / "heldout.jsonl").read_text("utf-8").split("\n")
    (folder / "heldout.jsonl").write_text("".join(f"{lines[row]}\n" for row in rows), "utf-8")


def gate_of(line: FinishedLine, name: str) -> Gate:
    found = line.judged().gate(name)
    assert found is not None
    return found


def test_a_regression_inside_the_noise_is_refused(previous: Path, tmp_path: Path) -> None:
    """Six of a hundred rows are lost and four won: the interval holds zero, and a drop of 8 %."""
    worse = Answers(tuned_wrong=range(50, 56), served_wrong=range(50, 56))
    line = with_previous(tmp_path / "worse", previous, worse, "none")
    done = line.release()
    assert done.returncode == 6
    assert "regression: This release may be worse: the noise hides it." in done.stderr
    same = with_previous(tmp_path / "same", previous, Answers(), "none")
    gate = same.judged().gate("regression")
    assert gate is not None and gate.outcome is Outcome.PASSED
    far = Answers(tuned_wrong=range(30), served_wrong=range(30))
    gate = with_previous(tmp_path / "far", previous, far, "none").judged().gate("regression")
    assert gate is not None and gate.outcome is Outcome.FAILED
    assert "This release is worse than release" in gate.words


@pytest.mark.parametrize(
    ("num_kept", "num_added", "words"),
    [
        (96, 0, ""),
        (100, 40, ""),
        (94, 40, "94 of the 100 held-out rows of release {short} are among the 134 of this run"),
        (0, 100, "0 of the 100 held-out rows"),
    ],
    ids=["nearly all", "more", "too few", "none"],
)
def test_rows_that_are_gone_may_hide_no_more_than_the_limit(
    previous: Path, tmp_path: Path, num_kept: int, num_added: int, words: str
) -> None:
    folder = tmp_path / "new"
    with_heldout(folder, *range(num_kept), *range(NUM_HELDOUT, NUM_HELDOUT + num_added))
    gate = gate_of(with_previous(folder, previous, Answers(), "none"), "regression")
    short = open_artifact(previous).short_digest
    assert gate.outcome is (Outcome.FAILED if words else Outcome.PASSED), gate.words
    assert words.format(short=short) in gate.words
    if words:
        assert "could hide a drop of more than 0.05" in gate.words


def test_too_few_rows_are_inconclusive_and_fail(previous: Path, tmp_path: Path) -> None:
    """73 equal answers are needed: Wilson's interval of n of n is z²/(n + z²) wide."""
    perfect = Answers(tuned_wrong=(), served_wrong=())
    inconclusive = (
        "INCONCLUSIVE: 40 rows cannot rule out a drop of 0.05, even if every answer is equal; at "
        "least 73 rows are needed"
    )
    with_heldout(tmp_path / "few", *range(40))
    first = write_line(tmp_path / "few", perfect)
    gate = gate_of(first, "evaluation-served")
    assert gate.outcome is Outcome.FAILED
    assert inconclusive in gate.words
    release = first.released("--waive", "evaluation-served:not-ruled-out", "--why", "few rows")
    with_heldout(tmp_path / "new", *range(40))
    gate = gate_of(with_previous(tmp_path / "new", release, perfect, "none"), "regression")
    assert gate.outcome is Outcome.FAILED
    assert inconclusive in gate.words


def test_a_release_that_failed_is_not_a_baseline(tmp_path: Path) -> None:
    failed = write_line(tmp_path / "failed", Answers(parity_noise=0.5))
    assert failed.release().returncode == 6
    (release,) = failed.run.dir.glob("release-*")
    gate = gate_of(with_previous(tmp_path / "new", release, Answers(), "none"), "regression")
    assert gate.outcome is Outcome.FAILED
    assert "is FAIL (parity-served), and a release that failed is not a baseline" in gate.words


def _of_another_metric(text: str) -> str:
    return text.replace('"metric":"exact_match"', '"metric":"chrf"')


def _of_another_evaluation(text: str) -> str:
    rows = json.loads(text)
    return json.dumps({**rows, "evaluation": "sha256:" + "0" * 64})


def _cut(text: str) -> str:
    return text[:-20]


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (_of_another_metric, "has rows of chrf; this run's release.metric is exact_match"),
        (_of_another_evaluation, "rows.json of release {short} is of another evaluation than"),
        (_cut, "does not hold the values of held-out rows"),
        (lambda _: None, "release {short} holds no rows"),
    ],
    ids=["metric", "evaluation", "cut", "gone"],
)
def test_rows_that_are_not_the_earlier_releases_are_refused(
    previous: Path, tmp_path: Path, edit: Callable[[str], str | None], words: str
) -> None:
    release = Path(shutil.copytree(previous, tmp_path / "earlier"))
    rewrite(release, "rows.json", edit)
    gate = gate_of(with_previous(tmp_path / "new", release, Answers(), "none"), "regression")
    assert gate.outcome is Outcome.FAILED
    assert words.format(short=open_artifact(release).short_digest) in gate.words


def endpoint(digest: str, host: str = "127.0.0.1") -> dict[str, Any]:
    return {
        "url": f"http://{host}:8000/v1", "model": "m", "served_names": ["m"], "server": None,
        "artifact_name": "m@" + digest[7:19], "artifact_short_digest": digest[7:19],
    }  # fmt: skip


def comparison(old: str, new: str) -> dict[str, Any]:
    """Return a comparison of four turns in which both sides are equally fast."""
    report = LoadReport.model_validate_json(LOAD_REPORT.read_text("utf-8"))
    run = report.scenarios[0].model_dump(mode="json")
    difference = {
        "metric": "ttft_s", "unit": "s", "num_pairs": 300, "mean_a": 0.1, "mean_b": 0.1,
        "difference": 0.0, "ci95_low": -0.001, "ci95_high": 0.001, "verdict": "no difference",
    }  # fmt: skip
    scenario = {
        "name": run["name"], "answer_tokens": [30.0, 30.0],
        "differences": [{**difference, "metric": name} for name in ("ttft_s", "tpot_s", "e2e_s")],
        "runs": {"a": [run, run], "b": [run, run]},
    }  # fmt: skip
    return {
        "schema_version": SCHEMA_VERSION, "verdict": "PASS", "problems": [], "margin": 0.05,
        "interleaved": True, "endpoints": {"a": endpoint(old), "b": endpoint(new)},
        "scenarios": [scenario], "environment": {},
    }  # fmt: skip


def _not_in_turns(found: dict[str, Any]) -> None:
    found["interleaved"] = False


def _slower(found: dict[str, Any]) -> None:
    found.update(verdict="FAIL", problems=["closed-4: B is slower"])


def _the_other_way_round(found: dict[str, Any]) -> None:
    found["endpoints"]["a"] = endpoint("sha256:" + "0" * 64)


def _with_a_wide_margin(found: dict[str, Any]) -> None:
    found["margin"] = 0.5


def _without_a_scenario(found: dict[str, Any]) -> None:
    found["scenarios"] = []


def _says_pass_of_a_slower_side(found: dict[str, Any]) -> None:
    found["scenarios"][0]["differences"][0].update(ci95_low=0.02, ci95_high=0.04)


def _says_pass_of_too_few_pairs(found: dict[str, Any]) -> None:
    found["scenarios"][0]["differences"][0].update(num_needed=600)


def _in_one_turn_each(found: dict[str, Any]) -> None:
    found["scenarios"][0]["runs"] = {
        side: runs[:1] for side, runs in found["scenarios"][0]["runs"].items()
    }


def _says_pass_of_an_invalid_run(found: dict[str, Any]) -> None:
    run = found["scenarios"][0]["runs"]["b"][1]
    found["scenarios"][0]["runs"]["b"][1] = {**run, "verdict": "INVALID", "problems": ["late"]}


def _at_another_load(found: dict[str, Any]) -> None:
    for run in found["scenarios"][0]["runs"]["b"]:
        run["config"]["concurrency"] = 1


def _of_another_scenario(found: dict[str, Any]) -> None:
    found["scenarios"][0]["name"] = "closed-1"


def _on_two_hosts(found: dict[str, Any]) -> None:
    digest = "sha256:" + found["endpoints"]["b"]["artifact_short_digest"]
    found["endpoints"]["b"] = endpoint(digest, "10.0.0.2")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda _: None, ""),
        (_on_two_hosts, ""),
        (_not_in_turns, "its two sides were not measured in turns"),
        (_slower, "closed-4: B is slower"),
        (_the_other_way_round, "side a served"),
        (_with_a_wide_margin, "its margin is 50%, and release.max_slowdown is 5%"),
        (_without_a_scenario, "it has no scenario; expected closed-4"),
        (_at_another_load, "scenario closed-4 ran at another load than run.yaml's"),
        (_of_another_scenario, "it has the scenarios closed-1; expected closed-4"),
        (_says_pass_of_a_slower_side, "ttft_s is called no difference; its interval says slower"),
        (_says_pass_of_too_few_pairs, "ttft_s is called no difference; its interval says unclear"),
        (_in_one_turn_each, "1 turns of A and 1 of B; expected at least 2 of each"),
        (_says_pass_of_an_invalid_run, "the figures say INVALID; closed-4: late"),
    ],
)
def test_speed_is_judged_by_an_interleaved_comparison(
    previous: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None], words: str
) -> None:
    old = read_release(previous).model.digest
    line = with_previous(tmp_path / "new", previous, Answers(), "../comparison")
    new = open_artifact(line.artifact("model")).digest
    assert old == new  # the two lines trained the same
    found = comparison(old, new)
    change(found)
    report = ComparisonReport.model_validate(found)
    write_comparison(tmp_path / "comparison", report, line.run.config.loadtest)
    gate = gate_of(line, "speed")
    assert gate.outcome is (Outcome.FAILED if words else Outcome.PASSED), gate.words
    assert words in gate.words
    if change is _on_two_hosts:
        assert "no file says that the hardware of both is equal" in gate.words
    elif not words:
        assert "Both were measured in turns on 127.0.0.1." in gate.words


@pytest.mark.parametrize(
    ("engines", "words"),
    [
        (("a", "b"), ""),
        (("b", "b"), "the server of side a had other settings than in the load test of its"),
        (("a", "a"), "the server of side b had other settings than in the load test of its"),
        (("a", None), "No file has the settings of the server of side b."),
        ((None, None), "No file has the settings of the server of side a and b."),
    ],
)
def test_speed_is_compared_between_the_servers_of_the_releases(
    tmp_path: Path, engines: tuple[str | None, str | None], words: str
) -> None:
    other = {"serving": {"max_num_seqs": 8}}
    previous = write_line(tmp_path / "old", config=other).released()
    line = with_previous(tmp_path / "new", previous, Answers(), "../comparison")
    own = {
        "a": read_release(previous).model.engine,
        "b": engine_settings(line.run.config.serving),
        None: None,
    }
    assert own["a"] != own["b"]
    digest = open_artifact(line.artifact("model")).digest
    found = comparison(digest, digest)
    for side, engine in zip("ab", engines, strict=True):
        found["endpoints"][side]["engine"] = own[engine]
    report = ComparisonReport.model_validate(found)
    write_comparison(tmp_path / "comparison", report, line.run.config.loadtest)
    gate = gate_of(line, "speed")
    is_other = "other settings" in words
    assert gate.outcome is (Outcome.FAILED if is_other else Outcome.PASSED), gate.words
    assert words in gate.words
    assert ("No file has the settings" in gate.words) is (None in engines)


def write_comparison(folder: Path, report: ComparisonReport, config: LoadTestConfig) -> None:
    values = config.model_dump(mode="json")
    with new_artifact(folder, "load-comparison", config=values) as draft:
        (draft.dir / "report.json").write_text(report.model_dump_json())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"max_tokens": 8}, "max_tokens is 8; run.yaml has 48"),
        ({"workload": {"route": "responses"}}, "workload is {"),
        ({"extra_body": {"temperature": 1.0}}, 'extra_body is {"temperature": 1.0}; run.yaml has'),
        ({"timeout_s": 30.0, "seed": 7, "num_workers": 2}, ""),
    ],
)
def test_a_comparison_of_other_requests_is_no_proof_of_speed(
    previous: Path, tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    line = with_previous(tmp_path / "new", previous, Answers(), "../comparison")
    digest = open_artifact(line.artifact("model")).digest
    report = ComparisonReport.model_validate(comparison(digest, digest))
    config = LoadTestConfig.model_validate(
        {**line.run.config.loadtest.model_dump(mode="json"), **change}
    )
    write_comparison(tmp_path / "comparison", report, config)
    gate = gate_of(line, "speed")
    assert gate.outcome is (Outcome.FAILED if words else Outcome.PASSED), gate.words
    assert words in gate.words


def test_an_earlier_release_without_a_load_comparison_is_no_proof(
    previous: Path, tmp_path: Path
) -> None:
    line = write_line(tmp_path, config={"release": {"previous": str(previous)}})
    done = line.release()
    assert done.returncode == 6
    assert "speed: The proof is missing: no load comparison with release" in done.stderr
    assert "tuneline loadtest compare" in done.stderr

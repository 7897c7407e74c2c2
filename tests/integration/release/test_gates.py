"""A gate judges figures, not a word in a file, and asks whether there is anything to judge."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from loadtest.config import SLO
from tests.integration.release.line import (
    CONFIG,
    Answers,
    FinishedLine,
    forgetting_files,
    reward_line,
    rewrite,
    write_line,
)
from tuneline.core.errors import ConfigError
from tuneline.core.release import Gate, Outcome, read_release
from tuneline.core.tolerances import Tolerances
from tuneline.release.rows import Rows, compare_rows

FORGETTING = {"evaluation": {"metrics": ["exact_match"], "forgetting": True}}


def gate_of(line: FinishedLine, name: str, *options: str) -> Gate:
    found = line.judged(*options).gate(name)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def lost(tmp_path_factory: pytest.TempPathFactory) -> FinishedLine:
    """A line whose tuned model lost a skill."""
    return write_line(tmp_path_factory.mktemp("lost"), Answers(lost_skill="json"), FORGETTING)


def test_a_verdict_that_its_answers_contradict_is_refused(lost: FinishedLine) -> None:
    kept = forgetting_files(None)["forgetting.json"]
    rewrite(lost.artifact("forgetting"), "forgetting.json", lambda _: kept, "forgetting")
    gate = gate_of(lost, "forgetting")
    assert gate.outcome is Outcome.FAILED
    assert "its verdict is PASS, and that of its answers is FAIL" in gate.words
    figures = json.loads(forgetting_files("json")["forgetting.json"])
    figures["interval"] = [-0.01, 0.01]
    rewrite(
        lost.artifact("forgetting"), "forgetting.json", lambda _: json.dumps(figures), "forgetting"
    )
    assert "its difference and interval are" in gate_of(lost, "forgetting").words
    rewrite(lost.artifact("forgetting"), "answers.jsonl", lambda _: None, "forgetting")
    assert "does not hold the answers to the forgetting suite" in gate_of(lost, "forgetting").words


def test_a_suite_that_the_base_cannot_pass_is_no_proof(tmp_path: Path) -> None:
    line = write_line(tmp_path, Answers(has_skills=False), FORGETTING)
    gate = gate_of(line, "forgetting")
    assert (gate.outcome, gate.observed) == (Outcome.FAILED, "INVALID")
    assert "The base has none of the suite's skills" in gate.words
    waived = gate_of(line, "forgetting", "--waive", "forgetting:invalid", "--why", "a tiny base")
    assert waived.outcome is Outcome.WAIVED


def test_a_waiver_covers_the_reason_that_it_names_and_no_other(tmp_path: Path) -> None:
    """A waiver of a missed latency does not let a report of another artifact through."""

    def slow(report: dict[str, Any]) -> None:
        report["verdict"] = "FAIL"
        report["problems"] = [
            "closed-4: ttft_s.p90: 2 s; at most 1 s is allowed (N = 150); 5.3% of the requests "
            "keep to it, 95 % interval 0.2% to 58.9%; 90 % must"
        ]

    def slow_and_other(report: dict[str, Any]) -> None:
        slow(report)
        report["endpoint"]["artifact_short_digest"] = "0" * 12

    known = ("--waive", "load:closed-4-ttft_s.p90", "--why", "the canary measures it")
    assert gate_of(write_line(tmp_path / "a", Answers(load=slow)), "load", *known).why == known[-1]
    other = write_line(tmp_path / "b", Answers(load=slow_and_other))
    gate = gate_of(other, "load", *known)
    assert gate.outcome is Outcome.FAILED
    assert gate.reasons == ["other-artifact", known[1].removeprefix("load:")]
    assert gate.words.endswith("; closed-4: ttft_s.p90: 2 s; at most 1 s is allowed.")
    done = other.release("--waive", "load", "--why", "x")
    assert (done.returncode, "names the gate and no reason" in done.stderr) == (2, True)


def test_a_load_test_without_an_objective_is_refused(tmp_path: Path) -> None:
    slo = {"max_error_rate": None}

    def without(report: dict[str, Any]) -> None:
        for one in report["scenarios"]:
            one.update(slo=SLO(max_error_rate=None).model_dump(mode="json"), objectives=[])

    config = {"loadtest": {**CONFIG["loadtest"], "slo": slo}}
    gate = gate_of(write_line(tmp_path, Answers(load=without), config), "load")
    assert gate.outcome is Outcome.FAILED
    assert "closed-4 has no objective; expected a limit in loadtest.slo" in gate.words


@pytest.mark.parametrize("verdict", ["INVALID", "INCONCLUSIVE", "FAIL"])
def test_a_load_test_that_up_measures_again_is_not_removed(tmp_path: Path, verdict: str) -> None:
    def judged(report: dict[str, Any]) -> None:
        report.update(verdict=verdict, problems=["closed-4: the client sent late"])
        report["scenarios"][0].update(verdict=verdict, problems=["the client sent late"])

    gate = gate_of(write_line(tmp_path, Answers(load=judged)), "load")
    assert gate.outcome is Outcome.FAILED
    assert "the client sent late" in gate.words
    assert "tuneline up" in gate.hint
    assert ("rm -r" in gate.hint) is (verdict == "FAIL")


@pytest.mark.parametrize(("num_gone", "outcome"), [(5, Outcome.PASSED), (6, Outcome.FAILED)])
def test_answers_that_are_gone_may_hide_no_more_than_the_limit(
    tmp_path: Path, num_gone: int, outcome: Outcome
) -> None:
    line = write_line(tmp_path)

    def edit(text: str) -> str:
        rows = [json.loads(one) for one in text.removesuffix("\n").split("\n")]
        assert len(rows) == 100
        for row in rows[-num_gone:]:
            row["scores"]["exact_match"] = None
        return "".join(json.dumps(row) + "\n" for row in rows)

    rewrite(line.artifact("evaluation-served"), "predictions.jsonl", edit, "evaluation")
    gate = gate_of(line, "evaluation-served")
    assert gate.outcome is outcome, gate.words
    if outcome is Outcome.FAILED:
        assert (
            "94 of the 100 rows of the tuned model have a value of the served model" in gate.words
        )
        assert "the 6 that are gone could hide a drop of more than 0.05" in gate.words


def test_a_limit_is_judged_by_the_predictions(tmp_path: Path) -> None:
    config = {"release": {"threshold": 0.99}}
    honest = gate_of(write_line(tmp_path / "honest", config=config), "evaluation")
    assert honest.outcome is Outcome.FAILED
    assert "exact_match 0.98 is outside the limit 0.99" in honest.words
    forged = gate_of(
        write_line(tmp_path / "forged", Answers(tuned_value=1.0), config), "evaluation"
    )
    assert forged.outcome is Outcome.FAILED
    assert "evaluation.json has 1, which contradicts the predictions, 0.98" in forged.words


def test_a_hint_keeps_the_options_that_make_the_run(tmp_path: Path) -> None:
    line = write_line(tmp_path / "a line")
    shutil.rmtree(line.artifact("loadtest"))
    done = line.release("--set", "loadtest.slo.max_error_rate=0.0")
    assert done.returncode == 6
    place = line.run.dir.parent
    assert (
        f"Try: tuneline up '{line.run.path}' --set loadtest.slo.max_error_rate=0.0 "
        f"--runs-dir '{place}'"
    ) in done.stderr


def test_a_proof_that_was_renamed_to_other_settings_is_refused(tmp_path: Path) -> None:
    line = write_line(tmp_path / "line")
    old = line.artifact("loadtest")
    other = write_line(tmp_path / "line", config={"serving": {"max_num_seqs": 8}})
    (new,) = (path for path in line.run.dir.glob("loadtest-*") if path != old)
    shutil.rmtree(new)
    shutil.copytree(old, new)
    found = {gate.name: gate for gate in other.judged().failed()}
    assert found.keys() == {"chain", "load"}
    assert f"loadtest: was made as {old.name}, for other settings" in found["chain"].words
    assert f"rm -r {new} && tuneline up" in found["chain"].hint
    assert "other settings than section serving of run.yaml" in found["load"].words


def test_tolerances_that_judge_nothing_prove_nothing(tmp_path: Path) -> None:
    loose = Tolerances(
        min_greedy_agreement=0.0, min_token_agreement=None, max_logprob_difference=1e9,
        mean_logprob_difference=None,
    ).model_dump()  # fmt: skip
    config = {"serving": {"parity": {"tolerances": loose}}}
    gate = gate_of(write_line(tmp_path, Answers(), config), "parity-served")
    assert gate.outcome is Outcome.FAILED
    assert "no limit that a form can miss is set" in gate.words
    assert gate.required == "the served model is PASS; served: no limit (set in run.yaml)"
    gate = gate_of(write_line(tmp_path), "parity-served")
    assert gate.required == (
        "the served model is PASS; served: all answers equal, 50% of the tokens equal, "
        "log-probabilities within 0.05 nats, within 0.005 on average"
    )


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({"threshold": 0}, "threshold is 0, which no model can miss"),
        ({"threshold": -1, "metric": "nats"}, "threshold is -1, which no model can miss"),
    ],
)
def test_a_threshold_that_no_model_can_miss_is_refused(
    tmp_path: Path, limits: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        write_line(tmp_path, config={"release": limits})


@pytest.mark.parametrize(("limit", "words"), [(0.05, ""), (2.0, "cannot show it; lower release")])
def test_a_drop_that_the_metric_cannot_have_is_not_ruled_out(limit: float, words: str) -> None:
    values = {f"{number}": 0.5 + number / 100 for number in range(40)}
    rows = Rows(metric="rouge_l", higher_is_better=True, evaluation="", values=values)
    compared = compare_rows(rows, rows)
    assert compared is not None
    assert compared.rules_out(limit) is not bool(words)
    assert words in compared.inconclusive(limit)


def test_a_reward_model_is_released_for_its_scores(tmp_path: Path) -> None:
    line = reward_line(tmp_path, Answers())
    release = line.judged()
    assert {gate.name: gate.outcome for gate in release.gates if gate.outcome != "passed"} == {
        "forgetting": "not asked", "parity": "not asked", "evaluation-served": "not asked",
        "regression": "not asked", "speed": "not asked",
    }  # fmt: skip
    folder = line.released()
    figure = read_release(folder).figure("parity.served.num_equal_orders")
    assert figure is not None and figure.value == 40
    names = [one.name for one in read_release(folder).figures if one.name.startswith("load.")]
    assert "load.closed-4.e2e_s.p90" in names
    assert not [name for name in names if "ttft" in name or "tpot" in name or "output" in name]
    assert "pipeline_tag: text-classification" in (folder / "README.md").read_text()
    bom = json.loads((folder / "bom.json").read_text())
    found = bom["metadata"]["component"]["modelCard"]["modelParameters"]
    assert found["task"] == "text-classification"
    assert found["outputs"] == [{"format": "score"}]
    losses = [one for one in read_release(folder).figures if "loss" in one.name]
    assert [one.unit for one in losses] == ["", ""]
    page = (folder / "report.md").read_text()
    assert "Served scores" in page and "40 of 40" in page and "tuneline prove" not in page
    assert "| better answer preferred by the tuned model | 100.0%, 91.2% to 100.0% (95 %) |" in page
    assert "nats per token" not in page


def test_served_scores_of_another_model_are_refused(tmp_path: Path) -> None:
    line = reward_line(tmp_path, Answers(served_reward=2.5))
    gate = gate_of(line, "parity-served")
    assert gate.outcome is Outcome.FAILED
    assert "standard deviations; at most 0.002 is allowed" in gate.words
    proof = line.artifact("parity-served")

    def forge(text: str) -> str:
        return json.dumps({**json.loads(text), "limit": 9.0, "verdict": "PASS"})

    rewrite(proof, "rewards.json", forge, "reward-parity")
    words = gate_of(line, "parity-served").words
    assert "its limit is 9; expected one of the number formats" in words


def test_a_drafter_and_a_plugin_are_looked_at(tmp_path: Path) -> None:
    drafter = tmp_path / "drafter"
    drafter.mkdir()
    (drafter / "config.json").write_text("{}")
    (tmp_path / "parser.py").write_text("")
    extra = {
        "tool-parser-plugin": "parser.py",
        "speculative_config": {"model": "drafter", "num_speculative_tokens": 2},
    }
    line = write_line(tmp_path, config={"serving": {"extra_args": extra}})
    gate = gate_of(line, "safe-files")
    assert gate.outcome is Outcome.PASSED
    assert "The server also runs code that run.yaml names: tool_parser_plugin: parser.py" in (
        gate.words
    )
    (drafter / "pytorch_model.bin").write_text("")
    line = write_line(tmp_path, config={"serving": {"extra_args": extra}})
    gate = gate_of(line, "safe-files")
    assert gate.outcome is Outcome.FAILED
    assert "drafter/pytorch_model.bin has the name of a pickle" in gate.words
    assert gate.hint == "Name a drafter without these files in serving.extra_args."

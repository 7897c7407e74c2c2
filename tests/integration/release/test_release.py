"""`tuneline release` on finished lines: gates, figures, waivers, the files of a release."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from tests.integration.release.line import (
    NUM_HELDOUT,
    Answers,
    FinishedLine,
    rewrite,
    write_line,
)
from tuneline.core.artifact import new_artifact, open_artifact, verify_artifact
from tuneline.core.files import file_sha256
from tuneline.core.release import Figure, read_release


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> FinishedLine:
    return write_line(tmp_path_factory.mktemp("line"))


@pytest.fixture(scope="module")
def released(line: FinishedLine) -> Path:
    return line.released()


def outcomes(release: Path) -> dict[str, str]:
    return {gate.name: str(gate.outcome) for gate in read_release(release).gates}


def test_a_whole_line_passes_every_gate(released: Path) -> None:
    found = outcomes(released)
    assert len(found) == 12
    not_asked = {"forgetting", "regression", "speed"}
    assert {name for name, outcome in found.items() if outcome == "not asked"} == not_asked
    assert {outcome for name, outcome in found.items() if name not in not_asked} == {"passed"}
    artifact = open_artifact(released, kind="release")
    verify_artifact(artifact)
    assert sorted(entry.path for entry in artifact.manifest.files) == [
        "README.md", "bom.json", "junit.xml", "release.json", "report.html", "report.md",
        "rows.json", "statement.json",
    ]  # fmt: skip
    assert artifact.manifest.metrics["verdict"] == "PASS"


def pointed(document: Any, pointer: str) -> Any:
    for part in pointer.split("/")[1:]:
        document = document[int(part)] if isinstance(document, list) else document[part]
    return document


def test_every_figure_is_in_the_file_that_it_names(line: FinishedLine, released: Path) -> None:
    release = read_release(released)
    assert len(release.figures) > 30
    assert len({figure.name for figure in release.figures}) == len(release.figures)

    def read(figure: Figure) -> Any:
        path = line.artifact(figure.source.stage) / figure.source.file
        assert file_sha256(path) == figure.source.sha256
        return pointed(json.loads(path.read_text()), figure.source.pointer)

    assert [(f.name, read(f)) for f in release.figures] == [
        (f.name, f.value) for f in release.figures
    ]
    found = {figure.name: figure.value for figure in release.figures}
    assert found["evaluation.tuned.exact_match"] == 1 - 2 / NUM_HELDOUT
    assert found["data.num_heldout"] == NUM_HELDOUT
    assert found["load.closed-4.offered"] == 150


def test_the_chain_has_every_artifact_in_order(line: FinishedLine, released: Path) -> None:
    release = read_release(released)
    assert [link.stage for link in release.chain] == [
        "dataset", "evaluation-base", "adapter", "evaluation-tuned", "evaluation-report",
        "reference", "model", "parity-merged", "parity-served", "evaluation-served", "loadtest",
    ]  # fmt: skip
    for link in release.chain:
        artifact = open_artifact(line.artifact(link.stage))
        assert (artifact.digest, artifact.path.name) == (link.digest, link.directory)
    assert release.model.digest == open_artifact(line.artifact("model")).digest


def test_a_second_call_returns_the_release_that_is_there(
    line: FinishedLine, released: Path
) -> None:
    digest = open_artifact(released).digest
    assert line.released() == released
    assert open_artifact(released).digest == digest


def test_the_bill_of_materials_is_valid_and_complete(released: Path) -> None:
    text = (released / "bom.json").read_text()
    assert JsonStrictValidator(SchemaVersion.V1_7).validate_str(text) is None
    bom, release = json.loads(text), read_release(released)
    assert bom["specVersion"] == "1.7"
    model = bom["metadata"]["component"]
    assert model["hashes"][0]["content"] == release.model.digest.removeprefix("sha256:")
    metrics = model["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
    assert {"type": "evaluation.tuned.exact_match", "value": "0.98"}.items() <= metrics[0].items()
    by_ref = {component["bom-ref"]: component for component in bom["components"]}
    assert (
        by_ref["base-model"]["licenses"]
        == [{"license": {"acknowledgement": "declared", "id": "Apache-2.0"}}]
        or by_ref["base-model"]["licenses"][0]["license"]["id"] == "Apache-2.0"
    )
    assert by_ref["training-rows"]["licenses"][0]["license"]["id"] == "CC-BY-4.0"
    assert by_ref["training-rows"]["data"][0]["type"] == "dataset"
    assert {f"file/{entry.path}" for entry in release.model.files} <= by_ref.keys()


def test_the_statement_is_an_in_toto_statement_about_the_model_s_files(
    line: FinishedLine, released: Path
) -> None:
    from google.protobuf import json_format
    from in_toto_attestation.v1 import statement, statement_pb2

    text = (released / "statement.json").read_text()
    parsed = json_format.Parse(text, statement_pb2.Statement())
    statement.Statement.copy_from_pb(parsed).validate()
    model = line.artifact("model")
    named = {entry.name: entry.digest["sha256"] for entry in parsed.subject}
    assert named == {
        f"{model.name}/{file.name}": file_sha256(file)
        for file in model.iterdir()
        if file.name != "manifest.json"
    }
    document = json.loads(text)
    assert document["predicate"] == json.loads((released / "release.json").read_text())


def test_the_card_has_the_licence_and_the_figures(released: Path) -> None:
    card = (released / "README.md").read_text()
    # A figure that was not asked has no row, and one that is withheld has no unit.
    assert "right answers" not in card and "Goodput" not in card
    assert " withheld " in card and "withheld s" not in card and "withheld requests" not in card
    assert card.startswith("---\nlibrary_name: transformers\n")
    block = card.partition("\n---\n")[0]
    assert "license: apache-2.0" in block
    # The Hub refuses a card that names a folder or a file of this machine.
    assert "base_model" not in block and "datasets" not in block
    assert "Verdict: **PASS**" in card
    assert "| Exact match, tuned model | 0.98 |" in card


def test_no_path_of_this_machine_is_in_a_release(line: FinishedLine, released: Path) -> None:
    folder = str(line.run.path.parent)
    files = [path for path in released.iterdir() if path.suffix != ".sig"]
    assert len(files) == 9
    assert [path.name for path in files if folder in path.read_text()] == []


def test_a_waiver_is_recorded_in_every_file(tmp_path: Path) -> None:
    line = write_line(tmp_path, Answers(parity_noise=0.5))
    done = line.release()
    assert done.returncode == 6
    assert "parity-served: Not the trained model: served: max_logprob_difference" in done.stderr
    assert "--waive parity-served:served/max_logprob_difference --why" in done.stderr
    why = "the canary compares answers"
    release = line.released(*line.waiving("parity-served", why))
    assert outcomes(release)["parity-served"] == "waived"
    for name in ("release.json", "bom.json", "README.md", "statement.json"):
        assert why in (release / name).read_text(), name
    assert open_artifact(release).manifest.metrics["waived"] == ["parity-served"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--waive", "speling", "--why", "x"], "--waive speling: is not a gate; expected one of"),
        (["--waive", "load"], "1 --waive and 0 --why: expected one --why for each --waive"),
        (["--waive", "load", "--why", " "], "--waive load: the reason is empty"),
        (["--waive", "load", "--why", "x"], "--waive load: the gate did not fail"),
        (["--waive", "load:x", "--why", "x"], "--waive load:x: the gate did not fail"),
        (["--why", "x"], "0 --waive and 1 --why"),
        (["--sign-chain", "c.pem"], "--sign-chain: needs --sign-certificate"),
        (["--sign-key", "absent.pem"], "--sign-key absent.pem: cannot be read"),
        (["--set", "release.treshold=1"], "unknown key (did you mean threshold?)"),
    ],
)
def test_a_wrong_option_is_refused(line: FinishedLine, options: list[str], message: str) -> None:
    done = line.release(*options)
    assert done.returncode == 2
    assert message in done.stderr


def test_an_unknown_licence_stops_the_release(line: FinishedLine, tmp_path: Path) -> None:
    bare = write_line(tmp_path / "bare")
    (tmp_path / "bare" / "README.md").unlink()
    done = bare.release()
    assert done.returncode == 6
    assert "licenses: The licence of the data is not known." in done.stderr
    # With --set, `deploy` would refuse the release: run.yaml has another value.
    assert "Write into run.yaml, such as: release: {data_license: Apache-2.0}" in done.stderr
    release = read_release(bare.released("--set", "release.data_license=CC0-1.0"))
    assert (release.data.license, release.base.license) == ("CC0-1.0", "Apache-2.0")


@pytest.mark.parametrize(
    ("answers", "options", "words"),
    [
        (Answers(tuned_wrong=range(98), served_wrong=range(98)), [], "not shown to be better"),
        (Answers(), ["--set", "release.threshold=0.99"], "0.98 is outside the limit 0.99"),
        (Answers(), ["--set", "release.metric=chrf"], "The evaluation has no metric chrf"),
        (Answers(base_right=range(98)), [], "not shown to be better than the base: 0.98 → 0.98"),
    ],
    ids=["not better", "below the threshold", "another metric", "as good as the base"],
)
def test_a_model_that_is_not_good_enough_is_refused(
    answers: Answers, options: list[str], words: str, tmp_path: Path
) -> None:
    done = write_line(tmp_path, answers).release(*options)
    assert done.returncode == 6
    assert f"evaluation: {'The' if 'no metric' in words else ''}" in done.stderr
    assert words in done.stderr


def replace_file(line: FinishedLine, stage: str, file: str, change: dict[str, Any]) -> None:
    """Change a JSON file of an artifact and make the manifest fit, as a forger would."""

    def changed(text: str) -> str:
        document = json.loads(text)
        merge(document, change)
        return json.dumps(document)

    path = line.artifact(stage)
    rewrite(path, file, changed, open_artifact(path).kind)


def merge(document: dict[str, Any], change: dict[str, Any]) -> None:
    for key, value in change.items():
        if isinstance(value, dict):
            merge(document[key], value)
        else:
            document[key] = value


@pytest.mark.parametrize(
    ("stage", "file", "change", "gate", "words"),
    [
        (
            "evaluation-report", "comparison.json",
            {"metrics": {"exact_match": {"better": "tuned"}}},
            "evaluation", "not shown to be better",
        ),
        (
            "evaluation-report", "comparison.json",
            {"metrics": {"exact_match": {"base": 0.1, "interval": [0.7, 0.9], "better": "tuned"}}},
            "evaluation", "contradicts the predictions",
        ),
        (
            "parity-merged", "parity.json", {"max_logprob_difference": 3.0},
            "parity", "PASS contradicts the figures: max_logprob_difference is 3",
        ),
        (
            "parity-served", "parity.json", {"num_equal_answers": 0},
            "parity-served", "greedy_agreement is 1, and the counts are 0 of 2",
        ),
    ],
    ids=["better", "figures", "tolerance", "counts"],
)  # fmt: skip
def test_a_verdict_that_contradicts_the_figures_is_refused(
    tmp_path: Path, stage: str, file: str, change: dict[str, Any], gate: str, words: str
) -> None:
    line = write_line(tmp_path, Answers(base_right=range(98)))
    replace_file(line, stage, file, change)
    done = line.release()
    assert done.returncode == 6
    assert f"{gate}: " in done.stderr
    assert words in done.stderr


@pytest.mark.parametrize("file", ["release.json", "README.md", "bom.json"])
def test_a_forged_release_is_not_returned(tmp_path: Path, file: str) -> None:
    """The forged release has the manifest of its own files, so only its proofs refute it."""
    line = write_line(tmp_path)
    path = line.released()
    before = open_artifact(path)
    path.rename(tmp_path / "old")
    with new_artifact(path, "release", config={}, inputs=before.manifest.inputs) as draft:
        shutil.copytree(tmp_path / "old", draft.dir, dirs_exist_ok=True)
        (draft.dir / "manifest.json").unlink()
        text = (draft.dir / file).read_text()
        assert "0.98" in text
        (draft.dir / file).write_text(text.replace("0.98", "0.99"))
    done = line.release()
    assert done.returncode == 3
    assert "differs from a release of the same proofs" in done.stderr
    assert file in done.stderr


def test_a_served_model_with_worse_answers_is_refused(tmp_path: Path) -> None:
    done = write_line(tmp_path, Answers(served_wrong=range(20))).release()
    assert done.returncode == 6
    assert "evaluation-served: The served model may be worse than the tuned model" in done.stderr


def test_json_prints_one_document_also_for_a_refusal(tmp_path: Path) -> None:
    done = write_line(tmp_path, Answers(served_wrong=range(20))).release("--json")
    assert done.returncode == 6
    document = json.loads(done.stdout)
    assert document["release"]["verdict"] == "FAIL"
    assert not document["is_signed"]


def _fails(report: dict[str, Any]) -> None:
    report.update(verdict="FAIL", problems=["closed-4: ttft_s.p90: 2 s; at most 1 s is allowed"])


def _is_inconclusive(report: dict[str, Any]) -> None:
    report.update(verdict="INCONCLUSIVE", problems=["closed-4: too few requests"])


def _is_of_another(report: dict[str, Any]) -> None:
    report["endpoint"]["artifact_short_digest"] = "0123456789ab"


def _is_unnamed(report: dict[str, Any]) -> None:
    report["endpoint"].update(artifact_short_digest=None, artifact_name=None)


def _states_other_settings(report: dict[str, Any]) -> None:
    report["endpoint"]["engine"] = "0123456789ab"


def _states_no_settings(report: dict[str, Any]) -> None:
    report["endpoint"]["engine"] = None


def _has_other_limits(report: dict[str, Any]) -> None:
    report["scenarios"][0]["slo"]["ttft_s"] = {"p90": 9.0}


def _has_another_load(report: dict[str, Any]) -> None:
    report["scenarios"][0]["config"]["concurrency"] = 1


def _has_other_inputs(report: dict[str, Any]) -> None:
    report["inputs"] = []


def _says_pass_of_slow_answers(report: dict[str, Any]) -> None:
    report["scenarios"][0]["latency"]["ttft_s"]["percentiles"]["p90"] = 9.0


def _says_pass_of_a_missed_objective(report: dict[str, Any]) -> None:
    for objective in report["scenarios"][0]["objectives"]:
        if objective["name"] == "e2e_s.p90":
            objective["measured"] = 6.5


def _says_pass_of_a_failed_scenario(report: dict[str, Any]) -> None:
    report["scenarios"][0]["verdict"] = "FAIL"


def _says_pass_of_failures(report: dict[str, Any]) -> None:
    report["scenarios"][0]["requests"]["error_rate"] = 0.5


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_says_pass_of_slow_answers, "ttft_s.p90 was judged at"),
        (_says_pass_of_a_missed_objective, "e2e_s.p90 is 6.5 and PASS; the limit is 5"),
        (_says_pass_of_a_failed_scenario, "closed-4 is FAIL, which contradicts the report's PASS"),
        (_says_pass_of_failures, "max_error_rate was judged at 0.0; the figure is 0.5"),
        (_fails, "closed-4: ttft_s.p90: 2 s; at most 1 s is allowed"),
        (_is_inconclusive, "closed-4: too few requests"),
        (_is_of_another, "the server named the artifact 0123456789ab; expected"),
        (_is_unnamed, "the server named the artifact by no digest; expected"),
        (_states_other_settings, "the server had other settings than section serving"),
        (_states_no_settings, "the server did not state its settings"),
        (_has_other_limits, "scenario closed-4 was judged by other limits"),
        (_has_another_load, "scenario closed-4 was judged by other limits or at another load"),
        (_has_other_inputs, "it measured no artifact; expected"),
    ],
)
def test_a_load_report_that_proves_nothing_is_refused(
    change: Any, words: str, tmp_path: Path
) -> None:
    done = write_line(tmp_path, Answers(load=change)).release()
    assert done.returncode == 6
    assert "load: The load test does not hold: " in done.stderr
    assert words in done.stderr

"""A release refuses what was tampered with, leaked, forgotten, lost or measured on something else.

SABOTAGES lists every kind of sabotage with the test in which the command that a user runs refuses
it; most of these tests are in the rooms.
"""

import ast
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.commands import tuneline_here
from tests.integration.release.line import (
    NUM_HELDOUT,
    Answers,
    FinishedLine,
    rewrite,
    write_line,
)
from tuneline.core.artifact import new_artifact, open_artifact
from tuneline.core.release import Outcome, read_release

TESTS = Path(__file__).parents[2]
HERE = "integration/release/test_sabotages.py"
REGRESSION = "integration/release/test_regression.py"
VERIFY = "integration/release/test_verify.py"
PARITY = "integration/export/test_parity.py"
REFUSALS = "integration/export/merge/test_refusals.py"
SABOTAGES = {
    "LoRA scale": (PARITY, "test_a_wrong_scale_is_caught"),
    "delta twice": (PARITY, "test_a_delta_that_is_added_twice_is_caught"),
    "dropped delta": (PARITY, "test_one_delta_that_is_dropped_is_caught"),
    "lost tensor": (
        "integration/export/merge/test_completeness.py",
        "test_an_adapter_that_lost_a_tensor_is_refused",
    ),
    "other base": (REFUSALS, "test_an_adapter_of_another_base_is_refused_by_digest"),
    "other template": (PARITY, "test_another_chat_template_is_caught"),
    "lost stop token": (PARITY, "test_a_missing_stop_token_is_caught"),
    "vocabulary cut": (
        "integration/export/merge/test_vocabulary.py",
        "test_a_vocabulary_resized_in_part_is_refused",
    ),
    "coarse quantizer": (
        "integration/export/test_parity_of_forms.py",
        "test_a_coarse_quantizer_is_caught",
    ),
    "NaN": (REFUSALS, "test_a_base_with_nan_is_refused"),
    "tampered artifact": (HERE, "test_a_tampered_artifact_is_refused"),
    "tampered release": (VERIFY, "test_a_changed_added_removed_or_renamed_file_is_named"),
    "wrong key": (VERIFY, "test_a_wrong_key_is_refused"),
    "saturated load client": (
        "integration/loadtest/test_validity.py",
        "test_a_client_that_is_always_late_is_measured_twice_and_no_more",
    ),
    "clumped arrivals": (
        "unit/loadtest/judging/test_verdict.py",
        "test_a_run_that_says_nothing_of_the_server_is_invalid",
    ),
    "cache-inflated run": (
        "integration/loadtest/test_validity.py",
        "test_a_declared_hit_rate_that_is_not_met_voids_the_run",
    ),
    "another digest served": (
        "integration/loadtest/test_run.py",
        "test_another_artifact_behind_the_endpoint_is_an_error",
    ),
    "another digest in the load report": (HERE, "test_a_report_of_another_artifact_is_refused"),
    "regression inside the noise": (REGRESSION, "test_a_regression_inside_the_noise_is_refused"),
    "leaked held-out rows": (HERE, "test_leaked_heldout_rows_are_refused"),
    "forgotten skill": (HERE, "test_a_forgotten_skill_is_refused"),
    "adapter on the wrong base at run time": (
        "integration/training/test_train.py",
        "test_an_adapter_of_another_base_is_refused",
    ),
    "missing proof": (HERE, "test_a_missing_proof_is_refused"),
    "pickle or remote code": (HERE, "test_a_file_that_runs_code_is_refused"),
}


@pytest.mark.parametrize("sabotage", SABOTAGES)
def test_every_sabotage_has_a_test(sabotage: str) -> None:
    file, name = SABOTAGES[sabotage]
    tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
    assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_the_table_has_at_least_twenty_sabotages() -> None:
    assert len(SABOTAGES) >= 20
    assert len(set(SABOTAGES.values())) == len(SABOTAGES)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> FinishedLine:
    return write_line(tmp_path_factory.mktemp("whole"))


@pytest.fixture
def line(whole: FinishedLine, tmp_path: Path) -> FinishedLine:
    """A copy that a test may damage."""
    shutil.copytree(whole.run.path.parent, tmp_path / "line")
    run = type(whole.run)(
        tmp_path / "line" / "run.yaml",
        whole.run.config,
        tmp_path / "line" / "runs" / whole.run.config.name,
    )
    return FinishedLine(run)


def change_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize(
    ("stage", "file", "gate"),
    [
        ("evaluation-tuned", "predictions.jsonl", "evaluation"),
        ("evaluation-base", "predictions.jsonl", "chain"),
        ("reference", "reference.jsonl", "chain"),
        ("adapter", "adapter_model.safetensors", "chain"),
        ("parity-served", "parity.json", "parity-served"),
        ("loadtest", "report.json", "load"),
    ],
)
def test_a_tampered_artifact_is_refused(
    line: FinishedLine, stage: str, file: str, gate: str
) -> None:
    change_a_byte(line.artifact(stage) / file)
    done = line.release()
    assert done.returncode == 6
    assert f"{file}: {'has no verdict' if file.endswith('.json') else 'sha256'}" in done.stderr
    assert line.judged().gate(gate).outcome is Outcome.FAILED  # type: ignore[union-attr]
    assert line.judged().gate("chain").outcome is Outcome.FAILED  # type: ignore[union-attr]


@pytest.mark.parametrize("stage", ["model", "dataset"])
def test_a_tampered_model_or_dataset_leaves_nothing_to_release(
    line: FinishedLine, stage: str
) -> None:
    file = {"model": "model.safetensors", "dataset": "train.jsonl"}[stage]
    change_a_byte(line.artifact(stage) / file)
    done = line.release("--waive", "chain", "--why", "no")
    assert done.returncode == 3
    assert f"{file}: sha256" in done.stderr
    assert list(line.run.dir.glob("release-*")) == []


@pytest.mark.parametrize(
    ("stage", "gate"),
    [
        ("loadtest", "load"),
        ("parity-served", "parity-served"),
        ("parity-merged", "parity"),
        ("evaluation-report", "evaluation"),
        ("evaluation-served", "evaluation-served"),
    ],
)
def test_a_missing_proof_is_refused(line: FinishedLine, stage: str, gate: str) -> None:
    shutil.rmtree(line.artifact(stage))
    done = line.release()
    assert done.returncode == 6
    assert f"{gate}: The proof is missing: stage {stage}: not made yet." in done.stderr
    assert "from the data to the served model" not in done.stdout
    assert "Try: tuneline up" in done.stderr
    assert [found.name for found in line.judged().failed()] == [gate]


def test_another_configuration_has_no_proof(line: FinishedLine) -> None:
    done = line.release("--set", "loadtest.max_tokens=64")
    assert done.returncode == 6
    assert "stage loadtest: its configuration or an input changed" in done.stderr


def copy_under_the_name_of(other: Path, own: Path) -> None:
    shutil.rmtree(own)
    shutil.copytree(other, own)


@pytest.mark.parametrize(
    ("stage", "gate"), [("loadtest", "load"), ("parity-served", "parity-served")]
)
def test_a_report_of_another_artifact_is_refused(
    line: FinishedLine, tmp_path: Path, stage: str, gate: str
) -> None:
    other = write_line(tmp_path / "other", Answers(weight=1.5))
    copy_under_the_name_of(other.artifact(stage), line.artifact(stage))
    done = line.release()
    assert done.returncode == 6
    assert f"{gate}: " in done.stderr
    assert "which is not of this line" in done.stderr
    failed = {found.name for found in line.judged().failed()}
    assert failed == {"chain", gate}


def test_a_forged_verdict_is_not_deployed(tmp_path: Path) -> None:
    """A release that fails is rewritten to PASS, with a manifest that fits."""
    image = "registry.example.com/tuneline-server:1"
    k8s = {"k8s": {"overlay": "cpu", "image": image, "model_claim": "models"}}
    line = write_line(tmp_path, Answers(parity_noise=0.5), k8s)
    words = ("deploy", "render", str(line.run.path), "--runs-dir", str(line.run.dir.parent))
    assert line.release().returncode == 6
    (release,) = line.run.dir.glob("release-*")
    rewrite(release, "release.json", lambda text: text.replace("failed", "passed"))
    rewrite(release, "release.json", lambda text: text.replace('"FAIL"', '"PASS"'))
    done = tuneline_here(*words, "--out", str(tmp_path / "tree"))
    assert done.returncode == 3, done.stdout
    assert "statement.json: is about another release than release.json" in done.stderr
    assert not (tmp_path / "tree").exists()


def test_leaked_heldout_rows_are_refused(tmp_path: Path) -> None:
    config = {
        "data": {
            "path": "train.jsonl", "heldout_path": "heldout.jsonl",
            "checks": {"leakage": {"action": "warn"}, "near_leakage": {"action": "warn"}},
        }
    }  # fmt: skip
    write_line(tmp_path / "clean")
    folder = tmp_path / "leaked"
    shutil.copytree(tmp_path / "clean", folder, ignore=shutil.ignore_patterns("runs"))
    heldout = (folder / "heldout.jsonl").read_text().split("\n")
    shouted = json.loads(heldout[4])
    shouted["input"] = shouted["input"].upper().replace(" ", "  ")
    with (folder / "train.jsonl").open("a") as file:
        file.write(heldout[0] + "\n" + json.dumps(shouted) + "\n")
    line = write_line(folder, config=config)
    done = line.release()
    assert done.returncode == 6
    assert f"heldout: 2 of {NUM_HELDOUT} held-out prompts are trained on" in done.stderr
    assert "(heldout.jsonl: line 1, 5)" in done.stderr


def test_rows_that_are_almost_held_out_are_named(tmp_path: Path) -> None:
    write_line(tmp_path / "clean")
    folder = tmp_path / "similar"
    shutil.copytree(tmp_path / "clean", folder, ignore=shutil.ignore_patterns("runs"))
    row = json.loads((folder / "heldout.jsonl").read_text().split("\n")[0])
    row["input"] += " Thank you."
    with (folder / "train.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    release = write_line(folder).released()
    gate = read_release(release).gate("heldout")
    assert gate is not None
    said = "1 training row has a prompt that is similar to a held-out prompt (near_leakage)."
    assert said in gate.words
    page = (release / "report.md").read_text("utf-8")
    assert "1 training rows whose prompt is similar to a held-out prompt (kept)" in page


def test_a_forgotten_skill_is_refused(tmp_path: Path) -> None:
    config = {"evaluation": {"metrics": ["exact_match"], "forgetting": True}}
    kept = write_line(tmp_path / "kept", config=config)
    gate = read_release(kept.released()).gate("forgetting")
    assert gate is not None and gate.outcome is Outcome.PASSED
    lost = write_line(tmp_path / "lost", Answers(lost_skill="json"), config)
    done = lost.release()
    assert done.returncode == 6
    assert "forgetting: The tuned model lost a skill: json: forgotten: 100" in done.stderr


def _pickle(model: Path) -> None:
    (model / "weights.dat").write_bytes(b"\x80\x04N.")


def _bin(model: Path) -> None:
    (model / "pytorch_model.bin").write_bytes(b"hello")


def _code(model: Path) -> None:
    (model / "modeling_own.py").write_text("print('hello')")


def _auto_map(model: Path) -> None:
    path = model / "config.json"
    config = {**json.loads(path.read_text()), "auto_map": {"AutoModel": "own.Model"}}
    path.write_text(json.dumps(config))


def _archive(model: Path) -> None:
    import zipfile

    with zipfile.ZipFile(model / "model.pt", "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02.")


@pytest.mark.parametrize(
    ("add", "words"),
    [
        (_pickle, "weights.dat is a pickle"),
        (_bin, "pytorch_model.bin has the name of a pickle"),
        (_code, "modeling_own.py is code"),
        (_auto_map, "config.json names code of its own (auto_map)"),
        (_archive, "model.pt is an archive whose archive/data.pkl has the name of a pickle"),
    ],
)
def test_a_file_that_runs_code_is_refused(
    line: FinishedLine, add: Callable[[Path], None], words: str
) -> None:
    path = line.artifact("reference")
    before = open_artifact(path)
    with new_artifact(
        path.with_name("new"), "reference", config={}, inputs=before.manifest.inputs
    ) as draft:
        shutil.copytree(path, draft.dir, dirs_exist_ok=True)
        (draft.dir / "manifest.json").unlink()
        (draft.dir / "config.json").write_text("{}")
        add(draft.dir)
    shutil.rmtree(path)
    path.with_name("new").rename(path)
    gate = line.judged().gate("safe-files")
    assert gate is not None and gate.outcome is Outcome.FAILED
    assert words in gate.words

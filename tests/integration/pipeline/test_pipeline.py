"""The line as far as it goes without a server, on the shipped model and a part of its data."""

import json
import os
import resource
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.commands import tuneline_here
from tests.integration.pipeline.small_line import (
    EXAMPLES,
    NUM_ROWS,
    command,
    ran,
    stages,
    tuneline,
    write_run,
)
from tests.s3_server import BUCKET, s3_server, s3_store
from tuneline.core.artifact import new_artifact


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose stages up to the merged model's proof are made."""
    path = write_run(tmp_path_factory.mktemp("line"))
    done = tuneline(path, "export")
    assert ran(done) == ["dataset", "adapter", "reference", "model", "parity-merged"]
    assert stages(done)["parity-merged"]["metrics"]["verdict"] == "PASS"
    return path


def test_a_disk_that_fills_up_leaves_no_artifact(
    run: Path, small_disk: Callable[[str], Path]
) -> None:
    disk = small_disk("40k")
    done = subprocess.run(
        [sys.executable, "-m", "tuneline", "train", str(run), "--runs-dir", str(disk / "runs")],
        capture_output=True, text=True, check=False, timeout=200,
    )  # fmt: skip
    assert done.returncode == 4, done.stderr
    assert "the disk is full" in done.stderr
    assert [path.name for path in (disk / "runs" / "small").iterdir() if path.is_dir()] == []


def cpu_seconds_of_children() -> float:
    """Return a time that other tests on the machine do not change much."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_artifacts_in_object_storage_make_a_run_current(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = f"s3://{BUCKET}/runs"
    with s3_server() as endpoint, s3_store(endpoint, monkeypatch) as store:
        done = tuneline_here(
            "push", str(run), "--to", place, "--runs-dir", str(run.parent / "runs")
        )
        assert done.returncode == 0, done.stderr
        manifests = [name for name in store.names() if name.endswith("manifest.json")]
        assert len(manifests) == 5
        elsewhere = ["--runs-dir", str(tmp_path / "runs")]
        done = tuneline_here("pull", str(run), "--from", place, *elsewhere)
        assert done.returncode == 0, done.stderr
        assert len(done.stdout.splitlines()) == 5
    done = tuneline_here("plan", str(run), "--json", *elsewhere)
    states = {entry["stage"]: entry["state"] for entry in json.loads(done.stdout)}
    assert [name for name, state in states.items() if state == "current"] == [
        "dataset", "adapter", "reference", "model", "parity-merged",
    ]  # fmt: skip


def test_the_model_of_a_run_is_published_with_its_card(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "published"
    done = tuneline(run, "push", "--to", str(out))
    assert done.returncode == 0, done.stderr
    made = next(run.parent.glob("runs/small/model-*"))
    assert (out / "manifest.json").read_bytes() == (made / "manifest.json").read_bytes()
    assert (
        json.loads((made / "manifest.json").read_text())["digest"]
        in (out / "README.md").read_text()
    )


def test_each_artifact_is_pushed_while_the_line_runs(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = ["--runs-dir", str(run.parent / "runs")]
    with s3_server() as endpoint, s3_store(endpoint, monkeypatch) as store:
        done = tuneline_here("train", str(run), "--push-to", f"s3://{BUCKET}/runs", *runs)
        assert done.returncode == 0, done.stderr
        pushed = {name.split("/")[2].rpartition("-")[0] for name in store.names()}
        assert pushed == {"dataset", "adapter", "reference"}
        store.take_credentials_after("0")
        done = tuneline_here("train", str(run), "--push-to", f"s3://{BUCKET}/other", *runs)
        assert done.returncode == 5
        assert "the store refuses" in done.stderr


def test_a_second_run_does_nothing_in_two_seconds_of_cpu_time(run: Path) -> None:
    assert ran(tuneline(run, "export")) == []
    times_s = []
    for _ in range(3):
        start_s = cpu_seconds_of_children()
        done = subprocess.run(
            command(run, "export"), capture_output=True, text=True, check=False, timeout=100
        )
        times_s.append(cpu_seconds_of_children() - start_s)
        assert ran(done) == []
    print(f"a run with nothing to do: {min(times_s):.2f} s of CPU time")
    assert 0 < min(times_s) < 2


def test_a_changed_section_runs_only_its_stage_and_later_stages(run: Path) -> None:
    assert ran(tuneline(run, "export", "--set", "export.merge.dtype=bfloat16")) == [
        "model", "parity-merged",
    ]  # fmt: skip
    assert ran(tuneline(run, "export", "--set", "reference.num_prompts=3")) == [
        "reference", "parity-merged",
    ]  # fmt: skip
    # Going back costs nothing: the earlier artifacts are still there.
    assert ran(tuneline(run, "export")) == []
    planned = json.loads(tuneline(run, "plan", "--set", "training.r=8").stdout)
    states = {entry["stage"]: entry["state"] for entry in planned}
    assert states["dataset"] == "current"
    assert states["adapter"] == "stale"
    assert states["model"] == "waiting"
    assert states["evaluation-base"] == "stale"  # it was never asked for


def test_the_same_rows_in_a_touched_file_are_the_same_data(run: Path) -> None:
    data = run.parent / "train.jsonl"
    os.utime(data, (0, 0))
    assert ran(tuneline(run, "export")) == []
    text = data.read_text()
    first, rest = text.split("\n", 1)
    data.write_text(
        json.dumps(json.loads(first), indent=None, separators=(" , ", " : ")) + "\n" + rest
    )
    try:
        # The file has changed and is read again; the rows are the same, so nothing else runs.
        assert ran(tuneline(run, "export")) == ["dataset"]
    finally:
        data.write_text(text)


def test_inspect_and_verify_the_run(run: Path) -> None:
    shown = json.loads(tuneline(run, "inspect").stdout)
    assert set(shown) == {"dataset", "adapter", "reference", "model", "parity-merged"}
    roles = {entry["role"]: entry["digest"] for entry in shown["model"]["inputs"]}
    assert roles["adapter"] == shown["adapter"]["digest"]
    assert tuneline(run, "verify").returncode == 0
    text = json.dumps(shown)
    assert str(run.parent) not in text
    assert str(Path.home()) not in text


def test_forms_are_exported_and_each_is_proven(run: Path) -> None:
    # Hardly trained, this model wavers between two first words, and 8 bits decide otherwise.
    forms = (
        "--set", "export.forms=[torchscript, quantized-int8]",
        "--set", "export.parity.forms={quantized-int8: {min_greedy_agreement: 0.5}}",
    )  # fmt: skip
    done = tuneline(run, "export", *forms)
    # The tolerances of one form leave the proof of the merged model current.
    assert ran(done) == [
        "torchscript", "parity-torchscript", "quantized-int8", "parity-quantized-int8",
    ]  # fmt: skip
    proofs = {name: entry["metrics"] for name, entry in stages(done).items() if "parity" in name}
    assert {name: proof["verdict"] for name, proof in proofs.items()} == {
        "parity-merged": "PASS", "parity-torchscript": "PASS", "parity-quantized-int8": "PASS",
    }  # fmt: skip
    for proof in proofs.values():
        assert proof["num_expected_answers"] == proof["num_prompts"] == 4
        assert proof["reference_noise"] is not None
    exact, rounded = proofs["parity-torchscript"], proofs["parity-quantized-int8"]
    assert 0 <= exact["mean_kl"] < 1e-8 < rounded["mean_kl"]
    assert ran(tuneline(run, "export", *forms)) == []


def test_a_calibrated_form_sees_the_training_rows(run: Path, calibration: Path) -> None:
    forms = (
        "--set", "export.forms=[gptq-int8]",
        "--set", "export.calibration.num_calibration_samples=8",
        "--set", "export.parity.forms={gptq-int8: {min_greedy_agreement: 0.5}}",
    )  # fmt: skip
    done = tuneline(run, "export", *forms)
    assert done.returncode == 0, done.stderr
    made = stages(done)
    assert made["gptq-int8"]["metrics"]["num_samples"] == 8
    manifest = json.loads((Path(made["gptq-int8"]["path"]) / "manifest.json").read_text())
    roles = {entry["role"]: entry["digest"] for entry in manifest["inputs"]}
    assert roles == {"model": made["model"]["digest"], "data": made["dataset"]["digest"]}
    assert made["parity-gptq-int8"]["metrics"]["verdict"] == "PASS"


def test_a_tool_that_is_missing_is_said_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    done = tuneline(write_run(tmp_path), "up", "--set", "export.forms=[awq-w4a16]")
    assert done.returncode == 4
    assert "tuneline export install-calibration" in done.stderr
    assert list(tmp_path.glob("runs/small/adapter-*")) == []


def test_a_form_that_is_not_the_trained_model_exits_with_6(run: Path) -> None:
    forms = ("--set", "export.forms=[pruned]", "--set", "export.prune={sparsity: 0.95}")
    done = tuneline(run, "export", *forms)
    assert done.returncode == 6
    assert "parity-pruned" in done.stderr and "FAIL" in done.stderr
    shown = json.loads(done.stdout)["stages"][-1]
    assert (shown["stage"], shown["metrics"]["verdict"]) == ("parity-pruned", "FAIL")


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        ("export.forms=[onnx-int3]", "export.forms"),
        ("export.forms=[torchscript, torchscript]", "lists a form twice"),
        ("export.forms=[pruned]", "needs the section export.prune"),
    ],
)
def test_forms_that_cannot_be_made_are_refused(run: Path, setting: str, problem: str) -> None:
    done = tuneline(run, "plan", "--set", setting)
    assert done.returncode == 2
    assert problem in done.stderr


def test_a_tampered_artifact_is_found(run: Path) -> None:
    path = Path(stages(tuneline(run, "export"))["model"]["path"]) / "config.json"
    original = path.read_bytes()
    path.write_bytes(original.replace(b"{", b"[", 1))
    try:
        done = tuneline(run, "verify")
        assert done.returncode == 3
        assert "config.json: sha256" in done.stderr
        path.write_bytes(original + b" ")
        done = tuneline(run, "export")
        assert done.returncode == 3
        assert "expected" in done.stderr
    finally:
        path.write_bytes(original)
    assert tuneline(run, "verify").returncode == 0


@pytest.mark.parametrize(
    ("stage", "file", "setting"),
    [
        ("dataset", "train.jsonl", "training.r=4"),
        ("dataset", "heldout.jsonl", "reference.num_prompts=2"),
        ("adapter", "adapter_model.safetensors", "export.merge.dtype=float16"),
    ],
)
def test_nothing_is_built_on_a_tampered_artifact(
    run: Path, stage: str, file: str, setting: str
) -> None:
    made = stages(tuneline(run, "export"))
    path = Path(made[stage]["path"]) / file
    original = path.read_bytes()
    path.write_bytes(original[:-2] + bytes([original[-2] ^ 1]) + original[-1:])
    before = sorted((run.parent / "runs" / "small").iterdir())
    try:
        done = tuneline(run, "export", "--set", setting)
        assert done.returncode == 3, done.stderr
        assert f"{file}: sha256" in done.stderr
        assert f"rm -r {path.parent}" in done.stderr
        document = json.loads(done.stdout)
        assert document["stages"] and document["error"]["type"] == "TamperedError"
    finally:
        path.write_bytes(original)
    assert sorted((run.parent / "runs" / "small").iterdir()) == before


def test_a_lost_manifest_says_what_to_remove(run: Path) -> None:
    manifest = Path(stages(tuneline(run, "export"))["reference"]["path"]) / "manifest.json"
    original = manifest.read_text()
    try:
        for broken in (None, "", "{"):
            manifest.unlink(missing_ok=True)
            if broken is not None:
                manifest.write_text(broken)
            done = tuneline(run, "export")
            assert done.returncode == 3, repr(broken)
            assert f"rm -r {manifest.parent}" in done.stderr, repr(broken)
            assert ": : " not in done.stderr, repr(broken)
    finally:
        manifest.write_text(original)


def test_what_a_late_stage_lacks_stops_the_line_at_once(run: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = tuneline(run, "up", "--set", f"serving.port={port}", "--set", "training.r=2")
    assert done.returncode == 5
    assert f"port {port} on 127.0.0.1 is taken" in done.stderr
    workload = ("loadtest.workload.source=sharegpt", "loadtest.workload.path=nope.json")
    for verb in ("up", "check"):
        done = tuneline(run, verb, *(word for value in workload for word in ("--set", value)))
        assert done.returncode == 2, done.stderr
        assert "loadtest.workload.path: no such file" in done.stderr


def test_a_tampered_model_is_neither_served_nor_deployed(run: Path, tmp_path: Path) -> None:
    model = Path(stages(tuneline(run, "export"))["model"]["path"])
    weights = model / "model.safetensors"
    original = weights.read_bytes()
    weights.write_bytes(original[:-1] + bytes([original[-1] ^ 1]))
    try:
        for verb in (["serve"], ["deploy", "render", "--out", str(tmp_path / "manifests")]):
            done = tuneline_here(*verb, str(run), "--runs-dir", str(run.parent / "runs"))
            assert done.returncode == 3, done.stderr
            assert "model.safetensors: sha256" in done.stderr
        assert list(tmp_path.iterdir()) == []
    finally:
        weights.write_bytes(original)


def test_a_tampered_manifest_is_reported(run: Path) -> None:
    manifest = Path(stages(tuneline(run, "export"))["model"]["path"]) / "manifest.json"
    original = manifest.read_text()
    document = json.loads(original)
    document["files"][0]["sha256"] = "0" * 64
    manifest.write_text(json.dumps(document))
    try:
        done = tuneline(run, "verify")
        assert done.returncode == 3
        assert "differs from its manifest" in done.stderr
    finally:
        manifest.write_text(original)
    assert tuneline(run, "verify").returncode == 0


@pytest.mark.parametrize(
    ("verdict", "state"),
    [("PASS", "current"), ("FAIL", "current"), ("INCONCLUSIVE", "stale"), ("INVALID", "stale")],
)
def test_a_measurement_that_says_nothing_is_made_again(run: Path, verdict: str, state: str) -> None:
    def planned() -> dict[str, str]:
        entries = json.loads(tuneline(run, "plan").stdout)
        (load,) = [entry for entry in entries if entry["stage"] == "loadtest"]
        found: dict[str, str] = load
        return found

    path = Path(planned()["path"])
    with new_artifact(path, "load-report", config={}, inputs=[]) as draft:
        (draft.dir / "report.json").write_text(json.dumps({"verdict": verdict}))
    try:
        assert planned()["state"] == state
    finally:
        shutil.rmtree(path)


def test_check_reads_everything_and_trains_nothing(run: Path) -> None:
    found = json.loads(tuneline(run, "check").stdout)
    assert found["data train.jsonl"] == f"{NUM_ROWS} rows"
    assert "<|im_end|>" in found["stop tokens"]
    base = shutil.copytree(EXAMPLES / "tiny-base", run.parent / "cut")
    weights = base / "model.safetensors"
    os.truncate(weights, 1000)
    cut = tuneline(run, "check", "--set", f"base_model={base}")
    shutil.rmtree(base)
    assert cut.returncode == 3, cut.stderr
    assert "model.safetensors" in cut.stderr
    bad = tuneline(run, "check", "--set", "training.max_length=20")
    assert bad.returncode == 2
    assert "max_length" in bad.stderr

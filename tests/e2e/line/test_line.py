"""The shipped example from its data file to a load-tested endpoint: everything in it is real."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest

from tests.e2e.line.conftest import EXAMPLES, QUICK, RUN, Serving, tuneline, tuneline_judging
from tests.integration.k8s.cluster.api_server import api_server
from tuneline.core.artifact import new_artifact, open_artifact, verify_artifact
from tuneline.core.parity import Parity

pytestmark = pytest.mark.timeout(1800)  # the first test's set-up is the whole line


def metrics(stages: dict[str, dict[str, Any]], name: str) -> dict[str, Any]:
    found: dict[str, Any] = stages[name]["metrics"]
    return found


def test_the_base_cannot_do_the_task_and_the_tuned_and_served_model_can(
    stages: dict[str, dict[str, Any]],
) -> None:
    base, tuned, served = (
        metrics(stages, f"evaluation-{name}") for name in ("base", "tuned", "served")
    )
    assert base["num_rows"] == tuned["num_rows"] == served["num_rows"] >= 200
    assert base["exact_match"] <= 0.05
    assert tuned["exact_match"] >= 0.92
    assert served["exact_match"] >= 0.92
    assert tuned["stopped"] == 1.0


def test_merged_and_served_answers_equal_the_trained_models(
    stages: dict[str, dict[str, Any]],
) -> None:
    for name in ("parity-merged", "parity-served"):
        parity = Parity.model_validate_json(
            (Path(stages[name]["path"]) / "parity.json").read_text()
        )
        assert parity.num_prompts == 64
        assert parity.num_prompts_with_equal_ids == 64
        assert parity.num_equal_answers == 64, parity.first_divergences
        assert parity.verdict == "PASS"


def test_the_load_report_is_bound_to_the_artifact(stages: dict[str, dict[str, Any]]) -> None:
    report = open_artifact(Path(stages["loadtest"]["path"]), kind="load-report")
    digests = {entry.role: entry.digest for entry in report.manifest.inputs}
    assert digests["model"] == stages["model"]["digest"]
    document = json.loads((report.path / "report.json").read_text())
    assert len(document["scenarios"]) == 2
    assert report.manifest.metrics["verdict"].upper() == "PASS"


def test_every_artifact_is_whole_and_names_no_path_of_this_machine(
    stages: dict[str, dict[str, Any]], runs: Path
) -> None:
    assert len(stages) == 11
    for entry in stages.values():
        artifact = open_artifact(Path(entry["path"]))
        verify_artifact(artifact)
        for file in artifact.path.rglob("*.json*"):
            text = file.read_text()
            assert str(runs) not in text, file
            assert str(EXAMPLES.parent) not in text, file
        pickles = {".bin", ".pt", ".pth", ".pkl", ".pickle"}
        assert [f for f in artifact.path.rglob("*") if f.suffix in pickles] == []


def test_a_second_up_does_nothing_quickly(stages: dict[str, dict[str, Any]], runs: Path) -> None:
    # CPU time, since other tests run at the same time.
    start = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = tuneline(runs, "up", "--json", *QUICK)
    end = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert [e["stage"] for e in json.loads(done.stdout)["stages"] if e["ran"]] == []
    cpu_s = end.ru_utime + end.ru_stime - start.ru_utime - start.ru_stime
    print(f"a second up: {cpu_s:.2f} s of CPU time")
    assert 0 < cpu_s < 2


def test_the_report_of_the_line_is_small_and_quick(
    stages: dict[str, dict[str, Any]], runs: Path
) -> None:
    target = runs / "report.html"
    tuneline(runs, "report", "--html", str(target), *QUICK)  # reads the disk for the first time
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = tuneline(runs, "report", "--html", str(target), *QUICK)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    page = target.read_text(encoding="utf-8")
    assert target.stat().st_size < 1_500_000
    # CPU time: other work on this machine is not under test.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 3
    assert stages
    for entry in stages.values():
        assert Path(entry["path"]).name in page
    assert page.count('role="img"') >= 9  # curves, differences, ladder, load
    assert "<title>NOT RELEASED · support-tickets · Tuneline release report</title>" in page


def test_deploy_render_names_the_model(
    stages: dict[str, dict[str, Any]], runs: Path, tmp_path: Path
) -> None:
    rendered = subprocess.run(
        [
            sys.executable, "-m", "tuneline", "deploy", "render", str(RUN),
            "--runs-dir", str(runs), "--out", str(tmp_path / "manifests"), "--allow-unreleased",
        ],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert rendered.returncode == 0, rendered.stderr
    digest = stages["model"]["digest"].removeprefix("sha256:")[:12]
    manifests = [p for p in (tmp_path / "manifests").rglob("*.yaml") if digest in p.read_text()]
    assert manifests


def test_the_line_is_released_signed_and_verified_within_ten_seconds(
    stages: dict[str, dict[str, Any]], runs: Path, tmp_path: Path
) -> None:
    key, public = tmp_path / "key.pem", tmp_path / "key.pub"
    generate = ["openssl", "ecparam", "-genkey", "-name", "prime256v1", "-noout", "-out", str(key)]
    subprocess.run(generate, check=True, timeout=60)
    publish = ["openssl", "ec", "-in", str(key), "-pubout", "-out", str(public)]
    subprocess.run(publish, check=True, capture_output=True, timeout=60)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = tuneline(runs, "release", "--json", "--sign-key", str(key), *QUICK)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    # CPU time, since other tests run at the same time.
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(f"a release: {cpu_s:.2f} s of CPU time")
    assert 0 < cpu_s < 10
    found = json.loads(done.stdout)
    assert found["release"]["verdict"] == "PASS"
    outcomes = {gate["name"]: gate["outcome"] for gate in found["release"]["gates"]}
    assert len(outcomes) == 12
    not_asked = {"forgetting", "regression", "speed"}
    assert {name for name, outcome in outcomes.items() if outcome != "passed"} == not_asked
    assert found["release"]["model"]["digest"] == stages["model"]["digest"]
    model = Path(shutil.copytree(stages["model"]["path"], tmp_path / "model"))
    verify = [
        sys.executable, "-m", "tuneline", "verify", found["path"], "--key", str(public),
        "--model", str(model),
    ]  # fmt: skip
    assert subprocess.run(verify, check=False, timeout=120).returncode == 0
    with (model / "model.safetensors").open("r+b") as weights:
        weights.seek(-1, os.SEEK_END)
        weights.write(b"\x7f")
    refused = subprocess.run(verify, capture_output=True, text=True, check=False, timeout=120)
    assert refused.returncode == 3
    assert "model.safetensors: sha256" in refused.stderr


def test_the_released_line_is_rolled_out_and_proven(
    stages: dict[str, dict[str, Any]],
    serving: Serving,
    runs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The pod behind the port-forward is vLLM with the middleware."""
    monkeypatch.setenv("VLLM_API_KEY", "none")
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    monkeypatch.setenv("KUBECACHEDIR", str(tmp_path / "cache"))
    image = ("--set", "k8s.image=registry.example.com/server:1", "--set", "k8s.model_claim=models")
    with api_server() as cluster:
        cluster.backend_port = urlsplit(serving.url).port or 0
        cluster.write_kubeconfig(tmp_path / "kubeconfig")
        done = tuneline(runs, "deploy apply", "--yes", "--json", *image, *QUICK)
        server = cluster.store.find("deployments", "support-tickets-model-server")
    assert done.returncode == 0, done.stderr
    assert "32 of 32 answers equal the reference's" in done.stderr
    assert json.loads(done.stdout)["model_digest"] == stages["model"]["digest"]
    annotations = server["metadata"]["annotations"]
    assert annotations["tuneline/model-digest"] == stages["model"]["digest"]


def test_serve_and_call_with_the_openai_client(
    stages: dict[str, dict[str, Any]], serving: Serving, runs: Path
) -> None:
    client = openai.OpenAI(base_url=serving.url, api_key="none")
    model = client.models.list().data[0].id
    assert model == serving.model == "support-tickets"
    row = json.loads((RUN.parent / "heldout.jsonl").read_text().splitlines()[0])
    answer = client.chat.completions.create(
        model=model,
        temperature=0,
        messages=[{"role": "user", "content": f"{row['instruction']}\n\n{row['input']}"}],
    )
    assert (answer.choices[0].message.content or "").startswith("Category: ")
    asked = subprocess.run(
        [
            sys.executable, "-m", "tuneline", "chat", "--url", serving.url, "--model", model,
            "--message", f"{row['instruction']}\n\n{row['input']}", "--temperature", "0",
            "--json",
        ],
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert asked.returncode == 0, asked.stderr
    assert json.loads(asked.stdout)["answer"] == answer.choices[0].message.content
    scored = tuneline(
        runs, "evaluate", "--url", serving.url, "--model", model, "--json",
        "--set", "evaluation.num_rows=8", "--out", str(runs / "scored"),
    )  # fmt: skip
    assert scored.returncode == 0, scored.stderr
    assert json.loads(scored.stdout)["metrics"]["num_rows"] == 8
    reference = stages["reference"]["path"]
    proved = subprocess.run(
        [
            sys.executable, "-m", "tuneline", "prove", "--reference", reference,
            "--candidate", serving.url, "--model", model, "--out", str(runs / "proved"),
        ],
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert proved.returncode == 0, proved.stderr


def test_an_slo_that_is_not_met_exits_with_6(
    stages: dict[str, dict[str, Any]], serving: Serving, runs: Path
) -> None:
    # Far fewer answers than a PASS needs show a limit that no answer keeps.
    missed = (
        *QUICK, "--set", "loadtest.slo.e2e_s.p50=0.0001",
        "--set", "loadtest.scenarios.0.num_requests=24",
        "--set", "loadtest.scenarios.1.num_requests=24",
    )  # fmt: skip
    done = tuneline_judging(
        runs, "loadtest", *missed, "--url", serving.url, "--model", serving.model,
        "--out", str(runs / "missed"),
    )  # fmt: skip
    assert done.returncode == 6, done.stderr
    assert "FAIL" in done.stderr
    planned = json.loads(tuneline(runs, "plan", "--json", *missed).stdout)
    (entry,) = [entry for entry in planned if entry["state"] != "current"]
    assert entry["stage"] == "loadtest"
    with new_artifact(Path(entry["path"]), "load-report", config={}, inputs=[]) as draft:
        shutil.copy(runs / "missed" / "report.json", draft.dir)
        draft.metrics.update(open_artifact(runs / "missed").manifest.metrics)
    again = tuneline(runs, "loadtest", *missed)
    assert again.returncode == 6, "a verdict on disk still counts"
    assert "FAIL" in again.stderr


def test_recorded_requests_are_rows_and_a_load_test(serving: Serving, runs: Path) -> None:
    client = openai.OpenAI(base_url=serving.url, api_key="none")
    rows = [json.loads(line) for line in (RUN.parent / "heldout.jsonl").read_text().splitlines()]
    asked = [f"{row['instruction']}\n\n{row['input']}" for row in rows[:6]]
    said, ids = [], []
    for number, question in enumerate(asked):
        messages: Any = [{"role": "user", "content": question}]
        options: Any = {"model": serving.model, "messages": messages, "temperature": 0}
        client.chat.completions.create(**options, max_tokens=1)  # nobody asks to keep it
        if number % 2:
            stream = client.chat.completions.create(**options, store=True, stream=True)
            chunks = list(stream)
            ids.append(chunks[0].id)
            said.append("".join(c.choices[0].delta.content or "" for c in chunks if c.choices))
        else:
            answer = client.chat.completions.create(**options, store=True)
            ids.append(answer.id)
            said.append(answer.choices[0].message.content or "")
    client.post("/feedback", body={"id": ids[0], "label": True}, cast_to=object)
    client.post("/feedback", body={"id": ids[1], "answer": "Category: other"}, cast_to=object)

    def collect(*options: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        out = runs / f"{len(list(runs.iterdir()))}.jsonl"
        words = ["data", "collect", str(runs / "recorded"), "--out", str(out), "--json", *options]
        done = subprocess.run(
            [sys.executable, "-m", "tuneline", *words],
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout), [json.loads(line) for line in out.read_text().splitlines()]

    counts, kept = collect()
    assert (counts["num_read"], counts["num_written"], counts["num_used"]) == (6, 6, 2)
    said[1] = "Category: other"
    assert [[m["content"] for m in row["messages"]] for row in kept] == [
        list(pair) for pair in zip(asked, said, strict=True)
    ]
    assert collect("--rated")[0]["dropped"] == {"not rated": 4}
    assert collect("--to", "preference")[0]["num_written"] == 1

    scenario = {"name": "again", "arrival": "trace", "trace_speed": 20, "num_requests": 5}
    replayed = tuneline(
        runs, "loadtest", *QUICK, "--url", serving.url, "--model", serving.model,
        "--out", str(runs / "replayed"), "--set", f"loadtest.scenarios={json.dumps([scenario])}",
        "--set", "loadtest.workload.source=recorded", "--set", "loadtest.num_warmup_requests=1",
        "--set", f"loadtest.workload.path={runs / 'recorded'}",
    )  # fmt: skip
    # Five requests are too few for a verdict of PASS.
    assert replayed.returncode in (6, 7, 8), replayed.stderr
    report = json.loads((runs / "replayed" / "report.json").read_text())
    (found,) = report["scenarios"]
    assert (found["requests"]["succeeded"], found["requests"]["failed"]) == (5, 0)


def test_sigterm_ends_the_server_and_its_command(serving: Serving) -> None:
    serving.process.send_signal(signal.SIGTERM)
    _, stderr = serving.process.communicate(timeout=120)
    assert serving.process.returncode == 0, stderr
    with pytest.raises(ProcessLookupError):
        os.kill(serving.process.pid, 0)

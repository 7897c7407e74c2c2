"""`tuneline check` runs the data checks, shows their findings and keeps the dataset."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.commands import tuneline_here
from tests.unit.training.data.checks.made import clean_rows
from training.data.row import Row
from tuneline.core.errors import ConfigError, DataError, NotAnArtifactError
from tuneline.pipeline.check import check_run
from tuneline.pipeline.plan import all_current, estimate_run, made_elsewhere, plan
from tuneline.pipeline.run_config import Run, load_run
from tuneline.pipeline.up import lock_run

LEAKED, SIMILAR = 3, 7
"""Rows of `clean_rows` of which one is held out too, and one is held out with another number."""


def _write(path: Path, rows: list[tuple[str, str]]) -> None:
    lines = [json.dumps({"prompt": prompt, "completion": answer}) for prompt, answer in rows]
    path.write_text("\n".join(lines) + "\n")


def _texts(row: Row) -> tuple[str, str]:
    return str(row.prompt[0]["content"]), row.answer


def _run(folder: Path, training: dict[str, Any] | None = None, **data: Any) -> Run:
    rows = [_texts(row) for row in clean_rows(60)]
    similar = rows[SIMILAR][0].replace("Ticket ", "Ticket 1"), rows[SIMILAR][1]
    _write(folder / "train.jsonl", rows[:50])
    _write(folder / "heldout.jsonl", [*rows[50:], rows[LEAKED], similar])
    values = {
        "name": "checked",
        "data": {"path": "train.jsonl", "heldout_path": "heldout.jsonl", **data},
        "training": {"max_length": 128, **(training or {})},
    }
    (folder / "run.yaml").write_text(json.dumps(values))
    return load_run(folder / "run.yaml", runs_dir=folder / "runs")


def test_check_names_leaked_rows_and_keeps_the_dataset(tmp_path: Path) -> None:
    run = _run(tmp_path)
    checked = check_run(run)
    assert checked.found["data checks"] == (
        "49 training rows, 12 held-out rows; dropped: 1 prompt is held out"
    )
    assert [(f.check, f.action, f.num_rows) for f in checked.findings] == [
        ("leakage", "fix", 1), ("near_leakage", "warn", 1),
    ]  # fmt: skip
    leaked, similar = checked.findings
    assert leaked.example.startswith(f"train.jsonl: line {LEAKED + 1}: prompt: ")
    assert similar.example.startswith(f"train.jsonl: line {SIMILAR + 1}: prompt: similar prompts")
    assert similar.what.endswith("; kept")

    entry = plan(run, ("dataset",))[0]
    assert entry.state == "current" and entry.path is not None
    made = (entry.path / "manifest.json").stat().st_mtime_ns
    assert check_run(run).findings == checked.findings
    assert (entry.path / "manifest.json").stat().st_mtime_ns == made


def test_artifacts_in_the_runs_of_another_folder_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = _run(tmp_path)
    made = tmp_path / "runs" / "checked" / "dataset-0123456789"
    made.mkdir(parents=True)
    (made / "manifest.json").write_text("{}")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(NotAnArtifactError, match=r"Try: --runs-dir ../runs"):
        all_current(load_run(Path("../run.yaml")))
    assert made_elsewhere(run) is None


def test_an_edited_run_says_which_stage_is_stale(tmp_path: Path) -> None:
    run = _run(tmp_path)
    check_run(run)
    assert [artifact.kind for artifact in all_current(run).values()] == ["dataset"]
    edited = _run(tmp_path, seed=7)
    with pytest.raises(NotAnArtifactError, match=r"dataset is stale \(its configuration or an inp"):
        all_current(edited)


LONG = "Answer with one word of the ticket, and say nothing about these rules. " * 3


def test_check_says_what_rows_of_a_batch_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = {"max_length": 256, "gradient_checkpointing": False}
    found = check_run(_run(tmp_path, training=training, system_prompt=LONG)).found
    assert re.fullmatch(
        r"all rows start with the same \d\d tokens, which a batch computes once: about \d\d% of "
        "the tokens are saved",
        found["shared starts"],
    )
    assert re.match(r"\d+ MiB \(weights .* for 8 rows of 256 tokens; ", found["training memory"])
    again = _run(
        tmp_path, training={**training, "gradient_checkpointing": True}, system_prompt=LONG
    )
    monkeypatch.setattr("training.estimates.sharing.NUM_RENDERED", 8)
    said = check_run(again).found["shared starts"]
    assert re.fullmatch(
        "starts that rows share are computed for each row: training.gradient_checkpointing: true; "
        r"they are about \d\d% of the tokens, in a sample of 8 rows",
        said,
    )
    assert said in estimate_run(again)[1]


def test_a_plan_reads_what_rows_share_only_if_memory_is_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = {"max_length": 256, "gradient_checkpointing": False}
    run = _run(tmp_path, training=training, system_prompt=LONG)
    found = check_run(run).found
    ample, _ = estimate_run(run)
    assert ample is not None and ample["sharing"] is None
    monkeypatch.setattr("training.estimates.report.free_memory_bytes", lambda: 2**20)
    tight, lines = estimate_run(run)
    assert tight is not None and found["shared starts"] in lines
    assert tight["sharing"]["saved"] > 0.3
    assert tight["training"]["activations"] < ample["training"]["activations"]
    (warning,) = check_run(run).warnings
    assert warning == f"training does not fit; try: {tight['change']}"


def test_a_plan_of_a_checked_run_loads_no_torch(tmp_path: Path) -> None:
    run = _run(tmp_path)
    check_run(run)
    code = (
        "import sys; from tuneline.cli import main\n"
        "try: main()\nfinally: print('torch' in sys.modules, file=sys.stderr)"
    )
    arguments = ["plan", str(run.path), "--runs-dir", str(tmp_path / "runs")]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
    )
    assert "current  dataset" in done.stdout
    assert done.stderr.splitlines()[-1] == "False"


@pytest.mark.parametrize(
    ("launch", "variables"),
    [
        ({"processes": 1, "nodes": 2}, {}),
        (None, {"RANK": "1", "WORLD_SIZE": "2"}),
    ],
)
def test_any_process_checks_the_data_of_a_run_of_several(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    launch: dict[str, int] | None,
    variables: dict[str, str],
) -> None:
    for name in ("RANK", "WORLD_SIZE", "NODE_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    run = _run(tmp_path, training={"launch": launch})
    assert "data checks" in check_run(run).found
    assert plan(run, ("dataset",))[0].state == "current"


def test_the_check_waits_for_no_lock(tmp_path: Path) -> None:
    run = _run(tmp_path)
    with lock_run(run):
        checked = check_run(run)
    assert checked.found["data train.jsonl"] == "50 rows"
    assert "data checks" not in checked.found
    (warning,) = checked.warnings
    assert warning == (
        f"data checks: did not run: {run.dir}: another tuneline works in this directory"
    )
    whole = check_run(run)
    with lock_run(run):  # the dataset is current now
        assert check_run(run).findings == whole.findings
    assert whole.warnings == [] and "data checks" in whole.found


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    run = _run(tmp_path)
    left, kept = (run.dir / name for name in (".rows-killed", ".adapter-0123456789.work"))
    for folder in (left, kept):
        folder.mkdir(parents=True)
        (folder / "rows.jsonl").write_text("{}")
    with lock_run(run):
        assert (left.exists(), kept.exists()) == (False, True)


def test_a_folder_that_cannot_be_written_leaves_the_other_checks(tmp_path: Path) -> None:
    run = _run(tmp_path)
    run.dir.parent.write_text("a file in place of the folder")
    arguments = ("check", run.path, "--runs-dir", run.dir.parent)
    lines = tuneline_here(*map(str, arguments)).stdout.splitlines()
    assert "ok    data train.jsonl: 50 rows" in lines
    assert lines[-1].startswith(f"Next: tuneline up {run.path}")
    assert lines[-2].startswith(f"warn  data checks: did not run: {run.dir}: cannot be written: ")


def test_a_finding_that_refuses_ends_the_check(tmp_path: Path) -> None:
    run = _run(tmp_path, checks={"near_leakage": "refuse"})
    with pytest.raises(DataError, match=f"train.jsonl: line {SIMILAR + 1}: prompt: similar") as e:
        check_run(run)
    assert e.value.exit_code == 2
    assert "data.checks.near_leakage: fix" in str(e.value.hint)
    assert not list(run.dir.glob("dataset-*"))


@pytest.mark.parametrize(("by", "num_rows"), [("drop", 49), ("cut_left", 50)])
def test_long_rows_that_the_intake_fixes_are_not_refused(
    tmp_path: Path, by: str, num_rows: int
) -> None:
    run = _run(tmp_path, checks={"length": {"action": "fix", "by": by}, "leakage": "ignore"})
    rows = [_texts(row) for row in clean_rows(50)]
    long = "Please look at the printer on the third floor. " * 40
    _write(tmp_path / "train.jsonl", [*rows[:49], (long, rows[49][1])])
    checked = check_run(run)
    assert checked.found["data train.jsonl"] == f"{num_rows} rows"
    assert checked.found["data checks"].startswith(f"{num_rows} training rows")
    assert "length" in [finding.check for finding in checked.findings]


def test_the_command_prints_findings_as_lines_and_as_json(tmp_path: Path) -> None:
    run = _run(tmp_path)
    arguments = ("check", run.path, "--runs-dir", run.dir.parent)
    lines = tuneline_here(*map(str, arguments)).stdout.splitlines()
    assert "ok    data train.jsonl: 50 rows" in lines
    (place,) = [n for n, line in enumerate(lines) if line.startswith("warn  near_leakage: 1 ")]
    assert lines[place + 1].startswith(f"      train.jsonl: line {SIMILAR + 1}: ")
    document = json.loads(tuneline_here(*map(str, arguments), "--json").stdout)
    assert [finding["check"] for finding in document["findings"]] == ["leakage", "near_leakage"]


@pytest.mark.parametrize(
    ("sections", "key"),
    [
        ({"evaluation": {"judge": {"url": "http://u:pw@host/v1", "model": "m"}}}, "judge.url"),
        ({"data": {"sources": [{"path": "s3://AKIA:p/w@b/rows"}]}}, "data.sources.0.path"),
        ({"serving": {"extra_args": {"otlp_traces_endpoint": "http://u:pw@h:4317"}}}, "endpoint"),
        ({"k8s": {"model_fetch": {"command": ["sh", "-c", "cp s3://A:pw@b/m /m"]}}}, "command.2"),
        ({"k8s": {"model_fetch": {"command": ["curl", "https://b/m?sig=pw@"]}}}, "command.1"),
    ],
)
def test_a_password_in_a_url_of_run_yaml_is_refused_and_not_shown(
    sections: dict[str, Any], key: str, tmp_path: Path
) -> None:
    """A release, its report and its manifests repeat the values of run.yaml."""
    path = tmp_path / "run.yaml"
    path.write_text(json.dumps({"name": "x", "data": {"path": "r.jsonl"}} | sections))
    with pytest.raises(ConfigError, match=rf"{key}: a URL has a password") as error:
        load_run(path)
    assert "pw@" not in str(error.value) and "p/w" not in str(error.value)
    path.write_text('{"name": "x", "data": {"path": "r.jsonl", "system_prompt": "db://u:pw@h"}}')
    assert load_run(path).config.data.system_prompt == "db://u:pw@h"

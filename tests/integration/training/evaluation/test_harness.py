"""A task of lm-evaluation-harness against a served model, without a network."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.commands import tuneline_here
from tests.integration.training.conftest import Line
from tests.integration.training.evaluation.model_server import serve_answers
from training.evaluation.answerer import Answerer, Reply
from training.evaluation.harness import ONLY_THE_FOLDERS_TASKS, _command, task_names
from tuneline.core.endpoint import Endpoint

TASK = """
task: tiny_colors
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_target: answer
doc_to_choice: choices
metric_list:
  - metric: acc
"""
CHOICES = ["red", "blue", "green"]
QUESTION = "Color:"


def _answerless() -> Answerer:
    def answer(*_: object, **__: object) -> list[Reply]:
        raise AssertionError("the task compares likelihoods only")

    return Answerer(answer, lambda _rows: [], "never asked")


def _best_choice(line: Line) -> int:
    """Return the most likely choice by transformers."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = AutoModelForCausalLM.from_pretrained(line.base.path, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, str(line.adapter.path)).eval()
    tokenizer = AutoTokenizer.from_pretrained(line.adapter.path)
    start = tokenizer.encode(QUESTION, add_special_tokens=False)
    sums = []
    for choice in CHOICES:
        ids = tokenizer.encode(f"{QUESTION} {choice}", add_special_tokens=False)
        with torch.inference_mode():
            scores = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        sums.append(sum(float(scores[i - 1, ids[i]]) for i in range(len(start), len(ids))))
    return sums.index(max(sums))


def test_a_task_without_a_network_gives_the_accuracy_of_transformers(
    line: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    best = _best_choice(line)
    wrong = (best + 1) % len(CHOICES)
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    rows = [{"question": QUESTION, "choices": CHOICES, "answer": n} for n in (best, wrong, best)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tasks / "colors.yaml").write_text(TASK.format(data=tmp_path / "rows.jsonl"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    with serve_answers(_answerless(), line.base, line.adapter.path) as url:
        done = tuneline_here(
            "evaluate", "--url", url, "--model", "tuned", "--tokenizer", str(line.adapter.path),
            "--tasks", "tiny_colors", "--include-path", str(tasks),
            "--out", str(tmp_path / "out"), "--json",
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    task = json.loads(done.stdout)["metrics"]["tasks"]["tiny_colors"]
    assert task["acc,none"] == pytest.approx(2 / 3)


def test_the_tasks_of_a_folder_are_those_of_its_files(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    for name, text in {
        "one.yaml": TASK.format(data="rows.jsonl"),
        "inner/two.yaml": "task: two\nprocess_docs: !function utils.process\n",
        "group.yaml": "group: three\ntask: [arc_easy]\n",
        "both.yaml": "group: four\ntask: four\n",
        "list.yaml": "- task: five\n",
        "broken.yaml": "task: six\n  : [",
        "notes.txt": "task: seven\n",
    }.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "bytes.yaml").write_bytes(b"task: \xff\n")
    assert task_names(tmp_path) == {"tiny_colors", "two"}


@pytest.mark.parametrize(
    ("tasks", "has_folder", "program"),
    [
        (["two"], True, ["-c", ONLY_THE_FOLDERS_TASKS]),
        (["two", "arc_easy"], True, ["-m", "lm_eval"]),
        (["two"], False, ["-m", "lm_eval"]),
    ],
    ids=["its own", "its own and the harness's", "no folder"],
)
def test_only_a_folder_with_all_tasks_stands_in_for_the_harness_s(
    tmp_path: Path, tasks: list[str], has_folder: bool, program: list[str]
) -> None:
    (tmp_path / "two.yaml").write_text("task: two\n")
    endpoint = Endpoint("http://127.0.0.1:1/v1", "m")
    folder = tmp_path if has_folder else None
    assert _command(endpoint, tmp_path, tasks, folder, None, "out")[1:4] == ["-P", *program]


def test_tasks_need_a_server_and_its_tokenizer() -> None:
    done = tuneline_here("evaluate", "--model", "m", "--tasks", "a", "--out", "o")
    assert done.returncode == 2
    assert "--url is required here" in done.stderr
    done = tuneline_here(
        "evaluate", "--url", "http://127.0.0.1:1/v1", "--model", "m", "--tasks", "a", "--out", "o"
    )
    assert done.returncode == 2
    assert "--tokenizer is required here" in done.stderr

"""Every metric gives the same figures for a model here and for the same model behind a URL."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.commands import tuneline_here
from tests.integration.training.conftest import Line
from tests.integration.training.evaluation.model_server import serve_answers
from training.config import EvaluationConfig, JudgeConfig
from training.evaluation.answerer import Answerer
from training.evaluation.evaluate import evaluate_endpoint, evaluate_model
from training.evaluation.local import local_answerer
from tuneline.core.endpoint import Endpoint

METRIC = "def length(row):\n    return len(row['answer'])\n"


@pytest.fixture(scope="module")
def answerer(line: Line) -> Answerer:
    return local_answerer(line.base, line.adapter)


@pytest.fixture(scope="module")
def server(line: Line, answerer: Answerer) -> Iterator[Endpoint]:
    with serve_answers(answerer, line.base, line.adapter.path) as url:
        yield Endpoint(url, "tuned")


def test_every_metric_is_alike_here_and_behind_a_url(
    line: Line, server: Endpoint, tmp_path: Path
) -> None:
    (tmp_path / "metric.py").write_text(METRIC)
    (tmp_path / "schema.json").write_text('{"type": "object"}')
    config = EvaluationConfig(
        max_new_tokens=24,
        fields="lines",
        metrics=("exact_match", "fields", "chrf", "rouge_l", "nats", "json_schema", "python",
                 "judge"),
        json_schema=str(tmp_path / "schema.json"),
        python=f"{tmp_path}/metric.py:length",
        judge=JudgeConfig(url=server.url, model="judge", num_rows=4),
    )  # fmt: skip
    found = []
    for who in ("here", "served"):
        if who == "here":
            made = evaluate_model(config, line.dataset, line.base, line.adapter, tmp_path / who)
        else:
            made = evaluate_endpoint(
                config, line.dataset, server, tmp_path / who, tokenizer_folder=line.adapter.path
            )
        found.append(json.loads((made.path / "evaluation.json").read_text())["metrics"])
    here, served = found
    assert list(here) == list(served) == list(config.metrics or ())
    for name in here:
        assert here[name]["num_rows"] == served[name]["num_rows"] > 0
        assert here[name]["value"] == pytest.approx(served[name]["value"], abs=1e-4), name
    # The adapter answers every row correctly, so the expected answer is likely.
    assert here["exact_match"]["value"] == 1.0
    assert 0 < here["nats"]["value"] < 0.1


def test_losses_equal_those_of_transformers(line: Line, answerer: Answerer) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from training.data.prepare import dataset_rows
    from tuneline.core.dataset import HELDOUT_FILE

    rows = dataset_rows(line.dataset, HELDOUT_FILE, 3)
    base = AutoModelForCausalLM.from_pretrained(line.base.path, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, str(line.adapter.path)).eval()
    tokenizer = AutoTokenizer.from_pretrained(line.adapter.path)
    losses = answerer.losses(rows)
    assert len(losses) == 3
    for row, loss in zip(rows, losses, strict=True):
        text = f"<|im_start|>user\n{row.prompt[0]['content']}<|im_end|>\n<|im_start|>assistant\n"
        prompt = tokenizer.encode(text, add_special_tokens=False)
        ids = prompt + tokenizer.encode(f"{row.answer}<|im_end|>", add_special_tokens=False)
        labels = [-100] * len(prompt) + ids[len(prompt) :]
        with torch.inference_mode():
            mean = float(model(input_ids=torch.tensor([ids]), labels=torch.tensor([labels])).loss)
        assert loss.num_tokens == len(ids) - len(prompt)
        assert loss.nats == pytest.approx(mean * loss.num_tokens, abs=1e-4)


def test_a_server_without_prompt_losses_is_said_to_have_none(
    line: Line, answerer: Answerer, tmp_path: Path
) -> None:
    config = EvaluationConfig(max_new_tokens=24, metrics=("nats",), num_rows=2)
    with serve_answers(answerer, line.base, line.adapter.path, losses=False) as url:
        made = evaluate_endpoint(
            config, line.dataset, Endpoint(url, "m"), tmp_path / "e",
            tokenizer_folder=line.adapter.path,
        )  # fmt: skip
        without = evaluate_endpoint(config, line.dataset, Endpoint(url, "m"), tmp_path / "f")
    notes = [
        json.loads((e.path / "evaluation.json").read_text())["metrics"]["nats"]["note"]
        for e in (made, without)
    ]
    assert notes[0].startswith("absent: the server gives no log-probabilities of prompt tokens")
    assert notes[1] == "absent: the served model's tokenizer is not known; give --tokenizer"
    assert made.manifest.metrics["metrics"]["nats"]["value"] is None


def test_a_base_is_compared_with_an_adapter_by_one_command(line: Line, tmp_path: Path) -> None:
    rows = (line.dataset.path / "heldout.jsonl").read_text().split("\n")[:6]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows) + "\n")
    command = (
        "evaluate", "--model", str(line.base.path), "--adapter", str(line.adapter.path),
        "--against", str(line.base.path), "--data", str(tmp_path / "rows.jsonl"),
        "--set", "evaluation.max_new_tokens=24", "--out", str(tmp_path / "out"), "--json",
    )  # fmt: skip
    done = tuneline_here(*command)
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    assert report["metrics"]["num_rows"] == 6
    assert {path.name for path in (tmp_path / "out").iterdir() if path.is_dir()} == {
        "base", "tuned", "report",
    }  # fmt: skip
    match = report["metrics"]["metrics"]["exact_match"]
    assert match["tuned"] > match["base"] == 0
    page = (tmp_path / "out" / "report" / "mismatches.html").read_text()
    assert json.loads(rows[5])["prompt"][0]["content"].split("\n")[-1] in page
    # After a kill before the report, both evaluations are taken as they are.
    shutil.rmtree(tmp_path / "out" / "report")
    again = tuneline_here(*command)
    assert again.stderr.count("is the same evaluation, and is taken as it is") == 2
    assert json.loads(again.stdout)["metrics"] == report["metrics"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--data", "x.jsonl", "--out", "o"), "--model is required here"),
        (("--model", "m", "--out", "o"), "--data is required here"),
        (("--model", "m", "--data", "x.jsonl"), "--out is required here"),
        (("--model", "m", "--data", "x", "--out", "o", "--set", "training.r=1"),
         "--set training.r=1: an evaluation without a run has the section evaluation only"),
        (("--model", "m", "--data", "x", "--out", "o", "--tokenizer", "t"),
         "--tokenizer: has no meaning without --url"),
        (("--url", "http://127.0.0.1:1/v1", "--model", "m", "--data", "x", "--out", "o",
          "--adapter", "a"), "--adapter: has no meaning with --url"),
        (("--url", "http://127.0.0.1:1/v1", "--model", "m", "--data", "none.jsonl", "--out", "o"),
         "error: --data: no such file: none.jsonl"),
    ],
)  # fmt: skip
def test_options_that_do_not_go_together_are_refused(
    options: tuple[str, ...], message: str
) -> None:
    done = tuneline_here("evaluate", *options)
    assert done.returncode == 2
    assert message in done.stderr


def test_a_wrong_base_is_found_before_the_first_model_answers(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    done = tuneline_here(
        "evaluate", "--model", "tiny-base", "--data", str(tmp_path / "rows.jsonl"),
        "--against", str(tmp_path / "nowhere"), "--out", str(tmp_path / "out"),
    )  # fmt: skip
    assert done.returncode == 4
    assert "no such folder" in done.stderr
    assert not (tmp_path / "out").exists()

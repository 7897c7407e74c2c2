"""The line of a reward model: trained, merged, served by real vLLM, proven and load-tested."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from tests.commands import tuneline_here
from tuneline.models.source import embedded_base

RUN = Path(__file__).resolve().parents[3] / "examples" / "preferences" / "run.yaml"
NUM_PAIRS = 80
SETS = {
    "training.method": "{type: reward}", "training.max_steps": "4",
    "serving.routes": "[pooling, classify]", "loadtest.max_client_lag_s": "0.5",
    "loadtest.num_warmup_requests": "0",
    "loadtest.scenarios": f"[{{name: busy, concurrency: 4, num_requests: {2 * NUM_PAIRS}}}]",
}  # fmt: skip


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The options of commands on a line that is up."""
    runs_dir = tmp_path_factory.mktemp("runs")
    sets = [word for name, value in SETS.items() for word in ("--set", f"{name}={value}")]
    found = [str(RUN), "--runs-dir", str(runs_dir), "--json", *sets]
    done = tuneline_here("up", *found)
    assert done.returncode == 0, done.stderr
    return found


def read(options: list[str], stage: str, file: str) -> str:
    (folder,) = (Path(options[2]) / "preferences").glob(f"{stage}-*")
    return (folder / file).read_text()


def test_the_served_scores_are_those_of_the_trained_reward_model(options: list[str]) -> None:
    report = json.loads(read(options, "parity-served", "rewards.json"))
    assert report["verdict"] == "PASS"
    assert report["num_pairs"] == NUM_PAIRS and len(report["rewards"]) == 2 * NUM_PAIRS
    # Its sigmoid would differ by more than the scores differ from one another.
    assert 0 < report["max_relative_difference"] < 2e-3
    assert len(set(report["rewards"])) > 12
    said = tuneline_here("prove", *(option for option in options if option != "--json"))
    assert said.returncode == 0, said.stderr
    within = f"PASS, scores within {report['max_relative_difference']:.1g} standard deviations"
    assert f"Is it the trained model?\n  {within}" in said.stdout


def test_the_load_test_asks_for_the_scores_of_the_heldout_answers(options: list[str]) -> None:
    """The server counts the tokens of what the load test sent; transformers renders the rows."""
    report = json.loads(read(options, "loadtest", "report.json"))
    assert (report["verdict"], report["workload"]["route"]) == ("PASS", "pooling")
    (scenario,) = report["scenarios"]
    assert scenario["requests"]["succeeded"] == 2 * NUM_PAIRS, scenario["errors"]
    tokenizer = AutoTokenizer.from_pretrained(embedded_base())
    rows = RUN.with_name("heldout.jsonl").read_text().splitlines()
    rendered = []
    for row in map(json.loads, rows):
        for answer in (row["chosen"], row["rejected"]):
            chat = [{"role": "user", "content": row["prompt"]},
                    {"role": "assistant", "content": answer}]  # fmt: skip
            rendered.append(tokenizer.apply_chat_template(chat, return_dict=False))
    assert len(rendered) == 2 * NUM_PAIRS
    assert scenario["tokens"]["num_prompt_tokens"] == sum(map(len, rendered))
    # The scores that are proven are those of the same tokens: `messages` gives the trained score.
    pairs = read(options, "evaluation-preferences", "preferences.jsonl").splitlines()
    assert [ids for pair in pairs for ids in json.loads(pair)["token_ids"]] == rendered


def test_the_release_has_the_load_that_the_endpoint_holds(options: list[str]) -> None:
    done = tuneline_here("release", *options)
    folder = Path(json.loads(done.stdout)["path"])
    release: dict[str, Any] = json.loads((folder / "release.json").read_text())
    assert {one["name"]: one["outcome"] for one in release["gates"]}["load"] == "passed"
    page = (folder / "report.md").read_text().partition("## Load test")[2]
    assert "End-to-end" in page and "TTFT" not in page.partition("\n## ")[0]

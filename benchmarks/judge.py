"""Compare the example's base and tuned answers by a judge behind a real vLLM server.

    .venv/bin/python benchmarks/judge.py --run runs/support-tickets --out /tmp/judge

`--run` is the folder of a finished `tuneline up examples/support-tickets/run.yaml`. No judge of
this size can be had, so one is trained: the embedded base learns, by the judge's own questions on
training rows, to prefer the expected answer to the base's answer or to another row's answer. vLLM
serves it, and `tuneline evaluate` asks it about held-out rows. The result is a JSON document on
stdout: the verdicts, and how often they agree with exact match where one answer only is right.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

from training.config import EvaluationConfig, JudgeConfig
from training.evaluation.answerer import Question
from training.evaluation.evaluate import read_predictions
from training.evaluation.local import local_answerer
from training.evaluation.metrics.judge import judge_pairs, judge_question
from training.evaluation.report.report import report_evaluations
from tuneline.core.artifact import open_artifact
from tuneline.core.environment import hardware_facts
from tuneline.models.source import resolve_model

NUM_ASKED = 160
"""Training rows of the judge; each gives two questions."""
MODEL = "judge"
RUN = """
name: judge
base_model: tiny-base
data: {path: questions.jsonl, heldout_fraction: 0.1}
training:
  learning_rate: 3.0e-3
  num_train_epochs: 6
  per_device_train_batch_size: 8
  gradient_accumulation_steps: 1
  max_length: 1024
reference: {num_prompts: 1, max_new_tokens: 12}
serving: {dtype: float32, enforce_eager: true, cpu_kvcache_space_gib: 1}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    out = given.out
    out.mkdir(parents=True)
    (dataset,) = given.run.glob("dataset-*")
    write_questions(dataset / "train.jsonl", out / "questions.jsonl")
    (out / "run.yaml").write_text(RUN, encoding="utf-8")
    tuneline("export", "merge", out / "run.yaml", "--runs-dir", out / "runs")
    command = tuneline_command("serve", out / "run.yaml", "--runs-dir", out / "runs", "--json")
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            print(json.dumps(measure(given.run, out, address(server)), indent=2))
        finally:
            server.terminate()


def write_questions(rows: Path, out: Path) -> None:
    """Write questions to the judge with their verdicts, as rows of a training file."""
    texts = rows.read_text(encoding="utf-8").splitlines()[:NUM_ASKED]
    read = [json.loads(text) for text in texts]
    answers = [row["completion"][0]["content"] for row in read]
    answerer = local_answerer(resolve_model("tiny-base"), None)
    plain = answerer.answer([Question(tuple(row["prompt"])) for row in read], 64)
    draw, asked = random.Random(0), JudgeConfig(url="http://127.0.0.1/v1", model=MODEL)
    lines = []
    for index, row in enumerate(read):
        others = [answer for answer in answers if answer != answers[index]]
        worse = plain[index].text if index % 4 else draw.choice(others)
        for swap, verdict in ((False, "[[A]]"), (True, "[[B]]")):
            question = judge_question(asked, (row["prompt"], answers[index], worse), swap)
            lines.append(json.dumps({"prompt": question, "completion": verdict}) + "\n")
    out.write_text("".join(lines), encoding="utf-8")


def measure(run: Path, out: Path, ready: dict[str, Any]) -> dict[str, Any]:
    """Let the served judge compare the evaluations of the run."""
    judge = JudgeConfig(url=ready["url"], model=ready["model"], num_rows=100, max_new_tokens=16)
    of_base, of_tuned = (
        open_artifact(next(run.glob(f"evaluation-{who}-*"))) for who in ("base", "tuned")
    )
    config = EvaluationConfig(judge=judge)
    report = report_evaluations(config, of_base, of_tuned, out / "report")
    base, tuned = (read_predictions(one)[:100] for one in (of_base, of_tuned))
    pairs = [(b.prompt, t.answer, b.answer) for b, t in zip(base, tuned, strict=True)]
    values, _ = judge_pairs(judge, pairs)
    decided = [
        value == float(t.correct)
        for value, b, t in zip(values, base, tuned, strict=True)
        if b.correct != t.correct
    ]
    against = [(t.prompt, t.expected, t.answer) for t in tuned if not t.correct]
    wrong, _ = judge_pairs(judge, against)
    return {
        "hardware": hardware_facts(),
        "judge": report.manifest.metrics["judge"],
        "num_rows_where_one_is_right": len(decided),
        "agreement_with_exact_match": sum(decided) / len(decided),
        "wrong_answers_of_the_tuned_model": len(against),
        "expected_preferred": sum(value == 1.0 for value in wrong),
    }


def address(server: subprocess.Popen[str]) -> dict[str, Any]:
    """Return the server's document, which is printed when it is ready."""
    assert server.stdout is not None
    text = ""
    for line in server.stdout:
        text += line
        if line.rstrip() == "}":
            document: dict[str, Any] = json.loads(text)
            return document
    raise SystemExit(f"the server ended: {text}")


def tuneline(*words: str | Path) -> None:
    subprocess.run(tuneline_command(*words), check=True, stdout=subprocess.DEVNULL)


def tuneline_command(*words: str | Path) -> list[str]:
    return [sys.executable, "-m", "tuneline", *map(str, words)]


if __name__ == "__main__":
    main()

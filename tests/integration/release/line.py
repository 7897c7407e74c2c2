"""A finished line without training: artifacts with real contents, under the keys of a real plan.

Every payload is written by the type or the function that the line itself uses. Only the answers of
the models are made up, so that a test decides what a gate finds. `load_report.json` is a report of
the example on vLLM.
"""

import json
import shutil
import struct
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

from loadtest.report.schema import SCHEMA_VERSION, LoadReport
from serving import engine_settings
from serving.rewards import compare_rewards
from tests.commands import tuneline_here
from training import dataset_rows, prepare_dataset, suite_input
from training.evaluation.forgetting.answers import answers_text
from training.evaluation.forgetting.items import suite_items
from training.evaluation.forgetting.judging import differing, judge_forgetting
from training.evaluation.prediction import Prediction, predict
from training.evaluation.preferences import preference_figures
from training.evaluation.report.comparison import compare_predictions
from training.evaluation.scoring import score
from tuneline.core.artifact import Artifact, Draft, Input, new_artifact, open_artifact
from tuneline.core.dataset import HELDOUT_FILE
from tuneline.core.parity import PARITY_FILE, compare
from tuneline.core.reference import REFERENCE_FILE, Continuation, write_continuations
from tuneline.core.release import Release, read_release
from tuneline.core.tolerances import Tolerances
from tuneline.models.source import ModelSource, embedded_base
from tuneline.pipeline.keys import stage_keys
from tuneline.pipeline.run_config import Run, load_run, resolve_base
from tuneline.pipeline.server import measured_serving, served, served_stage
from tuneline.pipeline.stage import Made, Stage
from tuneline.pipeline.stages import stages

EXAMPLE = Path(__file__).parents[3] / "examples" / "support-tickets"
LOAD_REPORT = Path(__file__).with_name("load_report.json")
NUM_TRAIN, NUM_HELDOUT = 60, 100
CONFIG: dict[str, Any] = {
    "name": "support-tickets",
    "base_model": "tiny-base",
    "data": {"path": "train.jsonl", "heldout_path": "heldout.jsonl"},
    "evaluation": {"metrics": ["exact_match"]},
    "loadtest": {
        "max_tokens": 48,
        "scenarios": [{"name": "closed-4", "concurrency": 4, "num_requests": 150}],
        "max_client_lag_s": 0.25,
        "slo": {
            "ttft_s": {"p90": 1.0}, "tpot_s": {"p90": 0.1}, "e2e_s": {"p90": 5.0},
            "max_error_rate": 0.0,
        },
    },
}  # fmt: skip


@dataclass(frozen=True)
class Answers:
    """The models' answers, by the index of a held-out row.

    Attributes:
        base_right: Rows that the base model answers correctly.
        tuned_wrong: Rows that the tuned model does not.
        served_wrong: Rows that the server does not.
        served_reward: The score of the first answer that the server of a reward model gives.
        parity_noise: Nats by which the served log-probabilities differ.
        tuned_value: The exact match that the tuned model's scores state, if not that of its rows.
        lost_skill: The skill of the forgetting suite that the tuned model lost.
        has_skills: Whether the base model has the suite's skills.
        weight: The model's only weight.
        load: Changes the load report.
    """

    base_right: Collection[int] = ()
    tuned_wrong: Collection[int] = (3, 41)
    served_wrong: Collection[int] = (3, 41)
    served_reward: float = 2.0
    parity_noise: float = 0.0
    tuned_value: float | None = None
    lost_skill: str | None = None
    has_skills: bool = True
    weight: float = 1.0
    load: Callable[[dict[str, Any]], None] = field(default=lambda _: None)


@dataclass(frozen=True)
class FinishedLine:
    """A run whose stages are all current."""

    run: Run

    def artifact(self, stage: str) -> Path:
        """Return the directory of a stage's artifact."""
        (found,) = self.run.dir.glob(f"{stage}-" + "?" * 10)
        return found

    def release(self, *options: str) -> CompletedProcess[str]:
        """Run `tuneline release`."""
        return tuneline_here(
            "release", str(self.run.path), "--runs-dir", str(self.run.dir.parent), *options
        )

    def released(self, *options: str) -> Path:
        """Run `tuneline release`, and return the directory of a release that passes."""
        done = self.release("--json", *options)
        assert done.returncode == 0, done.stderr
        return Path(json.loads(done.stdout)["path"])

    def waiving(self, gate: str, why: str) -> tuple[str, ...]:
        """Return the options that waive every reason of a failing gate."""
        found = self.judged().gate(gate)
        assert found is not None and found.reasons
        return tuple(
            part
            for reason in found.reasons
            for part in ("--waive", f"{gate}:{reason}", "--why", why)
        )

    def judged(self, *options: str) -> Release:
        """Run `tuneline release`, and return the release whatever its verdict."""
        done = self.release("--json", *options)
        return read_release(Path(json.loads(done.stdout)["path"]))


def verify(target: Path, *options: object) -> CompletedProcess[str]:
    """Run `tuneline verify`."""
    return tuneline_here("verify", str(target), *map(str, options))


def rewrite(
    folder: Path, name: str, edit: Callable[[str], str | None], kind: str = "release"
) -> None:
    """Change a file and make the manifest fit, as somebody would who knows how.

    An edit that returns None removes the file.
    """
    before = open_artifact(folder).manifest
    path = folder / name
    text = edit(path.read_text() if path.exists() else "")
    if text is None:
        path.unlink()
    else:
        path.write_text(text)
    moved = Path(shutil.move(folder, folder.with_name("moved")))
    (moved / "manifest.json").unlink()
    with new_artifact(folder, kind, config=before.config, inputs=before.inputs) as draft:
        shutil.copytree(moved, draft.dir, dirs_exist_ok=True)
        draft.metrics.update(before.metrics)
    shutil.rmtree(moved)


def write_line(
    folder: Path, answers: Answers = Answers(), config: dict[str, Any] | None = None
) -> FinishedLine:
    """Write a run.yaml with its data, and an artifact for every stage."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, count in (("train.jsonl", NUM_TRAIN), ("heldout.jsonl", NUM_HELDOUT)):
        if not (folder / name).exists():
            lines = (EXAMPLE / name).read_text(encoding="utf-8").split("\n")
            (folder / name).write_text("\n".join(lines[:count]) + "\n", encoding="utf-8")
    if not (folder / "README.md").exists():
        (folder / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n", encoding="utf-8")
    values = {**CONFIG, **(config or {})}
    # JSON is YAML.
    (folder / "run.yaml").write_text(json.dumps(values, indent=1), encoding="utf-8")
    run = load_run(folder / "run.yaml", (), folder / "runs")
    base = resolve_base(run, download=False)
    made: Made = {}
    for stage in stages(run):
        out = run.dir / f"{stage.name}-{stage_keys(stage, run, base, made)[0]}"
        whole = out.exists()  # a line that is written again has other settings in some stages
        made[stage.name] = (
            open_artifact(out) if whole else _write(stage, run, base, made, answers, out)
        )
    return FinishedLine(run)


REWARD: dict[str, Any] = {
    "training": {"method": {"type": "reward"}},
    "serving": {"routes": ["pooling"]},
    "evaluation": {},
    "loadtest": {
        **{name: value for name, value in CONFIG["loadtest"].items() if name != "max_tokens"},
        "slo": {"e2e_s": {"p90": 5.0}, "max_error_rate": 0.0},
    },
}


def reward_line(
    folder: Path, answers: Answers = Answers(), **config: dict[str, Any]
) -> FinishedLine:
    """Write the line of a reward model whose scores are served."""
    folder.mkdir(exist_ok=True)
    for name in ("train.jsonl", "heldout.jsonl"):
        shutil.copy(EXAMPLE.parent / "preferences" / name, folder)
    return write_line(folder, answers, {**REWARD, **config})


def _write(
    stage: Stage, run: Run, base: ModelSource, made: Made, answers: Answers, out: Path
) -> Artifact:
    if stage.name == "dataset":
        return prepare_dataset(run.config.data, relative_to=run.path.parent, out=out)
    inputs = _inputs(stage, run, base, made)
    config: dict[str, Any] = {}
    if stage.kind == "adapter":
        config = run.config.training.model_dump(mode="json")
    if stage.kind == "reference":
        config = run.config.reference.model_dump(mode="json")
    if stage.kind == "parity":
        own = run.config.serving.parity.tolerances if stage.name == "parity-served" else None
        config = {"tolerances": (own or Tolerances()).model_dump()}
    with new_artifact(out, stage.kind, config=config, inputs=inputs) as draft:
        WRITERS[stage.kind](draft, stage, run, made, answers)
    return open_artifact(out)


def _inputs(stage: Stage, run: Run, base: ModelSource, made: Made) -> list[Input]:
    own = [made[name].as_input(name) for name in stage.needs]
    of_server = stage.name in ("parity-served", "evaluation-served", "loadtest")
    if of_server:
        first = [] if stage.name == "loadtest" else own[:1]
        return [*first, *served(run, base, made).inputs]
    if stage.kind == "forgetting":
        return [suite_input(), base.as_input("base"), *own[1:]]
    if stage.kind == "adapter":
        return [*own, *stage.inputs(run, base)]
    with_base = stage.kind in ("evaluation", "reference", "model")
    return [*own, *([base.as_input("base")] if with_base else [])]


def _adapter(draft: Draft, *_: Any) -> None:
    (draft.dir / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    (draft.dir / "adapter_model.safetensors").write_bytes(safetensors(2.0))
    points = [
        {"step": 0, "eval_loss": 8.5},
        {"step": 6, "loss": 3.25, "learning_rate": 1e-3},
        {"step": 12, "loss": 0.5, "learning_rate": 1e-4, "eval_loss": 0.25},
    ]
    (draft.dir / "loss.jsonl").write_text("".join(f"{json.dumps(one)}\n" for one in points))
    draft.metrics.update(
        num_steps=12, num_trained_tokens=4000, trained_tokens_per_s=130.0, wall_s=30.5,
        eval_loss_before=8.5, eval_loss=0.25,
    )  # fmt: skip


def _model(draft: Draft, _stage: Stage, _run: Run, _made: Made, answers: Answers) -> None:
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (draft.dir / name).write_bytes((embedded_base() / name).read_bytes())
    (draft.dir / "model.safetensors").write_bytes(safetensors(answers.weight))


def safetensors(value: float) -> bytes:
    """Return a file with one tensor of one number."""
    header = json.dumps({"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    return struct.pack("<Q", len(header)) + header + struct.pack("<f", value)


def _evaluation(draft: Draft, stage: Stage, run: Run, made: Made, answers: Answers) -> None:
    rows = dataset_rows(made["dataset"], HELDOUT_FILE)
    right = {
        "evaluation-base": set(answers.base_right),
        "evaluation-tuned": set(range(len(rows))) - set(answers.tuned_wrong),
        "evaluation-served": set(range(len(rows))) - set(answers.served_wrong),
    }[stage.name]
    found = [
        predict(row, row.answer if index in right else "I do not know.", "stop")
        for index, row in enumerate(rows)
    ]
    predictions, scores = score(found, run.config.evaluation)
    _lines(draft.dir / "predictions.jsonl", predictions)
    document = scores.model_dump(mode="json")
    if stage.name == "evaluation-tuned" and answers.tuned_value is not None:
        document["metrics"]["exact_match"]["value"] = answers.tuned_value
    (draft.dir / "evaluation.json").write_text(json.dumps(document), encoding="utf-8")


def _evaluation_report(draft: Draft, _stage: Stage, _run: Run, made: Made, _: Answers) -> None:
    base, tuned = (
        [Prediction.model_validate_json(line) for line in _read_lines(made[name])]
        for name in ("evaluation-base", "evaluation-tuned")
    )
    text = compare_predictions(base, tuned).model_dump_json()
    (draft.dir / "comparison.json").write_text(text, encoding="utf-8")


def _forgetting(draft: Draft, _stage: Stage, _run: Run, _made: Made, answers: Answers) -> None:
    for name, text in forgetting_files(answers.lost_skill, has_skills=answers.has_skills).items():
        (draft.dir / name).write_text(text, encoding="utf-8")


def forgetting_files(lost_skill: str | None, *, has_skills: bool = True) -> dict[str, str]:
    """Return the files of the forgetting suite of a tuned model that lost one skill, or none.

    Args:
        has_skills: Whether the base has the skills; without them both models fail every item.
    """
    items = suite_items()
    assert lost_skill is None or any(item.skill == lost_skill for item in items)
    base = [has_skills] * len(items)
    tuned = [has_skills and item.skill != lost_skill for item in items]
    replies = {
        who: [
            item.reply(item.right if passes else item.wrong)
            for item, passes in zip(items, passed, strict=True)
        ]
        for who, passed in (("base", base), ("tuned", tuned))
    }
    places = differing(base, tuned)
    again = {who: {i: found[i] for i in places} for who, found in replies.items()}
    passed = {"base": dict.fromkeys(places, True), "tuned": dict.fromkeys(places, False)}
    return {
        "forgetting.json": judge_forgetting(items, base, tuned, passed).model_dump_json(),
        "answers.jsonl": answers_text(items, replies, again),
    }


def _reference(draft: Draft, *_: Any) -> None:
    write_continuations(draft.dir / REFERENCE_FILE, continuations(0.0))


def continuations(noise: float) -> list[Continuation]:
    """Return two answers whose log-probabilities are off by `noise` nats."""
    return [
        Continuation(
            messages=[{"role": "user", "content": f"question {number}"}],
            prompt_token_ids=[1, 2, number], token_ids=[7, 8, 9], finish_reason="stop",
            logprobs=[-0.1 - noise] * 3, top_logprobs=[{7: -0.1 - noise}] * 3, text="answer",
        )
        for number in range(2)
    ]  # fmt: skip


def _parity(draft: Draft, stage: Stage, _run: Run, _made: Made, answers: Answers) -> None:
    form = stage.name.removeprefix("parity-")
    noise = answers.parity_noise if form == "served" else 0.0
    found = compare(form, continuations(0.0), continuations(noise), Tolerances())
    (draft.dir / PARITY_FILE).write_text(found.model_dump_json(), encoding="utf-8")


def _preferences(draft: Draft, *_: Any) -> None:
    rows = [
        {"line": n, "rewards": [2.0, 1.0 - n], "token_ids": [[1, n], [2, n]]} for n in range(40)
    ]
    figures = preference_figures([(2.0, 1.0 - n) for n in range(40)])
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (draft.dir / "preferences.jsonl").write_text(lines)
    (draft.dir / "preferences.json").write_text(json.dumps(figures))
    draft.metrics.update(figures, dtype="float32")


def _rewards(draft: Draft, _stage: Stage, _run: Run, made: Made, answers: Answers) -> None:
    lines = (made["evaluation-preferences"].path / "preferences.jsonl").read_text().splitlines()
    expected = [reward for line in lines for reward in json.loads(line)["rewards"]]
    found = [answers.served_reward, *expected[1:]]
    report = compare_rewards(expected, found, 2e-3)
    draft.metrics.update(report)
    (draft.dir / "rewards.json").write_text(json.dumps({**report, "rewards": found}))


def _load_report(draft: Draft, _stage: Stage, run: Run, made: Made, answers: Answers) -> None:
    document = json.loads(LOAD_REPORT.read_text(encoding="utf-8"))
    assert document["schema_version"] == SCHEMA_VERSION
    what = served(run, resolve_base(run, download=False), made)
    short = made[served_stage(run.config)].digest.removeprefix("sha256:")[:12]
    document["inputs"] = [entry.model_dump() for entry in what.inputs]
    name = f"{run.config.name}@{short}"
    document["endpoint"].update(
        artifact_name=name,
        artifact_short_digest=short,
        engine=engine_settings(measured_serving(run)),
    )
    for scenario in document["scenarios"]:
        # A line of scores has fewer objectives than the report on vLLM.
        scenario["slo"] = run.config.loadtest.slo.model_dump(mode="json")
        metrics = run.config.loadtest.slo.latency
        scenario["objectives"] = [
            one
            for one in scenario["objectives"]
            if one["name"].partition(".")[0] in (*metrics, "max_error_rate")
        ]
    answers.load(document)
    report = LoadReport.model_validate(document)
    (draft.dir / "report.json").write_text(report.model_dump_json(), encoding="utf-8")


WRITERS: dict[str, Callable[..., None]] = {
    "adapter": _adapter,
    "evaluation": _evaluation,
    "evaluation-report": _evaluation_report,
    "forgetting": _forgetting,
    "load-report": _load_report,
    "model": _model,
    "parity": _parity,
    "preferences": _preferences,
    "reference": _reference,
    "reward-parity": _rewards,
}


def _lines(path: Path, rows: Sequence[Prediction]) -> None:
    path.write_text("".join(row.model_dump_json() + "\n" for row in rows), encoding="utf-8")


def _read_lines(artifact: Artifact) -> list[str]:
    text = (artifact.path / "predictions.jsonl").read_text(encoding="utf-8")
    return text.removesuffix("\n").split("\n")

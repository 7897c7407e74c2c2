"""Every method trains exactly the tokens that are served, and learns."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from export import merge_adapter, prove_model
from export.config import MergeConfig, ParityConfig
from tests.integration.training.methods.datasets import KINDS, REWARD_FILE, write_dataset
from tests.integration.training.tiny import make_base
from tests.unit.training.evaluation.metrics.judge_server import judge, prefer_longer
from training.config import EvaluationConfig, JudgeConfig, ReferenceConfig, TrainingConfig
from training.estimates.probe import probe_training
from training.evaluation.decoding import greedy_answers
from training.evaluation.preferences import evaluate_preferences
from training.loop.arguments import trainer_arguments
from training.methods import find_method
from training.model import load_base
from training.reference import build_reference
from training.train import train_adapter
from tuneline.core.artifact import Artifact
from tuneline.core.dataset import HELDOUT_FILE
from tuneline.core.reference import read_reference
from tuneline.models.source import ModelSource, resolve_model
from tuneline.models.tokenizer import load_tokenizer

KIND_OF = {
    "dpo": "preference", "orpo": "preference", "reward": "preference", "kto": "label",
    "grpo": "prompt",
}  # fmt: skip
OPTIONS: dict[str, dict[str, Any]] = {
    "dpo": {}, "orpo": {}, "kto": {}, "reward": {},
    "grpo": {"reward_funcs": "rewards.py:lower", "num_generations": 4, "max_completion_length": 8},
}  # fmt: skip
COMMON = {
    "num_train_epochs": 2, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 1,
    "learning_rate": 3e-3, "logging_steps": 1, "save_steps": 4, "gradient_checkpointing": False,
    "max_length": 128, "report_to": [],
}  # fmt: skip
METHODS = sorted(OPTIONS)


def _config(method: str, **changes: Any) -> TrainingConfig:
    options = {"type": method, **OPTIONS[method], **changes.pop("options", {})}
    if method == "grpo":  # four prompts for each step
        changes = {"per_device_train_batch_size": 16, **changes}
    return TrainingConfig.model_validate({**COMMON, "method": options, **changes})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch

    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("methods")
    make_base(folder / "base")
    (folder / "rewards.py").write_text(REWARD_FILE)
    return folder


@pytest.fixture(scope="module")
def base(folder: Path) -> ModelSource:
    return resolve_model("base", relative_to=folder)


@pytest.fixture(scope="module")
def datasets(folder: Path) -> dict[str, Artifact]:
    # 25 rows in batches of 4: the last batch of an epoch has one row.
    return {kind: write_dataset(folder / kind, kind, 25, 9) for kind in KINDS}


@pytest.mark.parametrize("method", METHODS)
def test_a_trained_model_is_evaluated_as_the_trainer_measured_it(
    method: str,
    folder: Path,
    base: ModelSource,
    datasets: dict[str, Artifact],
    tmp_path: Path,
) -> None:
    """`loop/test_killed.py` trains each method again, with kills."""
    config, dataset = _config(method), datasets[KIND_OF[method]]
    straight = train_adapter(config, dataset, base, tmp_path / "a", relative_to=folder)
    num_steps = straight.manifest.metrics["num_steps"]
    assert num_steps > 9
    weights = load_file(tmp_path / "a" / "adapter_model.safetensors")
    assert any(bool(t.any()) for name, t in weights.items() if "lora_B" in name)
    names = {path.name for path in (tmp_path / "a").iterdir()}
    assert "ref" not in names and "adapter_config.json" in names
    figures = [name for name in straight.manifest.metrics if name.endswith("_before")]
    assert figures
    assert straight.manifest.metrics["num_trained_tokens"] > 0
    _compare_with_base(config, dataset, base, straight, tmp_path / "c", folder)
    if method != "reward":
        _prove_merged(dataset, base, straight, tmp_path)


def test_a_probe_measures_rows_whose_reference_is_computed_before(
    folder: Path, base: ModelSource, datasets: dict[str, Artifact]
) -> None:
    config = _config("dpo", options={"precompute_ref_log_probs": True})
    found = probe_training(config, datasets["preference"], base, relative_to=folder)
    assert found["num_probed_steps"] == 10 and found["heldout_s"] > 0


WHOLE = {"finetuning_type": "full", "learning_rate": 1e-3}


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("dpo", WHOLE),
        ("kto", WHOLE),
        ("grpo", {**WHOLE, "options": {"beta": 0.1}}),
        ("orpo", {"load_in_4bit": True}),
    ],
)
def test_a_whole_model_and_a_4bit_base_learn_preferences_and_are_proven(
    method: str,
    changes: dict[str, Any],
    folder: Path,
    base: ModelSource,
    datasets: dict[str, Artifact],
    tmp_path: Path,
) -> None:
    config, dataset = _config(method, max_steps=3, **changes), datasets[KIND_OF[method]]
    trained = train_adapter(config, dataset, base, tmp_path / "a", relative_to=folder)
    assert trained.kind == ("model" if "finetuning_type" in changes else "adapter")
    assert all(row["max_change"] > 0 for row in trained.manifest.metrics["trained"])
    _prove_merged(dataset, base, trained, tmp_path)


def _prove_merged(dataset: Artifact, base: ModelSource, trained: Artifact, folder: Path) -> None:
    asked = ReferenceConfig(num_prompts=2, max_new_tokens=6)
    reference = build_reference(asked, dataset, base, trained, folder / "reference")
    # An answer with a label may be a bad one, which is not to be expected.
    has_label = "label" in (dataset.path / HELDOUT_FILE).read_text()
    answers = [one.expected for one in read_reference(reference)]
    assert len(answers) == 2 and (not has_label or answers == [None, None])
    source = resolve_model(str(trained.path)) if trained.kind == "model" else base
    adapters = () if trained.kind == "model" else trained
    merged = merge_adapter(MergeConfig(), source, adapters, folder / "merged")
    model = resolve_model(str(merged.path))
    parity = prove_model(ParityConfig(), reference, model, folder / "parity", form="merged")
    assert parity.manifest.metrics["verdict"] == "PASS"


def _compare_with_base(
    config: TrainingConfig,
    dataset: Artifact,
    base: ModelSource,
    trained: Artifact,
    out: Path,
    folder: Path,
) -> None:
    """Check that the evaluation agrees with the held-out figures of the trainer."""
    found = evaluate_preferences(
        EvaluationConfig(), config, dataset, base, trained, out, relative_to=folder
    )
    figures, at_end = found.manifest.metrics, trained.manifest.metrics
    assert "judge" not in figures
    lines = (out / "preferences.jsonl").read_text().splitlines()
    rewards = [json.loads(line) for line in lines]
    assert len(rewards) == 9
    if config.method.type == "grpo":
        # A reward of the file by hand.
        row = rewards[0]
        text = "".join(filter(str.isalnum, row["answer"]))
        assert row["reward"] == sum(map(str.islower, text)) / max(len(text), 1)
        low, high = figures["reward_difference_interval"]
        assert low <= figures["reward_difference"] <= high
        return
    low, high = figures["margin_interval"]
    assert low <= figures["margin"] <= high
    if config.method.type == "kto":
        assert figures["num_pairs"] == 4  # five good rows, four bad ones
        return
    assert figures["num_pairs"] == 9
    if config.method.type != "orpo":  # TRL's rewards of ORPO have no reference
        assert figures["accuracy"] == pytest.approx(at_end["eval_accuracy"])
    if config.method.type in ("dpo", "reward"):
        weighted = sum(row["rewards"][0] - row["rewards"][1] for row in rewards) / 9
        assert figures["margin"] == pytest.approx(weighted)
        assert at_end["eval_margin"] == pytest.approx(weighted, rel=1e-3)


@pytest.mark.parametrize("method", ["kto", "grpo"])
def test_a_judge_compares_answers_where_rows_expect_none(
    method: str,
    folder: Path,
    base: ModelSource,
    datasets: dict[str, Artifact],
    tmp_path: Path,
) -> None:
    config, dataset = _config(method, num_train_epochs=1), datasets[KIND_OF[method]]
    trained = train_adapter(config, dataset, base, tmp_path / "a", relative_to=folder)
    with judge(prefer_longer) as (url, requests):
        asked = JudgeConfig(url=url, model="judge", num_rows=5)
        found = evaluate_preferences(
            EvaluationConfig(judge=asked, max_new_tokens=12), config, dataset, base, trained,
            tmp_path / "p", relative_to=folder,
        )  # fmt: skip
    rows = [json.loads(line) for line in (tmp_path / "p" / "answers.jsonl").open()]
    heldout = [json.loads(line) for line in (dataset.path / "heldout.jsonl").open()]
    assert [row["prompt"] for row in rows] == [row["prompt"] for row in heldout[:5]]
    lengths = [(len(row["tuned"]), len(row["base"])) for row in rows]
    won = [0.5 if tuned == plain else float(tuned > plain) for tuned, plain in lengths]
    figures = found.manifest.metrics["judge"]
    assert [row["judge"] for row in rows] == won
    assert figures["win_rate"] == sum(won) / 5
    different = sum(row["tuned"] != row["base"] for row in rows)
    assert len(requests) == figures["num_requests"] == 2 * different > 0


def _rendered(tokenizer: Any, row: Any, after: str = "") -> dict[str, list[int]]:
    """The ChatML of a row by hand, as token ids, with the text `after` each answer."""

    def ids(text: str) -> list[int]:
        found: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return found

    asked = f"<|im_start|>user\n{row.prompt[0]['content']}<|im_end|>\n<|im_start|>assistant\n"
    whole = {"prompt": ids(asked)}
    for name, said in (("chosen", row.completion), ("rejected", row.rejected)):
        if said:
            whole[name] = ids(f"{said[0]['content']}<|im_end|>{after}")
    return whole


def _trainer(
    method: str, folder: Path, base: ModelSource, work: Path, num_rows: int = 8
) -> tuple[Any, list[Any], Any]:
    """Return a trainer, its rows, and the tokenizer."""
    from training.adapters.lora import add_lora

    config = _config(method, per_device_train_batch_size=num_rows)
    config = config.model_copy(update={"method": config.method.resolved(folder)})
    tokenizer, found = load_tokenizer(base.path), find_method(config.method)
    rows = [KINDS[KIND_OF[method]](index) for index in range(num_rows)]
    stop_ids = [tokenizer.eos_token_id]
    found.check(config, rows, "rows")
    examples = found.render(config, tokenizer, rows, stop_ids, "rows")
    model = add_lora(config, load_base(base, dtype(), task_type=found.task_type), found.task_type)
    arguments = trainer_arguments(config, work, resumed=False)
    return found.trainer(config, model, tokenizer, arguments, examples, examples), rows, tokenizer


def dtype() -> Any:
    import torch

    return torch.float32


def _unpadded(ids: Any, mask: Any) -> list[list[int]]:
    return [
        [i for i, kept in zip(r, m, strict=True) if kept]
        for r, m in zip(ids.tolist(), mask.tolist(), strict=True)
    ]


@pytest.mark.parametrize("method", ["dpo", "orpo", "reward"])
def test_the_collator_of_pairs_sees_exactly_our_token_ids(
    method: str, folder: Path, base: ModelSource, tmp_path: Path
) -> None:
    trainer, rows, tokenizer = _trainer(method, folder, base, tmp_path)
    # A score is read at the last token of what a server renders: ChatML's line end.
    after = "\n" if method == "reward" else ""
    expected = [_rendered(tokenizer, row, after) for row in rows]
    batch = next(iter(trainer.get_train_dataloader()))
    if method == "orpo":
        sides = [
            (batch[f"{side}_input_ids"], batch[f"{side}_attention_mask"], batch[f"{side}_labels"])
            for side in ("chosen", "rejected")
        ]
        found = [ids for side in sides for ids in _unpadded(*side[:2])]
        trained = [
            [label for label in row if label >= 0] for side in sides for row in side[2].tolist()
        ]
        prompts = _unpadded(batch["prompt_input_ids"], batch["prompt_attention_mask"])
        assert sorted(prompts) == sorted(row["prompt"] for row in expected)
    else:
        found = _unpadded(batch["input_ids"], batch["attention_mask"])
        trained = _unpadded(batch["input_ids"], batch.get("completion_mask", batch["input_ids"]))
    whole = [row["prompt"] + row[side] for side in ("chosen", "rejected") for row in expected]
    assert len(found) == 2 * len(rows) and sorted(found) == sorted(whole)
    assert found[: len(rows)] != found[len(rows) :]
    if method != "reward":
        answers = [row[side] for side in ("chosen", "rejected") for row in expected]
        assert sorted(trained) == sorted(answers)
    # The pairs stay pairs: the rejected side of a row has the same prompt.
    for chosen, rejected in zip(found[: len(rows)], found[len(rows) :], strict=True):
        row = next(r for r in expected if r["prompt"] + r["chosen"] == chosen)
        assert rejected == row["prompt"] + row["rejected"]


def test_the_collator_of_kto_pairs_answers_with_the_prompts_of_the_batch(
    folder: Path, base: ModelSource, tmp_path: Path
) -> None:
    trainer, rows, tokenizer = _trainer("kto", folder, base, tmp_path)
    expected = [_rendered(tokenizer, row) for row in rows]
    batch = next(iter(trainer.get_train_dataloader()))
    found = _unpadded(batch["input_ids"], batch["attention_mask"])
    assert sorted(found) == sorted(row["prompt"] + row["chosen"] for row in expected)
    labels = dict(zip(map(tuple, found), batch["label"].tolist(), strict=True))
    assert labels == {
        tuple(r["prompt"] + r["chosen"]): row.label for r, row in zip(expected, rows, strict=True)
    }
    order = [next(r for r in expected if r["prompt"] + r["chosen"] == ids) for ids in found]
    mismatched = _unpadded(batch["KL_input_ids"], batch["KL_attention_mask"])
    assert mismatched == [
        row["prompt"] + order[index - 1]["chosen"] for index, row in enumerate(order)
    ]


@pytest.mark.parametrize(("num_rows", "rows_per_batch"), [(9, 4), (8, 4), (25, 8), (3, 2)])
def test_no_batch_of_kto_has_a_single_row(num_rows: int, rows_per_batch: int) -> None:
    from training.methods.kto import _BatchesOfTwo

    order = list(_BatchesOfTwo([5] * num_rows, rows_per_batch, 0, rows_per_batch))
    sizes = [len(order[at : at + rows_per_batch]) for at in range(0, len(order), rows_per_batch)]
    assert set(order) == set(range(num_rows)) and min(sizes) >= 2


def test_kto_evaluates_in_batches_of_its_training(
    folder: Path, base: ModelSource, tmp_path: Path
) -> None:
    trainer, _, _ = _trainer("kto", folder, base, tmp_path, 8)
    assert trainer.args.per_device_eval_batch_size == 8


def test_grpo_generates_from_exactly_our_token_ids(
    folder: Path, base: ModelSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, rows, tokenizer = _trainer("grpo", folder, base, tmp_path)
    seen: list[list[int]] = []
    generate = type(trainer)._generate_single_turn

    def record(self: Any, prompt_ids: Any, *rest: Any) -> Any:
        seen.extend(prompt_ids)
        return generate(self, prompt_ids, *rest)

    monkeypatch.setattr(type(trainer), "_generate_single_turn", record)
    trainer.evaluate()
    expected = [_rendered(tokenizer, row)["prompt"] for row in rows]
    assert len(seen) == 4 * len(rows)
    assert sorted(seen) == sorted(expected * 4)


def test_an_evaluation_of_rewards_has_the_columns_of_training_and_goes_on(
    folder: Path, base: ModelSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    dataset = write_dataset(tmp_path / "d", "solved", 8, 4)
    options = {**OPTIONS["grpo"], "type": "grpo", "reward_funcs": "rewards.py:solved"}
    config = TrainingConfig.model_validate({**COMMON, "method": options, "max_steps": 1})
    trained = train_adapter(config, dataset, base, tmp_path / "a", relative_to=folder)
    assert trained.manifest.metrics["eval_reward_before"] == 1.0

    asked: list[int] = []

    def interrupted(model: Any, prompts: Any, *rest: Any) -> Any:
        if asked:  # the trained model has answered, and the base has not
            raise KeyboardInterrupt
        asked.append(len(prompts))
        return greedy_answers(model, prompts, *rest)

    monkeypatch.setattr("training.evaluation.preferences.greedy_answers", interrupted)
    again = (EvaluationConfig(), config, dataset, base, trained, tmp_path / "p")
    with pytest.raises(KeyboardInterrupt):
        evaluate_preferences(*again, relative_to=folder)
    monkeypatch.undo()
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(logging.getLogger("tuneline"), "propagate", True)
    found = evaluate_preferences(*again, relative_to=folder)
    assert (found.manifest.metrics["num_rows"], found.manifest.metrics["reward"]) == (4, 1.0)
    assert asked == [4] and "4 of 4 answers are kept from an interrupted" in caplog.text
    assert not (tmp_path / ".p.answers").exists()

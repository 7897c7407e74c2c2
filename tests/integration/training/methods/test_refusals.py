"""Recipes that cannot work are refused before a model is loaded, with the nearest that works."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from tests.integration.training.methods.datasets import REWARD_FILE
from tests.integration.training.tiny import CHATML, make_base
from tuneline.core.errors import ConfigError, DataError
from tuneline.pipeline.check import check_run
from tuneline.pipeline.run_config import load_run
from tuneline.pipeline.up import up

PAIRS = [{"prompt": f"Say {i}.", "chosen": f"yes {i}", "rejected": f"no {i}"} for i in range(20)]
ANSWERS = [{"prompt": f"Say {i}.", "completion": f"yes {i}"} for i in range(20)]
LABELS = [{**row, "label": index % 2 == 0} for index, row in enumerate(ANSWERS)]
TEXTS = [{"text": f"Once upon a time {i}."} for i in range(20)]
PROMPTS = [{"prompt": f"Say {i}."} for i in range(20)]
GRPO = {"type": "grpo", "reward_funcs": "rewards.py:lower", "max_completion_length": 8}

DISTILLATION = {
    "type": "distillation", "teacher_model_name_or_path": "teacher", "max_completion_length": 8,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("refusals")
    make_base(folder / "base")
    make_base(folder / "teacher", seed=1)
    (folder / "rewards.py").write_text(REWARD_FILE)
    (folder / "broken.py").write_text("import no_such_module\n")
    return folder


def _check(
    folder: Path,
    rows: Sequence[dict[str, Any]],
    method: dict[str, Any],
    sections: dict[str, Any] | None = None,
    **training: Any,
) -> dict[str, str]:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {
        "name": "refused",
        "base_model": "base",
        # Half of the rows: with fewer, they may all have the same label.
        "data": {"path": "rows.jsonl", "heldout_fraction": 0.5},
        "training": {"max_length": 128, **training, "method": method},
        **(sections or {}),
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(values))
    return check_run(load_run(folder / "run.yaml", runs_dir=folder / "runs")).found


@pytest.mark.parametrize(
    ("rows", "method", "served"),
    [
        (PAIRS, {"type": "dpo"}, "a chat model"),
        (PAIRS, {"type": "dpo", "loss_type": "ipo", "label_smoothing": 0.0}, "a chat model"),
        (PAIRS, {"type": "orpo"}, "a chat model"),
        (PAIRS, {"type": "reward"}, "a reward model"),
        (LABELS, {"type": "kto"}, "a chat model"),
        (PROMPTS, GRPO, "a chat model"),
        (ANSWERS, GRPO, "a chat model"),
        (ANSWERS, DISTILLATION, "a chat model"),
        (ANSWERS, {"type": "sft", "loss_type": "dft"}, "a chat model"),
        (PAIRS, {"type": "dpo", "loss_type": "robust", "label_smoothing": 0.1}, "a chat model"),
    ],
)
def test_recipes_that_work_say_how_they_are_served(
    folder: Path, rows: list[dict[str, Any]], method: dict[str, Any], served: str
) -> None:
    found = _check(folder, rows, method)
    assert found["method"].startswith(f"{method['type']}: {served}")


@pytest.mark.parametrize(
    ("rows", "method", "message", "hint"),
    [
        (PAIRS, {"type": "sft"}, "20 of 20 rows are preference pairs, the first on line 1; "
         "training.method sft expects prompts with an answer", "{type: dpo} (or orpo, reward)"),
        (ANSWERS, {"type": "dpo"}, "dpo expects preference pairs", "{type: sft}"),
        (ANSWERS, {"type": "kto"}, "kto expects answers with a label", "{type: sft}"),
        (LABELS, {"type": "orpo"}, "rows are answers with a label", "{type: kto}"),
        (PROMPTS, {"type": "sft"}, "rows are prompts without an answer",
         "{type: grpo} (or distillation)"),
        (PAIRS, GRPO, "grpo expects prompts without an answer or prompts with an answer",
         "{type: dpo}"),
        (LABELS[::2], {"type": "kto"}, "no row of 10 has the label false", "{type: sft}"),
        (LABELS[1::2], {"type": "kto"}, "no row of 10 has the label true", "other label"),
        (LABELS[:1], {"type": "kto"}, "has 1 row; kto compares", "Add rows"),
        ([{**PAIRS[0], "rejected": "yes 0"}, *PAIRS[1:]], {"type": "dpo"},
         "line 1: fields 'chosen' and 'rejected' are equal", ""),
        (TEXTS, {"type": "sft"}, "heldout.jsonl: no row has an answer; expected rows with prompt "
         "and answer", "data.heldout_path with rows that have a prompt and an answer"),
        (PROMPTS, DISTILLATION, "heldout.jsonl: no row has an answer",
         "Without an evaluation: tuneline train"),
        (PAIRS, DISTILLATION, "distillation expects prompts without an answer", "{type: dpo}"),
        (PROMPTS[:1], GRPO, "has 1 prompts; a step takes 2", "gradient_accumulation_steps: 1"),
        (PROMPTS, {**GRPO, "max_completion_length": 120}, "line 1: the prompt has",
         "Set training.max_length:"),
        ([*PAIRS, {**PAIRS[0], "prompt": "long", "rejected": "word " * 90}], {"type": "dpo"},
         "1 of 21 rows are longer than max_length=128", "Set training.max_length:"),
    ],
)  # fmt: skip
def test_rows_that_a_method_cannot_train_on_are_refused(
    folder: Path, rows: list[dict[str, Any]], method: dict[str, Any], message: str, hint: str
) -> None:
    with pytest.raises(DataError) as caught:
        _check(folder, rows, method)
    assert message in caught.value.message and hint in (caught.value.hint or "")
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("rows", "method", "training", "message"),
    [
        (PAIRS, {"type": "dpo", "betta": 0.1}, {}, "training.method.betta: DPOConfig has no such "
         "option (did you mean beta?)"),
        (PAIRS, {"type": "dpo", "optim": "adafactor"}, {}, "set training.optim"),
        (PAIRS, {"type": "dpo", "push_to_hub": True}, {}, "an option of the training loop"),
        (PAIRS, {"type": "dpo", "label_smoothing": "much"}, {}, "training.method.label_smoothing"),
        (PAIRS, {"type": "dpo", "beta": -1}, {}, "greater than 0"),
        (PAIRS, {"type": "dpo", "loss_type": ["sigmoid", "magic"]}, {}, "'sigmoid', 'hinge'"),
        (PAIRS, {"type": "dpo", "trust_remote_code": True}, {}, "no code of a model folder is run"),
        (PAIRS, {"type": "dpo", "max_length": 64}, {}, "set training.max_length"),
        (PAIRS, {"type": "dpo", "learning_rate": 1e-6}, {}, "set training.learning_rate"),
        (PAIRS, {"type": "dpo", "truncation_mode": "keep_end"}, {}, "no row is cut"),
        (PAIRS, {"type": "dpo", "bf16": True}, {}, "set training.dtype"),
        (PAIRS, {"type": "dpo", "label_smoothing": 0.1}, {}, "label_smoothing: 0.1 has no effect; "
         "TRL reads it with loss_type robust or exo_pair"),
        (PAIRS, {"type": "dpo", "ref_model_sync_steps": 8}, {}, "TRL reads it with sync_ref_model"),
        (PAIRS, {"type": "dpo", "loss_type": "exo_pair"}, {}, "TRL refuses the options of dpo: "
         "Label smoothing must be greater than 0"),
        (PAIRS, {"type": "dpo", "loss_weights": [1, 2]}, {}, "Got 2 weights for 1 loss types"),
        (PAIRS, {"type": "dpo", "sync_ref_model": True}, {}, "TRL refuses the options of dpo"),
        (PAIRS, {"type": "dpo"}, {"bias": "all"}, "compares with the base, which would move along"),
        (ANSWERS, {"type": "sft"}, {"trainable_token_indices": [1, 0]}, "1 tokens appear in no "
         "training row, so that their rows of the embedding learn nothing: 0 ('<|endoftext|>')"),
        (ANSWERS, {"type": "sft", "loss_typ": "dft"}, {}, "(did you mean loss_type?)"),
        (ANSWERS, {"type": "sft", "packing_strategy": "wrapped"}, {}, "none is cut"),
        (ANSWERS, {"type": "sft", "loss_type": "other"}, {}, "TRL refuses the options of sft"),
        (ANSWERS, {"type": "sft"}, {"lora_config": {"init_lora_weights": "eva"}}, "eva needs a "
         "pass over the data"),
        (PAIRS, {"type": "dpo"}, {"packing": True}, "dpo compares whole answers"),
        (PAIRS, {"type": "dpo"}, {"lora_dropout": 0.1}, "dpo switches dropout off"),
        (PAIRS, {"type": "dpo"}, {"target_modules": ["lm_head"]}, "adapter on lm_head"),
        (PAIRS, {"type": "ppo"}, {}, "'dpo'"),
        (LABELS, {"type": "kto"}, {"per_device_train_batch_size": 1}, "1 is too small for kto"),
        (LABELS, {"type": "kto", "precompute_ref_log_probs": True}, {}, "drawn anew in each"),
        (ANSWERS, {**DISTILLATION, "cache_implementation": "quick"}, {},
         "TRL refuses the options of distillation"),
        (PROMPTS, {**GRPO, "num_generations": 5}, {}, "5 does not divide the 16 answers of a step"),
        (PROMPTS, GRPO, {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 1},
         "a step has 1 answer; expected two or more"),
        (PROMPTS, {**GRPO, "num_generations": 1}, {}, "greater than or equal to 2"),
        (PROMPTS, {**GRPO, "reward_funcs": "none.py:f"}, {}, "no such file"),
        (PROMPTS, {**GRPO, "reward_funcs": "rewards.py"}, {}, "is not file.py:function"),
        (PROMPTS, {**GRPO, "reward_funcs": "rewards.py:missing"}, {}, "has no function missing"),
        (PROMPTS, {**GRPO, "reward_funcs": "broken.py:f"}, {}, "cannot be imported"),
        (PROMPTS, {**GRPO, "reward_funcs": "rewards.py:wordy"}, {}, "answer 1 is 'a word'"),
        (PROMPTS, {**GRPO, "reward_funcs": "rewards.py:number"}, {}, "returned float"),
        (PROMPTS, {**GRPO, "reward_funcs": "rewards.py:broken"}, {}, "raised KeyError: 'gold'"),
        (PROMPTS, {**GRPO, "reward_weights": [1.0, 2.0]}, {}, "has 2 numbers for 1"),
        (PROMPTS, {**GRPO, "use_vllm": True}, {}, "vLLM 0.22 to 0.31"),
        (PROMPTS, {"type": "grpo"}, {}, "reward_funcs: missing"),
    ],
)  # fmt: skip
def test_options_that_cannot_work_are_refused_by_name(
    folder: Path,
    rows: list[dict[str, Any]],
    method: dict[str, Any],
    training: dict[str, Any],
    message: str,
) -> None:
    with pytest.raises(ConfigError) as caught:
        _check(folder, rows, method, **training)
    assert message in str(caught.value)
    assert caught.value.exit_code == 2


def test_held_out_rows_of_a_file_are_checked_with_both_labels(folder: Path) -> None:
    lines = [json.dumps({**row, "prompt": f"Held {i}"}) + "\n" for i, row in enumerate(LABELS)]
    (folder / "heldout.jsonl").write_text("".join(lines[::2]))
    sections = {"data": {"path": "rows.jsonl", "heldout_path": "heldout.jsonl"}}
    with pytest.raises(
        DataError, match=r"heldout\.jsonl: all 10 held-out rows have the label true"
    ) as one:
        _check(folder, LABELS, {"type": "kto"}, sections)
    assert one.value.exit_code == 2 and "data.stratify_by: label" in str(one.value.hint)
    (folder / "heldout.jsonl").write_text("".join(lines))
    _check(folder, LABELS, {"type": "kto"}, sections)
    # The evaluation compares the first rows only.
    with pytest.raises(DataError, match="all 1 held-out rows have the label true") as caught:
        _check(folder, LABELS, {"type": "kto"}, {**sections, "evaluation": {"num_rows": 1}})
    assert "evaluation.num_rows" in str(caught.value.hint)


def test_held_out_text_stops_the_line_before_it_trains(folder: Path) -> None:
    with pytest.raises(DataError):
        _check(folder, TEXTS, {"type": "sft"})
    run = load_run(folder / "run.yaml", runs_dir=folder / "runs")
    with pytest.raises(DataError, match="no row has a prompt") as caught:
        up(run, ("adapter", "reference"))
    assert caught.value.exit_code == 2
    assert list(run.dir.glob("dataset-*")) and not list(run.dir.glob("adapter-*"))


def test_exact_match_of_held_out_text_is_refused(folder: Path) -> None:
    with pytest.raises(DataError, match="no row has an answer"):
        _check(folder, TEXTS, {"type": "sft"}, metric_for_best_model="eval_exact_match")


def test_text_next_to_answers_is_checked_with_a_template_that_writes_the_date(
    folder: Path,
) -> None:
    template = '{{ strftime_now("%d %b %Y") }}' + "{{ messages[0]['role'] }}" + CHATML
    make_base(folder / "dated", chat_template=template)
    (folder / "heldout.jsonl").write_text(json.dumps({"prompt": "b", "completion": "c"}) + "\n")
    sections: dict[str, Any] = {
        "data": {"path": "rows.jsonl", "heldout_path": "heldout.jsonl"},
    }
    found = _check(folder, TEXTS, {"type": "sft"}, {**sections, "base_model": "dated"})
    assert "the chat template writes today's date" in found["date"]


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ([1.0, None], "answer 2 is None"),
        ([float("nan"), 1], "answer 1 is nan"),
        ([1.0], "returned 1 rewards; expected 2"),
        (["1", 2], "answer 1 is '1'"),
        ([10**400, 1], "answer 1 is 1000"),
        (np.ones((2, 2)), r"answer 1 is array\(\[1., 1.\]\)"),
    ],
)
def test_a_reward_that_is_not_a_number_ends_the_run(found: Any, message: str) -> None:
    from training.methods.rewards import _checked

    rewards = _checked("r.py:f", lambda **_: [1, True, 2.5])
    assert rewards(completions=["a", "b", "c"]) == [1.0, 1.0, 2.5]
    with pytest.raises(ConfigError, match=message):
        _checked("r.py:f", lambda **_: found)(completions=["a", "b"])


async def _later(completions: list[str], **_: Any) -> Any:
    await asyncio.sleep(0)
    return np.array([len(answer) for answer in completions], dtype=np.float32)


def _bare(completions: list[str]) -> list[float]:
    return [0.0] * len(completions)


def _ends(**_: Any) -> Any:
    yield 1.0
    raise SystemExit(3)


def test_a_reward_may_be_async_and_may_not_end_the_process() -> None:
    from training.methods.rewards import _checked

    assert _checked("r.py:f", _later)(completions=["a", "bcd"]) == [1.0, 3.0]
    with pytest.raises(ConfigError, match="SystemExit: 3"):
        _checked("r.py:f", _ends)(completions=["a", "b"])
    with pytest.raises(ConfigError, match="unexpected keyword argument 'prompts'") as caught:
        _checked("r.py:f", _bare)(completions=["a"], prompts=["b"])
    assert caught.value.hint == "Try: def reward(completions, **columns)"

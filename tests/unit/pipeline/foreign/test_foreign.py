from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tuneline.core.config import load_config
from tuneline.core.errors import ConfigError
from tuneline.pipeline.foreign import TRAINERS, write_foreign_run
from tuneline.pipeline.run_config import RunConfig

AXOLOTL: dict[str, Any] = {
    "base_model": "owner/model",
    "load_in_4bit": True,
    "adapter": "qlora",
    "datasets": [
        {"path": "owner/set", "type": "alpaca", "split": "train", "name": "small"},
        {
            "path": "json",
            "data_files": "chats.jsonl",
            "type": "chat_template",
            "field_messages": "turns",
            "message_property_mappings": {"role": "from", "content": "value"},
            "repeats": 2,
        },
    ],
    "val_set_size": 0.05,
    "output_dir": "./out",
    "sequence_len": 4096,
    "sample_packing": True,
    "lora_r": 32,
    "lora_alpha": 16,
    "lora_dropout": 0.05,
    "lora_target_linear": True,
    "micro_batch_size": 2,
    "gradient_accumulation_steps": 4,
    "num_epochs": 4,
    "optimizer": "adamw_bnb_8bit",
    "lr_scheduler": "cosine",
    "learning_rate": "2e-4",
    "warmup_ratio": 0.1,
    "bf16": "auto",
    "tf32": False,
    "flash_attention": True,
    "wandb_project": "p",
    "rl": "dpo",
    "dpo_beta": 0.2,
    "surprise": 3,
    "lora_model_dir": "old",
}
LLAMA_FACTORY: dict[str, Any] = {
    "model_name_or_path": "owner/model",
    "stage": "dpo",
    "do_train": True,
    "finetuning_type": "lora",
    "lora_rank": 8,
    "lora_target": "q_proj,v_proj",
    "pref_beta": 0.1,
    "pref_loss": "orpo",
    "dataset": "pairs",
    "dataset_dir": "data",
    "template": "llama3",
    "cutoff_len": 2048,
    "max_samples": 1000,
    "output_dir": "saves",
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 8,
    "learning_rate": 5.0e-6,
    "num_train_epochs": 3.0,
    "lr_scheduler_type": "polynomial",
    "warmup_ratio": 0.1,
    "bf16": True,
    "quantization_bit": 4,
    "report_to": ["tensorboard", "swanlab"],
    "val_size": 0.1,
}
INFO = {
    "verdicts": {
        "file_name": "verdicts.json",
        "formatting": "sharegpt",
        "columns": {"messages": "messages", "kto_tag": "is_good"},
    },
    "pairs": {
        "file_name": "pairs.json",
        "ranking": True,
        "columns": {"prompt": "question", "chosen": "good", "rejected": "rejected"},
    },
}
TRL: dict[str, Any] = {
    "model_name_or_path": "owner/model",
    "model_revision": "v1",
    "dataset_name": "owner/set",
    "dataset_config": "small",
    "dataset_train_split": "train_prefs",
    "dataset_test_split": "test_prefs",
    "use_peft": True,
    "lora_r": 64,
    "lora_target_modules": ["q_proj", "v_proj"],
    "beta": 0.2,
    "max_length": 1024,
    "learning_rate": 5.0e-6,
    "torch_dtype": "bfloat16",
    "optim": "paged_adamw_8bit",
    "report_to": "wandb",
    "max_steps": 100,
    "adam_beta2": 0.95,
    "lr_scheduler_type": "inverse_sqrt",
    "load_in_8bit": True,
    "deepspeed": "zero3.json",
}
SWIFT: dict[str, Any] = {
    "model": "owner/model",
    "train_type": "lora",
    "dataset": ["owner/set:small#500", "chats.jsonl"],
    "columns": {"frage": "query", "antwort": "response"},
    "split_dataset_ratio": 0.01,
    "torch_dtype": "bfloat16",
    "quant_bits": 4,
    "quant_method": "bnb",
    "per_device_train_batch_size": 2,
    "lora_rank": 16,
    "target_modules": "all-linear",
    "max_length": 4096,
    "warmup_ratio": 0.05,
    "system": "Be kind.",
    "loss_scale": "last_round",
    "agent_template": "hermes",
    "deepspeed": "zero2",
    "surprise": 3,
}
TORCHTUNE: dict[str, Any] = {
    "output_dir": "out",
    "model": {
        "_component_": "torchtune.models.llama3_2.qlora_llama3_2_1b",
        "lora_attn_modules": ["q_proj", "v_proj", "output_proj"],
        "apply_lora_to_mlp": True,
        "lora_rank": 64,
        "lora_alpha": 128,
    },
    "tokenizer": {"_component_": "torchtune.models.llama3.llama3_tokenizer", "max_seq_len": 1024},
    "checkpointer": {
        "_component_": "torchtune.training.FullModelHFCheckpointer",
        "checkpoint_dir": "${root}/model", "output_dir": "${output_dir}",
    },
    "root": "owner",
    "dataset": {
        "_component_": "torchtune.datasets.instruct_dataset", "source": "json",
        "data_files": "rows.json", "column_map": {"input": "question"}, "packed": True,
        "new_system_prompt": "Be kind.", "train_on_input": True, "split": "train[:95%]",
    },
    "optimizer": {"_component_": "bitsandbytes.optim.PagedAdamW8bit", "lr": "2e-5"},
    "lr_scheduler": {
        "_component_": "torchtune.training.lr_schedulers.get_cosine_schedule_with_warmup",
        "num_warmup_steps": 100,
    },
    "loss": {"_component_": "torchtune.rlhf.loss.DPOLoss", "beta": 0.2},
    "epochs": 2,
    "max_steps_per_epoch": 50,
    "batch_size": 4,
    "gradient_accumulation_steps": 8,
    "metric_logger": {"_component_": "torchtune.training.metric_logging.WandBLogger"},
    "dtype": "bf16",
    "compile": True,
    "seed": None,
    "device": "cuda",
}  # fmt: skip

CASES = [
    (
        "Axolotl",
        AXOLOTL,
        {
            "data.sources.0.path": "hf:owner/set",
            "data.sources.0.config": "small",
            "data.sources.0.shape": "alpaca",
            "data.sources.1.path": "chats.jsonl",
            "data.sources.1.columns": {"messages": "turns"},
            "data.sources.1.weight": 2.0,
            "data.heldout_fraction": 0.05,
            "training.max_length": 4096,
            "training.packing": True,
            "training.r": 32,
            "training.lora_alpha": 16,
            "training.target_modules": "all-linear",
            "training.per_device_train_batch_size": 2,
            "training.num_train_epochs": 4,
            "training.learning_rate": 2e-4,
            "training.warmup_steps": 0.1,
            "training.method.type": "dpo",
            "training.method.beta": 0.2,
            "training.optim": "adamw_8bit",
            "training.load_in_4bit": True,
            "training.report_to": ["wandb"],
            "data.checks.length.action": "fix",
        },
        [
            "export WANDB_PROJECT=p",
            "output_dir",
            "lora_model_dir: old: training starts with a new",
            "surprise: 3: has no counterpart",
            "type: alpaca of owner/set: writes ### Instruction or the like",
        ],
    ),
    (
        "LLaMA-Factory",
        LLAMA_FACTORY,
        {
            "data.path": "data/pairs.json",
            "data.shape": "preference",
            "data.columns": {"instruction": "question", "chosen": "good"},
            "data.heldout_fraction": 0.1,
            "training.method.type": "orpo",
            "training.method.beta": 0.1,
            "training.r": 8,
            "training.finetuning_type": "lora",
            "training.target_modules": ["q_proj", "v_proj"],
            "training.max_length": 2048,
            "training.dtype": "bfloat16",
            "training.learning_rate": 5e-6,
            "training.load_in_4bit": True,
            "training.lr_scheduler_type": "polynomial",
        },
        ["template: llama3", "max_samples: 1000", "report_to: swanlab: known are", "output_dir"],
    ),
    (
        "TRL",
        TRL,
        {
            "base_revision": "v1",
            "data.path": "hf:owner/set",
            "data.config": "small",
            "data.split": "train_prefs",
            "data.heldout_split": "test_prefs",
            "training.method.type": "dpo",
            "training.method.beta": 0.2,
            "training.r": 64,
            "training.dtype": "bfloat16",
            "training.max_length": 1024,
            "training.optim": "paged_adamw_8bit",
            "training.report_to": ["wandb"],
            "training.max_steps": 100,
            "training.adam_beta2": 0.95,
            "training.lr_scheduler_type": "inverse_sqrt",
        },
        ["a base model in 8 bits", "deepspeed: zero3.json: set training.launch"],
    ),
    (
        "ms-swift",
        SWIFT,
        {
            "data.sources.0.path": "hf:owner/set",
            "data.sources.0.config": "small",
            "data.sources.1.path": "chats.jsonl",
            "data.sources.1.columns": {"prompt": "frage", "completion": "antwort"},
            "data.heldout_fraction": 0.01,
            "data.system_prompt": "Be kind.",
            "data.checks.length.action": "fix",
            "training.r": 16,
            "training.lora_alpha": 32,
            "training.load_in_4bit": True,
            "training.train_on": "last_turn",
            "training.max_length": 4096,
            "training.warmup_steps": 0.05,
            "training.learning_rate": 1e-4,
            "training.weight_decay": 0.1,
            "training.gradient_accumulation_steps": 8,
            "training.dtype": "bfloat16",
        },
        [
            "owner/set:small#500: 500 rows are drawn by ms-swift",
            "agent_template: hermes",
            "surprise: 3: has no counterpart",
            "takes names from ModelScope",
            "deepspeed: zero2: set training.launch",
        ],
    ),
    (
        "torchtune",
        TORCHTUNE,
        {
            "data.path": "rows.json",
            "data.columns": {"prompt": "question", "completion": "output"},
            "data.system_prompt": "Be kind.",
            "training.r": 64,
            "training.lora_alpha": 128,
            "training.lora_dropout": 0.0,
            "training.target_modules": [
                "q_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
            ],
            "training.load_in_4bit": True,
            "training.packing": True,
            "training.max_length": 1024,
            "training.optim": "paged_adamw_8bit",
            "training.learning_rate": 2e-5,
            "training.weight_decay": 0.01,
            "training.lr_scheduler_type": "cosine",
            "training.warmup_steps": 100,
            "training.method.type": "dpo",
            "training.method.beta": 0.2,
            "training.max_steps": 100,
            "training.per_device_train_batch_size": 4,
            "training.gradient_accumulation_steps": 8,
            "training.report_to": ["wandb"],
            "training.dtype": "bfloat16",
        },
        [
            "train_on_input of rows.json: the loss is on answers only",
            "split of rows.json: train[:95%]: is a slice",
            "compile: True: kernels are chosen",
            "max_seq_len: torchtune cuts longer rows",
        ],
    ),
]  # fmt: skip


def _without(values: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in names}


def _write(folder: Path, values: dict[str, Any]) -> Path:
    (folder / "data").mkdir(exist_ok=True)
    (folder / "data" / "dataset_info.json").write_text(json.dumps(INFO))
    path = folder / "other.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def _at(value: Any, key: str) -> Any:
    for name in key.split("."):
        value = value[int(name)] if name.isdecimal() else getattr(value, name)
    return value


@pytest.mark.parametrize(("title", "values", "expected", "words"), CASES)
def test_a_configuration_becomes_a_run_and_names_the_rest(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    title: str,
    values: dict[str, Any],
    expected: dict[str, Any],
    words: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    _write(tmp_path, values)
    out = Path("run.yaml")
    found, notes = write_foreign_run(Path("other.yaml"), out)
    assert found == title
    config = load_config(out, RunConfig)
    assert config.base_model == "owner/model"
    assert {key: _at(config, key) for key in expected} == expected
    text = out.read_text()
    for word in words:
        assert any(word in note for note in notes), (word, notes)
        assert word in " ".join(text.replace("\n# ", " ").split())


@pytest.mark.parametrize(
    ("values", "key", "expected", "words"),
    [
        ({**TRL, "max_steps": -1}, "training.max_steps", None, []),
        # A key that is not given has the trainer's default, which is not ours.
        (_without(TRL, "learning_rate"), "training.learning_rate", 1e-6, ["max_length: TRL cuts"]),
        (
            _without(TRL, "learning_rate", "beta", "lora_target_modules"),
            "training.learning_rate", 2e-5,
            ["TRL trains every token of messages", "does not name its script", "PEFT chooses by"],
        ),
        (TRL, "training.gradient_accumulation_steps", 1, []),
        (TRL, "training.lora_dropout", 0.05, []),
        (LLAMA_FACTORY, "training.lora_alpha", 16, ["cutoff_len: LLaMA-Factory cuts longer rows"]),
        (_without(LLAMA_FACTORY, "lora_rank"), "training.r", 8, []),
        (_without(AXOLOTL, "num_epochs"), "training.num_train_epochs", 1, []),
        (_without(AXOLOTL, "sequence_len"), "training.max_length", 512, []),
        ({**AXOLOTL, "lr_scheduler": "rex"}, "training.lr_scheduler_type", "cosine", ["rex: "]),
        # Data of other shapes.
        (
            {**AXOLOTL, "datasets": [{"path": "json", "data_files": ["a.jsonl", "b.jsonl"]}]},
            "data.sources.1.path", "b.jsonl", [],
        ),
        (
            {**AXOLOTL, "datasets": [{"path": "a.jsonl", "type": "completion", "field": "body",
                                      "roles_to_train": ["assistant"], "train_on_eos": "turn"}]},
            "data.columns", {"text": "body"}, [],
        ),
        (
            {**AXOLOTL, "datasets": [{"path": "a.jsonl", "type": "chatml.argilla"}]},
            "data.columns",
            {"prompt": "instruction", "chosen": "chosen_response", "rejected": "rejected_response"},
            [],
        ),
        ({**LLAMA_FACTORY, "dataset": "verdicts", "stage": "kto"}, "data.shape", "label", []),
        (
            {**LLAMA_FACTORY, "dataset": "verdicts", "stage": "kto"},
            "data.columns", {"label": "is_good"}, [],
        ),
        ({**LLAMA_FACTORY, "max_steps": 0}, "training.max_steps", None, []),
        (
            {**LLAMA_FACTORY, "stage": "rm"}, "training.load_in_4bit", False,
            ["a base model in 4 bits: "],
        ),
        (
            {**TRL, "lr_scheduler_type": "greedy"},
            "training.lr_scheduler_type", "cosine", ["lr_scheduler_type: greedy: known are"],
        ),
        (
            {
                **AXOLOTL,
                "lr_scheduler": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr_rate": 0.1},
            },
            "training.lr_scheduler_kwargs", {"min_lr_rate": 0.1}, [],
        ),
        (
            {**AXOLOTL, "wandb_mode": "disabled", "wandb_entity": "team", "wandb_watch": ""},
            "training.report_to", ["tensorboard"],
            ["export WANDB_PROJECT=p", "export WANDB_MODE=disabled", "export WANDB_ENTITY=team"],
        ),
        (
            {**AXOLOTL, "use_mlflow": True, "mlflow_experiment_name": "e"},
            "training.report_to", ["wandb", "mlflow"], ["export MLFLOW_EXPERIMENT_NAME=e"],
        ),
    ],
)  # fmt: skip
def test_a_key_with_a_meaning_of_its_own(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    values: dict[str, Any],
    key: str,
    expected: object,
    words: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    _write(tmp_path, values)
    _, notes = write_foreign_run(Path("other.yaml"), Path("run.yaml"))
    assert _at(load_config(Path("run.yaml"), RunConfig), key) == expected
    assert not [word for word in words if not any(word in note for note in notes)], notes
    assert not any("max_steps" in note or "WANDB_WATCH" in note for note in notes)


@pytest.mark.parametrize(
    ("options", "train_on", "said"),
    [
        ({}, "all_turns", "the completion only, and here earlier answers in the prompt too"),
        ({"completion_only_loss": True}, "last_turn", ""),
        ({"completion_only_loss": False}, "all_turns", "TRL trains prompts too; here answers only"),
    ],
)
def test_what_trl_trains_of_prompt_and_completion_is_said(
    tmp_path: Path, options: dict[str, Any], train_on: str, said: str
) -> None:
    values = {**_without(TRL, "beta"), "assistant_only_loss": True, **options}
    path = _write(tmp_path, values)
    _, notes = write_foreign_run(path, tmp_path / "run.yaml")
    assert load_config(tmp_path / "run.yaml", RunConfig).training.train_on == train_on
    assert [said in note for note in notes if "completion_only_loss" in note] == [True] * bool(said)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: [", "cannot be read as YAML or JSON"),
        ("a: &x [*x]", "cannot be read as YAML or JSON: has an alias that is part of itself"),
        ("- 1", "expected a mapping of options"),
        ("learning_rate: 1", "is not a configuration of LLaMA-Factory, Axolotl, TRL"),
        ("{model_name_or_path: a, datasets: []}", "names no data or no base model"),
    ],
)
def test_a_file_of_no_trainer_is_an_error(tmp_path: Path, text: str, problem: str) -> None:
    (tmp_path / "other.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        write_foreign_run(tmp_path / "other.yaml", tmp_path / "run.yaml")
    assert problem in caught.value.message
    assert not (tmp_path / "run.yaml").exists()


def test_a_value_that_cannot_be_used_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    path = _write(tmp_path, {**TRL, "max_length": "long"})
    with pytest.raises(ConfigError, match=r"training\.max_length"):
        write_foreign_run(path, tmp_path / "run.yaml")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["data", "other.yaml"]


VALUES: st.SearchStrategy[Any] = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 3), st.text(max_size=3), st.just([]), st.just({}),
    st.lists(st.text(max_size=2), max_size=2), st.just([{"path": "a.json"}]),
)  # fmt: skip


@settings(
    max_examples=60, derandomize=True, deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
@given(data=st.data(), case=st.sampled_from([values for _, values, _, _ in CASES]))
def test_no_configuration_ends_in_a_traceback(
    tmp_path: Path, data: st.DataObject, case: dict[str, Any]
) -> None:
    changed = data.draw(st.dictionaries(st.sampled_from(sorted(case)), VALUES, max_size=3))
    path = _write(tmp_path, {**case, **changed})
    out = tmp_path / "run.yaml"
    out.unlink(missing_ok=True)
    try:
        write_foreign_run(path, out)
    except ConfigError as error:
        assert error.message
        assert not out.exists()
    else:
        assert load_config(out, RunConfig).name == "other"


def test_every_trainer_has_a_case() -> None:
    assert {trainer.title for trainer in TRAINERS} == {title for title, _, _, _ in CASES}

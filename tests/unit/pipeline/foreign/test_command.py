from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tuneline.core.config import load_config
from tuneline.core.errors import ConfigError
from tuneline.pipeline.foreign import write_foreign_run
from tuneline.pipeline.run_config import RunConfig

SWIFT = """
# swift sft --model old/model \\
CUDA_VISIBLE_DEVICES=0 NPROC_PER_NODE=2 \\
swift rlhf \\
    --rlhf_type dpo \\
    --model owner/model --dataset owner/pairs#20 other.jsonl \\
    --tuner_type full --learning_rate=1e-6 --use_hf true \\
    --truncation_strategy left --max_steps $(expr 9 / $N)  # don't: long rows
"""
TRL = """#!/bin/bash
MODEL="owner/model"   # the base
OUT=$HOME/out
LORA=(
    --use_peft --lora_r 64   # a rank
    --lora_target_modules q_proj v_proj
)
SIZES="--per_device_train_batch_size 2 --gradient_accumulation_steps 8"
echo "run trl sft" && accelerate launch --num_processes=4 --config_file ddp.yaml \\
    trl/scripts/dpo.py --model_name_or_path "${MODEL}" --dataset-name ${DATA:-rows.jsonl} \\
    "${LORA[@]}" $SIZES --beta 0.2 --no_gradient_checkpointing --eos_token '<|im_end|>' \\
    --output_dir "$OUT" $EXTRA \\
    --max_length '512' 2>&1 | tee log.txt
"""
LLAMA_FACTORY = """
export RATE=1e-5
RATE=2e-5
cd . && llamafactory-cli train lora.yaml lora_rank=32 learning_rate=$RATE; echo done
llamafactory-cli export merge.yaml
llamafactory-cli train lora.yaml lora_rank=64
"""
AXOLOTL = "axolotl train conf/lora.yaml --lora-r 8 --micro-batch-size=4 --no-sample-packing\n"
TUNE = "tune run --nproc_per_node 2 lora_dpo_distributed --config dpo.yaml model.lora_rank=4\n"
FILES = {
    "lora.yaml": "{model_name_or_path: owner/model, stage: sft, finetuning_type: lora, dataset: "
    "owner/set, lora_rank: 8, learning_rate: 1.0e-4}",
    "conf/lora.yaml": "{base_model: owner/model, adapter: lora, lora_r: 64, datasets: [{path: "
    "rows.jsonl, type: alpaca}]}",
    "dpo.yaml": "{model: {_component_: torchtune.models.llama3.lora_llama3_8b, lora_rank: 8}, "
    "checkpointer: {checkpoint_dir: owner/model}, tokenizer: {path: x}, dataset: {_component_: "
    "torchtune.datasets.chat_dataset, source: json, data_files: rows.json}}",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, text in FILES.items():
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(text)
    return tmp_path


@pytest.mark.parametrize(
    ("script", "title", "expected", "said", "unsaid"),
    [
        (
            SWIFT, "ms-swift",
            {
                "data.sources.0.path": "hf:owner/pairs", "data.sources.1.path": "other.jsonl",
                "training.method.type": "dpo", "training.finetuning_type": "full",
                "training.learning_rate": 1e-6, "data.checks.length.by": "cut_left",
            },
            [
                "max_steps: $(expr 9 / $N): only the shell knows the value",
                "NPROC_PER_NODE: 2: there, a step has the rows of 2 processes",
            ],
            ["ModelScope", "truncation", "old/model"],
        ),
        (
            TRL, "TRL",
            {
                "data.path": "rows.jsonl", "training.method.type": "dpo", "training.r": 64,
                "training.target_modules": ["q_proj", "v_proj"], "training.method.beta": 0.2,
                "training.gradient_checkpointing": False, "training.max_length": 512,
                "training.per_device_train_batch_size": 2,
                "training.gradient_accumulation_steps": 8, "training.learning_rate": 1e-6,
            },
            [
                "num_processes: 4: there, a step has the rows of 4 processes",
                "$EXTRA: only the shell knows",
                "eos_token: <|im_end|>: set training.eos_token",
                "output_dir: $OUT: artifacts go to runs/<name>" ,
            ],
            ["does not name its script", "tee"],
        ),
        (
            LLAMA_FACTORY, "LLaMA-Factory",
            {"data.path": "hf:owner/set", "training.r": 32, "training.learning_rate": 1e-4},
            ["learning_rate: $RATE: only the shell", "has 2 commands that train: the first"],
            ["echo", "lora_rank"],
        ),
        (
            AXOLOTL, "Axolotl",
            {
                "data.path": "rows.jsonl", "data.shape": "alpaca", "training.r": 8,
                "training.per_device_train_batch_size": 4, "training.packing": False,
            },
            [], ["sample_packing"],
        ),
        (
            TUNE, "torchtune", {"data.path": "rows.json", "training.r": 4},
            ["nproc_per_node: 2: there"], [],
        ),
        (
            "python -m trl.scripts.kto --model_name_or_path owner/model --dataset_name a.jsonl",
            "TRL", {"training.method.type": "kto", "training.finetuning_type": "full"}, [], [],
        ),
        (
            "trl distillation --model_name_or_path owner/model --dataset_name a.jsonl "
            "--teacher_model_name_or_path owner/large --max_completion_length 64 --beta 0.5",
            "TRL",
            {
                "training.method.type": "distillation", "training.method.beta": 0.5,
                "training.method.teacher_model_name_or_path": "owner/large",
                "training.method.max_completion_length": 64, "training.learning_rate": 1e-6,
            },
            [], ["beta", "teacher"],
        ),
        (
            "torchrun --nproc-per-node=1 src/train.py --stage rm --model_name_or_path owner/model "
            "--do_train --dataset owner/pairs --finetuning_type lora > log 2> err",
            "LLaMA-Factory", {"training.method.type": "reward"}, [], ["nproc", "log", "do_train"],
        ),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("folder")
def test_a_command_of_a_script_becomes_a_run(
    script: str, title: str, expected: dict[str, Any], said: list[str], unsaid: list[str]
) -> None:
    Path("train.sh").write_text(script)
    found, notes = write_foreign_run(Path("train.sh"), Path("run.yaml"))
    config = load_config(Path("run.yaml"), RunConfig)
    assert (found, config.base_model) == (title, "owner/model")
    read: dict[str, Any] = dict.fromkeys(expected, config)
    for key in expected:
        for name in key.split("."):
            read[key] = read[key][int(name)] if name.isdecimal() else getattr(read[key], name)
    assert read == expected
    text = "\n".join(notes)
    assert [word for word in said if word not in text] == [], text
    assert [word for word in unsaid if word in text] == [], text


@pytest.mark.parametrize(
    ("script", "problem", "hint"),
    [
        ("python train.py --model a", "has no command that trains; expected one of: swift sft", ""),
        ("trl sft --model_name_or_path 'a", "cannot be read as a script: No closing", ""),
        ("axolotl train none.yaml", "names the configuration none.yaml, which is not here", "none"),
        ("trl sft --model_name_or_path $1 --dataset_name a.json", "names no data or", "$1: only"),
        ("A=1\n" * 30_000, "has 120,000 characters", ""),
    ],
)
@pytest.mark.usefixtures("folder")
def test_a_script_that_cannot_be_read_is_an_error(script: str, problem: str, hint: str) -> None:
    Path("train.sh").write_text(script)
    with pytest.raises(ConfigError) as caught:
        write_foreign_run(Path("train.sh"), Path("run.yaml"))
    assert problem in caught.value.message
    assert hint in (caught.value.hint or "")
    assert not Path("run.yaml").exists()


PIECES = st.sampled_from(
    ["trl sft", " --model_name_or_path", " a", " --dataset_name=b.json", "\n", "\\\n", '"', "'",
     "$A", "${A[@]}", "${A:-x}", "A=", "(", ")", "`", " #", ";", " --config", " lora.yaml", "|",
     "\nA=1\n", " x=", "\\"]
)  # fmt: skip


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(pieces=st.lists(PIECES, max_size=25))
def test_no_script_ends_in_a_traceback(folder: Path, pieces: list[str]) -> None:
    out = folder / "run.yaml"
    out.unlink(missing_ok=True)
    (folder / "train.sh").write_text("".join(pieces))
    try:
        title, _ = write_foreign_run(folder / "train.sh", out)
    except ConfigError as error:
        assert str(folder) in error.message or "training." in error.message
    else:
        assert title in {"TRL", "LLaMA-Factory"}

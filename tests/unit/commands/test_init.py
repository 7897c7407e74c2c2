from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.commands import tuneline_here
from training import DataFacts, check_data
from training.data.rows import Counts
from tuneline.core.config import load_config
from tuneline.core.environment import gpu_names
from tuneline.models.source import embedded_base, resolve_model
from tuneline.pipeline import first_run
from tuneline.pipeline.check import check_run
from tuneline.pipeline.run_config import RunConfig, load_run

EXAMPLE_BASE = Path(__file__).parents[3] / "examples" / "tiny-base"


def _init(folder: Path, *args: str) -> Any:
    with contextlib.chdir(folder):
        return tuneline_here("init", *args)


def _rows(path: Path, *rows: dict[str, Any]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


QUESTIONS = [
    {"prompt": f"Say {n}.", "completion": "yes " * n, "chosen": "a", "rejected": "b",
     "label": n % 2 == 0} for n in range(1, 61)
]  # fmt: skip


@pytest.mark.parametrize(
    ("columns", "method", "kind"),
    [
        (["prompt", "completion"], "sft", "answer"),
        (["prompt", "chosen", "rejected"], "dpo", "preference"),
        (["prompt", "completion", "label"], "kto", "label"),
        (["prompt"], "grpo", "prompt"),
    ],
)
def test_the_kind_of_rows_chooses_the_method(
    tmp_path: Path, columns: list[str], method: str, kind: str
) -> None:
    _rows(tmp_path / "my_rows.jsonl", *[{k: row[k] for k in columns} for row in QUESTIONS])
    done = _init(tmp_path, "--data", "my_rows.jsonl", "--base", "tiny-base", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["kind"] == kind
    config = load_config(tmp_path / "run.yaml", RunConfig)
    assert config.name == "my-rows"
    assert config.training.method.type == method
    longest = json.loads(done.stdout)["longest_row_tokens"]
    assert config.training.max_length % 64 == 0
    # A prompt is trained with the answers that the model gives.
    answer = 256 if method == "grpo" else 0
    assert 0 <= config.training.max_length - longest - answer < 64
    assert config.evaluation.max_new_tokens >= answer
    assert config.data.heldout_fraction == 0.2
    text = (tmp_path / "run.yaml").read_text()
    assert f"60 rows of kind {kind}" in text
    # The base has a hidden size of 256, and few rows make few steps.
    training, is_new = config.training, method == "sft"
    assert training.num_train_epochs == (10 if is_new else 3)
    assert training.load_best_model_at_end == is_new
    assert (training.learning_rate == 2e-3) == is_new
    assert ("The base has a hidden size of 256" in text) == is_new


@pytest.mark.parametrize(
    ("num_rows", "epochs", "reason"),
    [
        (60, 10, "60 rows make 4 steps per epoch, and 200 steps are wanted; at most 10 epochs."),
        (400, 8, "400 rows make 25 steps per epoch, and 200 steps are wanted."),
        (2_000, 3, "2,000 rows."),
        (20_000, 2, "20,000 rows."),
        (200_000, 1, "200,000 rows."),
    ],
)
def test_few_rows_are_read_more_often(num_rows: int, epochs: int, reason: str) -> None:
    facts = DataFacts(Counts(num_rows), "answer", 90, 80, 60, 30, num_rows)
    chosen, *others = first_run._epochs(facts, -(-num_rows // 16))
    assert (chosen.value, chosen.reason) == (epochs, reason)
    assert [choice.key for choice in others] == (
        ["training.load_best_model_at_end"] if epochs > 3 else []
    )


def test_prompts_with_an_answer_in_another_column_say_how_it_is_learned(tmp_path: Path) -> None:
    _rows(tmp_path / "rows.jsonl", *({"prompt": f"Say {n}.", "answer": "a"} for n in range(20)))
    done = _init(tmp_path, "--data", "rows.jsonl", "--base", "tiny-base")
    assert done.returncode == 0
    command = "add: --column completion=answer"
    assert f"If answer is the answer to learn, remove run.yaml and {command}" in done.stdout
    (tmp_path / "run.yaml").unlink()
    added = _init(
        tmp_path, "--data", "rows.jsonl", "--base", "tiny-base", "--column", "completion=answer"
    )
    assert "20 rows of kind answer" in added.stdout
    assert "--column" not in added.stdout


def test_rows_that_cannot_be_read_are_named_before_the_base_is_loaded(tmp_path: Path) -> None:
    _rows(tmp_path / "rows.jsonl", {"question": "a", "answer": "b"})
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "base" / "model.safetensors").write_bytes(b"\2\0\0\0\0\0\0\0{}")
    done = _init(tmp_path, "--data", "rows.jsonl", "--base", "base")
    assert done.returncode == 2
    assert "--column prompt=question --column completion=answer" in done.stderr
    columns = ["--column", "prompt=question", "--column", "completion=answer"]
    done = _init(tmp_path, "--data", "rows.jsonl", "--base", "base", *columns)
    assert done.returncode == 3
    assert "tokenizer" in done.stderr


def test_the_written_run_passes_its_check(tmp_path: Path) -> None:
    """Answers are short, so the server takes fewer tokens than a load test asks for by default."""
    rows = [{"prompt": f"Say {n}.", "completion": f"yes {n}", "context": "x"} for n in range(60)]
    _rows(tmp_path / "rows.jsonl", *rows)
    done = _init(tmp_path, "--data", "rows.jsonl", "--base", "tiny-base")
    assert done.returncode == 0
    assert "not trained on: context" in done.stdout
    assert "Not trained on: the columns context." in (tmp_path / "run.yaml").read_text()
    run = load_run(tmp_path / "run.yaml", runs_dir=tmp_path / "runs")
    assert run.config.serving.max_model_len is not None
    assert run.config.serving.max_model_len < 128
    assert check_run(run).warnings == []
    # The base model is in bfloat16, in which a CPU's answers differ from the proof's.
    assert run.config.serving.dtype == ("auto" if gpu_names() else "float32")
    assert run.config.loadtest.max_client_lag_s == (None if gpu_names() else 0.25)


def test_a_base_without_a_chat_template_gets_one(tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(resolve_model("tiny-base").path, base)
    (base / "chat_template.jinja").unlink()
    rows = [{"prompt": f"Say {n}.", "completion": f"yes {n}"} for n in range(60)]
    _rows(tmp_path / "rows.jsonl", *rows)
    done = _init(tmp_path, "--data", "rows.jsonl", "--base", "base")
    assert done.returncode == 0, done.stderr
    run = load_run(tmp_path / "run.yaml", runs_dir=tmp_path / "runs")
    assert run.config.data.chat_template == "alpaca"
    assert "The base model has no chat template." in (tmp_path / "run.yaml").read_text()
    found = check_data(
        run.config.training, resolve_model("base", relative_to=tmp_path), run.config.data, tmp_path
    )
    assert found["chat template"] == "every prompt is a prefix of its row"


@pytest.mark.parametrize(("num_words", "fits", "num_new"), [(200, False, 50), (40, True, 89)])
def test_the_tokenizer_limits_the_context_too(
    tmp_path: Path, num_words: int, fits: bool, num_new: int
) -> None:
    """The check derives the context as vLLM does, by the tokenizer's limit as well."""
    base = Path(shutil.copytree(EXAMPLE_BASE, tmp_path / "base"))
    config = json.loads((base / "tokenizer_config.json").read_text())
    (base / "tokenizer_config.json").write_text(json.dumps({**config, "model_max_length": 100}))
    _rows(tmp_path / "rows.jsonl", {"prompt": "Say it.", "completion": "yes " * num_words})
    done = _init(tmp_path, "--data", "rows.jsonl", "--base", "base")
    assert done.returncode == 0, done.stderr
    written = load_config(tmp_path / "run.yaml", RunConfig)
    assert written.training.max_length == 100
    assert written.serving.max_model_len == 100
    text = (tmp_path / "run.yaml").read_text()
    assert ("data.checks.length: fix drops" in text) != fits
    assert written.evaluation.max_new_tokens == num_new
    assert "As many as the base model's context has room for." in text


def test_a_base_whose_files_name_no_sizes_gets_a_run_too(tmp_path: Path) -> None:
    shutil.copytree(embedded_base(), tmp_path / "base")
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    del config["num_attention_heads"]  # as in a Mamba
    (tmp_path / "base" / "config.json").write_text(json.dumps(config))
    _rows(tmp_path / "rows.jsonl", *[{"prompt": f"a {n}", "completion": "b"} for n in range(60)])
    done = _init(tmp_path, "--data", "rows.jsonl", "--base", "base")
    assert done.returncode == 0, done.stderr
    assert "memory of a step is not known" in (tmp_path / "run.yaml").read_text()


def test_rows_that_cannot_be_read_are_dropped_in_the_run_too(tmp_path: Path) -> None:
    rows = [{"prompt": f"Say {n}.", "completion": f"yes {n}"} for n in range(60)]
    _rows(tmp_path / "rows.jsonl", *rows, {"prompt": "And this?", "completion": ""})
    arguments = ("--data", "rows.jsonl", "--base", "tiny-base")
    refused = _init(tmp_path, *arguments)
    assert refused.returncode == 2
    assert "--drop-bad-rows" in refused.stderr
    done = _init(tmp_path, *arguments, "--drop-bad-rows", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["num_rows"] == 60
    assert load_config(tmp_path / "run.yaml", RunConfig).data.bad_rows == "drop"
    text = (tmp_path / "run.yaml").read_text()
    # A fifth of 60 rows is held out, and no row counts that was not read.
    assert "60 rows of kind answer" in text
    assert "random sample" not in text
    assert "3 rows per step, so that an epoch has about 16 steps." in text


def test_the_held_out_rows_of_the_example_are_found(tmp_path: Path) -> None:
    (tmp_path / "tickets").mkdir()
    _rows(tmp_path / "tickets" / "train.jsonl", *[{"prompt": "a", "completion": "b"}] * 9)
    _rows(tmp_path / "tickets" / "heldout.jsonl", {"prompt": "c", "completion": "d " * 200})
    (tmp_path / "runs").mkdir()
    out = "runs/run.yaml"
    done = _init(tmp_path, "--data", "tickets/train.jsonl", "--base", "tiny-base", "--out", out)
    assert done.returncode == 0, done.stderr
    config = load_config(tmp_path / out, RunConfig)
    assert (config.name, config.data.path) == ("tickets", "../tickets/train.jsonl")
    assert config.data.heldout_path == "../tickets/heldout.jsonl"
    # The longest row is a held-out one.
    assert config.training.max_length > 192


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ((), "--data and --base are required here"),
        (("--base", "tiny-base"), "--data is required here"),
        (("--data", "rows.jsonl"), "--base is required here"),
        (("--data", "none.csv", "--base", "tiny-base"), "it starts from this folder"),
        (("--data", "mixed.jsonl", "--base", "tiny-base"), "rows of several kinds: 1 of kind ans"),
        # Before a base model is downloaded and the data are measured.
        (("--data", "none.csv", "--base", "none", "--out", "rows.jsonl"), "rows.jsonl: exists"),
        (("--data", "rows.jsonl", "--base", "tiny-base", "--out", "no/run.yaml"), "does not exist"),
        (("--from", "none.yaml"), "no such file; expected a configuration"),
        (("--from", "a.yaml", "--data", "rows.jsonl"), "--data: has no meaning with --from"),
    ],
)
def test_a_request_that_cannot_be_met_is_an_error(
    tmp_path: Path, arguments: tuple[str, ...], problem: str
) -> None:
    _rows(tmp_path / "rows.jsonl", {"prompt": "a", "completion": "b"})
    _rows(tmp_path / "mixed.jsonl", {"prompt": "a", "completion": "b"}, {"prompt": "a"})
    done = _init(tmp_path, *arguments)
    assert done.returncode == 2
    assert problem in done.stderr
    assert not (tmp_path / "run.yaml").exists()


@pytest.mark.parametrize(
    ("call", "flags", "words"),
    [
        (
            "<tool_call>\n{{ m.tool_calls[0].function | tojson }}\n</tool_call>",
            {"tool_call_parser": "hermes", "enable_auto_tool_choice": True},
            "the chat template writes calls in the form of this parser",
        ),
        ("call {{ m.tool_calls[0].function.name }}", {}, "no parser is known for the calls of"),
    ],
    ids=["hermes", "unknown"],
)
def test_rows_with_tools_choose_the_parser_of_their_calls(
    tmp_path: Path, call: str, flags: dict[str, Any], words: str
) -> None:
    base = Path(shutil.copytree(EXAMPLE_BASE, tmp_path / "base"))
    (base / "chat_template.jinja").write_text(
        "{{ tools | tojson if tools else '' }}{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{% if m.tool_calls %}" + call + "{% else %}{{ m.content }}{% endif %}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    asked = {"type": "function", "function": {"name": "ping", "arguments": "{}"}}
    row = {
        "messages": [
            {"role": "user", "content": "Is it on?"},
            {"role": "assistant", "tool_calls": [asked]},
        ],
        "tools": [{"type": "function", "function": {"name": "ping"}}],
    }
    _rows(tmp_path / "rows.jsonl", *[row] * 20)
    done = _init(tmp_path, "--data", "rows.jsonl", "--base", "base")
    assert done.returncode == 0, done.stderr
    written = (tmp_path / "run.yaml").read_text()
    assert load_config(tmp_path / "run.yaml", RunConfig).serving.extra_args == flags
    assert words in " ".join(written.replace("# ", " ").split())

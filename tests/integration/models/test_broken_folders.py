"""A broken model folder gives the same exit code from every command."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file, save_file

from serving.supervisor.diagnosis import why_not_loaded
from tests.commands import tuneline_here
from tuneline.core.artifact import new_artifact
from tuneline.core.errors import ArtifactError, ServerError
from tuneline.core.reference import REFERENCE_FILE, Continuation, write_continuations
from tuneline.models.source import ModelSource, embedded_base

Damage = Callable[[Path], Any]


def config_with(**values: object) -> Damage:
    def damage(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return damage


def without_a_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def cut(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])


# A name has the error that transformers 5.19 raises, where transformers refuses the folder.
DAMAGES: dict[str, Damage] = {
    "no configuration": lambda folder: (folder / "config.json").unlink(),
    "configuration is cut": lambda folder: (folder / "config.json").write_text('{"model_type": '),
    "configuration is a list": lambda folder: (folder / "config.json").write_text("[]"),
    "unknown architecture: ValueError": config_with(model_type="unheard"),
    "unknown activation: KeyError": config_with(hidden_act="unheard"),
    "text for a number: StrictDataclassError": config_with(hidden_size="wide"),
    "no heads: ZeroDivisionError": config_with(num_attention_heads=0),
    "unknown number format: AttributeError": config_with(dtype="float99"),
    "negative vocabulary: RuntimeError": config_with(vocab_size=-5),
    "padding token past the vocabulary: AssertionError": config_with(pad_token_id=10**6),
    "no weights": lambda folder: (folder / "model.safetensors").unlink(),
    "weights are cut: SafetensorError": cut,
    "a tensor is missing": without_a_tensor,
    "tokenizer is cut: JSONDecodeError": lambda folder: (folder / "tokenizer.json").write_text("{"),
}  # fmt: skip

COMMANDS: dict[str, list[str]] = {
    "check": ["check", "{run}"],
    "train": ["train", "{run}", "--runs-dir", "{tmp}/runs"],
    "evaluate": ["evaluate", "{run}", "--runs-dir", "{tmp}/runs"],
    "export form torchscript": [
        "export", "form", "torchscript", "--model", "{model}", "--out", "{tmp}/out",
    ],
    "export form onnx-logits": [
        "export", "form", "onnx-logits", "--model", "{model}", "--out", "{tmp}/out",
    ],
    "prove": [
        "prove", "--reference", "{reference}", "--candidate", "{model}", "--out", "{tmp}/out",
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reference") / "reference"
    answer = Continuation(
        messages=[{"role": "user", "content": "Hello"}], prompt_token_ids=[1], token_ids=[2],
        logprobs=[-0.5], top_logprobs=[{2: -0.5}], text="", finish_reason="stop",
    )  # fmt: skip
    config = {"max_new_tokens": 4, "top_logprobs": 1}
    with new_artifact(folder, "reference", config=config) as draft:
        write_continuations(draft.dir / REFERENCE_FILE, [answer])
    return folder


def broken(tmp_path: Path, damage: str) -> Path:
    folder = tmp_path / "model"
    shutil.copytree(embedded_base(), folder)
    DAMAGES[damage](folder)
    return folder


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("damage", DAMAGES)
def test_every_command_ends_with_exit_code_3(
    tmp_path: Path, reference: Path, damage: str, command: str
) -> None:
    folder = broken(tmp_path, damage)
    row = {"instruction": "Hello", "output": "Good day."}
    rows = [{**row, "instruction": f"Hello {number}"} for number in range(12)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = {"name": "broken", "base_model": str(folder), "data": {"path": "rows.jsonl"}}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run))
    names = {
        "{run}": str(tmp_path / "run.yaml"), "{tmp}": str(tmp_path), "{model}": str(folder),
        "{reference}": str(reference),
    }  # fmt: skip
    words = COMMANDS[command]
    for name, value in names.items():
        words = [word.replace(name, value) for word in words]
    done = tuneline_here(*words)
    assert (done.returncode, "Traceback" in done.stderr) == (3, False), done.stderr
    assert "model" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("damage", [name for name in DAMAGES if name != "no configuration"])
def test_a_server_that_dies_of_a_broken_folder_says_so(tmp_path: Path, damage: str) -> None:
    folder = broken(tmp_path, damage)
    death = ServerError("vLLM died while loading")
    found = why_not_loaded(death, ModelSource("m", folder, "sha256:0", "base-model"))
    assert isinstance(found, ArtifactError)
    assert found.exit_code == 3
    assert found.message.startswith("vLLM died while loading\n")
    assert str(folder) in found.message


def test_a_server_that_dies_of_something_else_is_a_server_error() -> None:
    death = ServerError("vLLM died while loading")
    sound = ModelSource("tiny-base", embedded_base(), "sha256:0", "base-model")
    assert why_not_loaded(death, sound) is death

"""JSON of another form than it should have: an error that names the file, before a byte is read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from export.config import MergeConfig
from export.merge.merge import merge
from tests.integration.export import families
from tests.integration.export.merging import edit_json, refusal, with_header
from tuneline.models.source import resolve_model

CONFIG, OPTIONS, INDEX = "config.json", "adapter_config.json", "model.safetensors.index.json"
TOKENIZER, GENERATION, TEMPLATE = "tokenizer.json", "generation_config.json", "chat_template.jinja"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("made")
    base = families.make_base(folder / "base", "llama")
    return base, families.make_adapter(folder / "adapter", base)


@pytest.fixture
def folders(made: tuple[Path, Path], tmp_path: Path) -> dict[str, Path]:
    names = ("base", "adapter")
    return {name: Path(shutil.copytree(made[i], tmp_path / name)) for i, name in enumerate(names)}


OPTION_VALUES: list[tuple[str, Any]] = [
    ("rank_pattern", ["q_proj"]),
    ("rank_pattern", {"q_proj": "4"}),
    ("rank_pattern", {"(": 4}),
    ("alpha_pattern", {"q_proj": None}),
    ("modules_to_save", 5),
    ("modules_to_save", [None]),
    ("modules_to_save", "lm_head"),
    ("target_modules", [5]),
    ("target_modules", "("),
    ("target_parameters", "gate_up_proj"),
    ("exclude_modules", 3),
    ("layers_to_transform", "1"),
    ("layers_pattern", ["("]),
    ("trainable_token_indices", "3"),
    ("lora_alpha", 10**400),
    ("lora_alpha", float("nan")),
    ("lora_alpha", None),
    ("r", "8"),
    ("r", 0),
    ("r", True),
    ("bias", "some"),
    ("use_dora", "no"),
]


@pytest.mark.parametrize(("option", "value"), OPTION_VALUES, ids=lambda value: str(value)[:20])
def test_an_option_of_another_type(
    option: str, value: Any, folders: dict[str, Path], tmp_path: Path
) -> None:
    edit_json(folders["adapter"] / OPTIONS, **{option: value})
    message = refusal(folders["base"], folders["adapter"], tmp_path / "out")
    assert f"{folders['adapter'] / OPTIONS}: {option}" in message


# The folder, the file and what it then holds.
FILES: dict[str, tuple[str, str, str | bytes]] = {
    "adapter-deep": ("adapter", OPTIONS, "[" * 200_000),
    "adapter-digits": ("adapter", OPTIONS, '{"r": ' + "9" * 5000 + "}"),
    "config-deep": ("base", CONFIG, '{"a":' * 100_000),
    "config-digits": ("base", CONFIG, '{"vocab_size": ' + "9" * 5000 + "}"),
    "config-not-utf-8": ("base", CONFIG, b"\xff\xfe{}"),
    "config-empty": ("base", CONFIG, "{}"),
    "tokenizer-model-null": ("adapter", TOKENIZER, '{"model": null}'),
    "tokenizer-vocabulary-null": ("adapter", TOKENIZER, '{"model": {"vocab": {"a": null}}}'),
    "tokenizer-vocabulary-text": ("adapter", TOKENIZER, '{"model": {"vocab": "a"}}'),
    "tokenizer-token-without-id": (
        "adapter", TOKENIZER, '{"model": {"vocab": {"a": 1}}, "added_tokens": [{"content": "b"}]}',
    ),
    "tokenizer-cut": ("adapter", TOKENIZER, '{"model": '),
    "tokenizer-config": ("adapter", "tokenizer_config.json", '{"chat_template": 5}'),
    "tokenizer-config-of-the-base": ("base", "tokenizer_config.json", "{oops"),
    "special-tokens": ("adapter", "special_tokens_map.json", "[1]"),
    "generation-cut": ("adapter", GENERATION, "{oops"),
    "generation-of-the-base": ("base", GENERATION, "{oops"),
    "generation-stop-text": ("adapter", GENERATION, '{"eos_token_id": "2"}'),
    "template-not-utf-8": ("adapter", TEMPLATE, b"\xff\xfe{{ messages }}"),
    "processor-of-the-base": ("base", "preprocessor_config.json", "[]"),
}  # fmt: skip


@pytest.mark.parametrize("case", FILES)
def test_a_file_of_another_form(case: str, folders: dict[str, Path], tmp_path: Path) -> None:
    folder, name, content = FILES[case]
    file = folders[folder] / name
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    message = refusal(folders["base"], folders["adapter"], tmp_path / "out")
    assert f"{file}: " in message
    assert len(message) < 500


@pytest.mark.parametrize(
    ("option", "value"),
    [("quantization_config", "x"), ("tie_word_embeddings", "no"), ("model_type", None),
     ("num_hidden_layers", "2"), ("text_config", 5), ("text_config", {"num_hidden_layers": 0}),
     ("vocab_size", "320")],
)  # fmt: skip
def test_a_configuration_of_another_type(
    option: str, value: Any, folders: dict[str, Path], tmp_path: Path
) -> None:
    edit_json(folders["base"] / CONFIG, **{option: value})
    message = refusal(folders["base"], folders["adapter"], tmp_path / "out")
    assert f"{folders['base'] / CONFIG}: {option}" in message


@pytest.mark.parametrize(
    "damage",
    [
        lambda index: index.update(weight_map=dict.fromkeys(index["weight_map"], 5)),
        lambda index: index.update(weight_map=[]),
        lambda index: index.update(weight_map={}),
        lambda index: index.update(metadata=[1]),
    ],
)
def test_an_index_of_another_form(
    damage: Callable[[dict[str, Any]], Any], folders: dict[str, Path], tmp_path: Path
) -> None:
    base = folders["base"]
    weights = base / "model.safetensors"
    index = {"weight_map": dict.fromkeys(load_file(weights), "one.safetensors")}
    weights.rename(base / "one.safetensors")
    (base / INDEX).write_text(json.dumps(index))
    merge(MergeConfig(), resolve_model(str(base)), folders["adapter"], tmp_path / "whole")
    damage(index)
    (base / INDEX).write_text(json.dumps(index))
    assert f"{base / INDEX}: " in refusal(base, folders["adapter"], tmp_path / "out")


@pytest.mark.parametrize("metadata", [[1], {"format": 5}, "pt"])
def test_a_header_with_metadata_of_another_form(
    metadata: Any, folders: dict[str, Path], tmp_path: Path
) -> None:
    file = folders["base"] / "model.safetensors"
    content = with_header(file.read_bytes(), lambda header: header.update(__metadata__=metadata))
    file.write_bytes(content)
    message = refusal(folders["base"], folders["adapter"], tmp_path / "out")
    assert f"{file}: corrupt header: __metadata__" in message


def test_a_directory_where_the_weights_should_be(folders: dict[str, Path], tmp_path: Path) -> None:
    file = folders["adapter"] / "adapter_model.safetensors"
    file.unlink()
    file.mkdir()
    message = refusal(folders["base"], folders["adapter"], tmp_path / "out")
    assert f"{file}: no such file" in message

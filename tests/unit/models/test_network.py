from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tuneline.core.errors import ArtifactError
from tuneline.models.network import read_network

CONFIG = {
    "model_type": "llama", "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "intermediate_size": 16, "vocab_size": 50,
    "tie_word_embeddings": False,
}  # fmt: skip


def _folder(folder: Path, config: dict[str, object]) -> Path:
    (folder / "config.json").write_text(json.dumps(config))
    first = {"model.embed_tokens.weight": np.zeros((50, 8), np.float16)}
    second = {"model.layers.0.mlp.up_proj.weight": np.zeros((16, 8), np.float32)}
    save_file(first, folder / "model-00001-of-00002.safetensors")
    save_file(second, folder / "model-00002-of-00002.safetensors")
    return folder


def test_sizes_come_from_the_configuration_and_all_headers(tmp_path: Path) -> None:
    network = read_network(_folder(tmp_path, CONFIG))
    assert (network.query_size, network.key_value_size) == (8, 4)
    assert network.num_parameters == 400 + 128
    assert network.file_bytes == 2 * 400 + 4 * 128


def test_weights_that_the_model_does_not_load_do_not_count(tmp_path: Path) -> None:
    before = read_network(_folder(tmp_path, CONFIG))
    index = {name: "model-00001-of-00002.safetensors" for name in before.tensors if "emb" in name}
    index |= {name: "model-00002-of-00002.safetensors" for name in before.tensors if "mlp" in name}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    for name in ("consolidated", "adapter_model"):
        save_file({"again": np.zeros((50, 8), np.float16)}, tmp_path / f"{name}.safetensors")
    after = read_network(tmp_path)
    assert after == before and len(index) == 2


def test_a_section_for_text_and_other_names_are_read(tmp_path: Path) -> None:
    text = {"n_embd": 12, "n_layer": 3, "n_head": 3, "vocab_size": 50}
    network = read_network(_folder(tmp_path, {"model_type": "x", "text_config": text}))
    assert (network.num_layers, network.hidden_size, network.intermediate_size) == (3, 12, 48)


def test_a_missing_size_is_named(tmp_path: Path) -> None:
    config = {key: value for key, value in CONFIG.items() if key != "vocab_size"}
    with pytest.raises(ArtifactError, match="vocab_size is missing; expected a positive") as caught:
        read_network(_folder(tmp_path, config))
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    "content",
    [
        b"not a header", b"", b"\x02" + 7 * b"\0" + b"[]", b"\x09" + 7 * b"\0" + b'{"a": 12}',
        b"\x0f" + 7 * b"\0" + b'{"a": {"b": 1}}', b"\xff" * 8 + b"{}",
    ],
)  # fmt: skip
def test_a_file_without_a_header_is_named(tmp_path: Path, content: bytes) -> None:
    folder = _folder(tmp_path, CONFIG)
    (folder / "model-00002-of-00002.safetensors").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"00002-of-00002\.safetensors: the header"):
        read_network(folder)

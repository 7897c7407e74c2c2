"""One opinion of what an adapter may hold, for merging and for serving."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tuneline.core.errors import ArtifactError
from tuneline.models.adapter_config import (
    foreign_options,
    read_adapter_config,
    require_servable,
    served_rank,
)

PLAIN = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj"]}


def read(folder: Path, **options: Any) -> dict[str, Any]:
    (folder / "adapter_config.json").write_text(json.dumps({**PLAIN, **options}))
    return read_adapter_config(folder)


def test_an_adapter_one_level_below_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError) as caught:
        read_adapter_config(tmp_path)
    assert caught.value.hint is None
    for name in ("style", "tone"):
        (tmp_path / name).mkdir()
        read(tmp_path / name)
    with pytest.raises(ArtifactError, match="no such file; expected a PEFT") as caught:
        read_adapter_config(tmp_path)
    assert caught.value.hint == f"Try: {tmp_path / 'style'}, or {tmp_path / 'tone'}"


def test_an_adapter_of_mlx_lm_is_named(tmp_path: Path) -> None:
    written = {"fine_tune_type": "lora", "lora_parameters": {"rank": 8}, "num_layers": 16}
    (tmp_path / "adapter_config.json").write_text(json.dumps(written))
    with pytest.raises(ArtifactError, match="adapter of mlx-lm; expected a PEFT") as caught:
        read_adapter_config(tmp_path)
    assert f"mlx_lm.fuse --model BASE --adapter-path {tmp_path}" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("rank", "allowed"), [(1, 1), (2, 8), (8, 8), (9, 16), (48, 64), (300, 320), (512, 512)]
)
def test_a_rank_is_rounded_up_to_what_vllm_takes(rank: int, allowed: int) -> None:
    assert served_rank({"r": rank}) == allowed


def test_the_highest_rank_of_any_module_counts() -> None:
    assert served_rank({"r": 4, "rank_pattern": {"v_proj": 20}}) == 32
    assert served_rank({"r": 4, "rank_pattern": None}) == 8


def test_a_rank_beyond_vllms_is_refused() -> None:
    with pytest.raises(ArtifactError, match="rank 513") as caught:
        served_rank({"r": 513})
    assert caught.value.hint is not None
    assert "serving.mode=merged" in caught.value.hint


@pytest.mark.parametrize("option", [{"use_rslora": True}, {"bias": "none"}, {"revision": None}, {}])
def test_a_plain_adapter_is_merged_and_served(tmp_path: Path, option: dict[str, Any]) -> None:
    config = read(tmp_path, **option)
    assert foreign_options(config) == []
    require_servable(config, tmp_path)


@pytest.mark.parametrize(
    "option",
    [
        {"use_dora": True}, {"modules_to_save": ["lm_head"]}, {"bias": "all"}, {"lora_bias": True},
        {"trainable_token_indices": [5]},
    ],
)  # fmt: skip
def test_some_adapters_are_merged_and_not_served(tmp_path: Path, option: dict[str, Any]) -> None:
    config = read(tmp_path, **option)
    assert foreign_options(config) == []
    with pytest.raises(ArtifactError, match=next(iter(option))) as caught:
        require_servable(config, tmp_path)
    assert "serving.mode=merged" in str(caught.value)


@pytest.mark.parametrize(
    "option",
    [{"init_lora_weights": "pissa"}, {"use_qalora": True}, {"layer_replication": [[0, 4]]}],
)
def test_some_adapters_are_neither_merged_nor_served(
    tmp_path: Path, option: dict[str, Any]
) -> None:
    config = read(tmp_path, **option)
    assert len(foreign_options(config)) == 1
    with pytest.raises(ArtifactError, match=next(iter(option))):
        require_servable(config, tmp_path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "not JSON"), ("[]", "expected a JSON object"), ('{"r": 8}', "peft_type is None"),
        ('{"peft_type": "LOHA"}', "peft_type is 'LOHA'"),
        ('{"peft_type": "LORA", "r": "eight"}', "r: Input should be a valid integer"),
        ('{"peft_type": "LORA", "rank_pattern": {"(": 4}}', "not a pattern"),
    ],
)  # fmt: skip
def test_a_damaged_configuration_is_refused(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "adapter_config.json").write_text(content)
    with pytest.raises(ArtifactError, match=r"adapter_config\.json: ") as caught:
        read_adapter_config(tmp_path)
    assert said in caught.value.message


def test_a_folder_without_a_configuration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="expected a PEFT adapter folder"):
        read_adapter_config(tmp_path)
    with pytest.raises(ArtifactError, match="r is missing"):
        require_servable({"peft_type": "LORA"}, tmp_path)

"""Refusals of the merge: each by name, before anything is written, with nothing left behind."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from export.config import MergeConfig
from export.merge.merge import merge
from tests.integration.export import families
from tests.integration.export.merging import (
    as_artifact,
    edit_json,
    edit_tensors,
    refusal,
    run_merge,
    with_header,
)
from tuneline.core.errors import ArtifactError, DiskFullError
from tuneline.models.source import resolve_model

WEIGHTS = "adapter_model.safetensors"
Q_PROJ = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("made")
    base = families.make_base(folder / "base", "llama", torch.bfloat16)
    return base, families.make_adapter(folder / "adapter", base)


@pytest.fixture
def base(made: tuple[Path, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(made[0], tmp_path / "base"))


@pytest.fixture
def adapter(made: tuple[Path, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(made[1], tmp_path / "adapter"))


ADAPTER_DAMAGE: dict[str, tuple[Callable[[dict[str, torch.Tensor]], Any], str]] = {
    "nan": (
        lambda t: t[f"{Q_PROJ}.lora_A.weight"].view(-1)[3:4].fill_(float("nan")),
        rf"{Q_PROJ}.lora_A.weight: holds NaN or infinity",
    ),
    "infinity": (
        lambda t: t[f"{Q_PROJ}.lora_B.weight"].view(-1)[7:8].fill_(float("-inf")),
        rf"{Q_PROJ}.lora_B.weight: holds NaN or infinity",
    ),
    "shape": (
        lambda t: t.update({f"{Q_PROJ}.lora_A.weight": torch.ones(8, 32)}),
        rf"{Q_PROJ}.lora_A.weight: has shape [8, 32]; expected [8, 64]",
    ),
    "rank": (
        lambda t: t.update({f"{Q_PROJ}.lora_B.weight": torch.ones(64, 4)}),
        rf"{Q_PROJ}.lora_B.weight: has shape [64, 4]; expected [64, 8]",
    ),
    "no-such-layer": (
        lambda t: t.update({Q_PROJ.replace("0", "7") + ".lora_A.weight": torch.ones(8, 64)}),
        "model.layers.7.self_attn.q_proj: has lora_A; expected lora_A and lora_B",
    ),
    "no-such-module": (
        lambda t: t.update(
            {
                "base_model.model.model.layers.9.x_proj.lora_A.weight": torch.ones(8, 64),
                "base_model.model.model.layers.9.x_proj.lora_B.weight": torch.ones(64, 8),
            }
        ),
        "model.layers.9.x_proj.lora_A.weight: the base",
    ),
    "half-a-pair": (
        lambda t: t.pop(f"{Q_PROJ}.lora_B.weight"),
        "model.layers.0.self_attn.q_proj: has lora_A; expected lora_A and lora_B",
    ),
    "a-lost-layer": (
        lambda t: (t.pop(f"{Q_PROJ}.lora_A.weight"), t.pop(f"{Q_PROJ}.lora_B.weight")),
        "has nothing for model.layers.0.self_attn.q_proj",
    ),
    "unknown-kind": (
        lambda t: t.update({f"{Q_PROJ}.lora_C.weight": torch.ones(8, 8)}),
        f"{Q_PROJ}.lora_C.weight",
    ),
    "not-peft-names": (
        lambda t: t.update({"model.layers.0.q_proj.lora_A.weight": torch.ones(8, 8)}),
        "model.layers.0.q_proj.lora_A.weight: is a tensor of an unknown kind",
    ),
    "bias-not-asked-for": (
        lambda t: t.update({f"{Q_PROJ}.bias": torch.ones(64)}),
        f"{Q_PROJ}.bias: is a bias; expected none, because the option bias is 'none'",
    ),
    "magnitude-not-asked-for": (
        lambda t: t.update({f"{Q_PROJ}.lora_magnitude_vector": torch.ones(64)}),
        "is a magnitude vector; expected none, because use_dora is off",
    ),
    "integers": (
        lambda t: t.update({f"{Q_PROJ}.lora_A.weight": torch.ones(8, 64, dtype=torch.int8)}),
        f"{Q_PROJ}.lora_A.weight: is stored as I8",
    ),
    "empty": (lambda t: t.clear(), "holds no tensors"),
}


@pytest.mark.parametrize("case", ADAPTER_DAMAGE)
def test_a_damaged_adapter_is_refused(case: str, base: Path, adapter: Path, tmp_path: Path) -> None:
    damage, message = ADAPTER_DAMAGE[case]
    edit_tensors(adapter / WEIGHTS, damage)
    assert message in refusal(base, adapter, tmp_path / "out")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("layer_replication", [[0, 2], [1, 2]]),
        ("alora_invocation_tokens", [1, 2]),
        ("use_qalora", True),
        ("arrow_config", {"top_k": 3}),
        ("kasa_config", {"beta": 1}),
        ("megatron_config", {"x": 1}),
        ("init_lora_weights", "pissa"),
        ("an_option_of_tomorrow", True),
    ],
)
def test_an_option_that_changes_the_meaning_is_refused_by_name(
    option: str, value: Any, base: Path, adapter: Path, tmp_path: Path
) -> None:
    edit_json(adapter / "adapter_config.json", **{option: value})
    assert f"{option}={value!r}" in refusal(base, adapter, tmp_path / "out")


def test_another_peft_method_is_refused(base: Path, adapter: Path, tmp_path: Path) -> None:
    edit_json(adapter / "adapter_config.json", peft_type="OFT")
    message = refusal(base, adapter, tmp_path / "out")
    assert "peft_type: 'OFT' is not supported by the merge; expected one of" in message
    assert "LORA" in message


def test_a_pickled_adapter_is_refused(base: Path, adapter: Path, tmp_path: Path) -> None:
    (adapter / WEIGHTS).rename(adapter / "adapter_model.bin")
    message = refusal(base, adapter, tmp_path / "out")
    assert "holds only pickled weights (adapter_model.bin)" in message


def test_a_folder_that_is_not_an_adapter_is_refused(base: Path, tmp_path: Path) -> None:
    assert "no such folder" in refusal(base, tmp_path / "nowhere", tmp_path / "out")
    assert "adapter_config.json: no such file" in refusal(base, base, tmp_path / "out")


def test_an_adapter_without_its_weights_is_refused(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    (adapter / WEIGHTS).unlink()
    assert f"{WEIGHTS}: no such file" in refusal(base, adapter, tmp_path / "out")


FILE_DAMAGE: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "truncated-data": (lambda c: c[:-10], "truncated: its header describes"),
    "truncated-header": (lambda c: c[:40], "truncated: the header takes"),
    "empty": (lambda _: b"", "not a safetensors file"),
    "longer": (lambda c: c + b"x", "corrupt: its header describes"),
    "pickle": (lambda c: b"\x80\x02}q\x00." + c[6:], "not a safetensors file"),
    "lfs-pointer": (lambda _: b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
    "not-json": (lambda c: c[:8] + b"\xff" + c[9:], "corrupt header: not JSON"),
    "a-list": (lambda _: (2).to_bytes(8, "little") + b"[]", "expected a JSON object"),
    "unknown-dtype": (
        lambda c: with_header(c, lambda h: h["model.norm.weight"].update(dtype="BF17")),
        "cannot read the entry of model.norm.weight",
    ),
    "wrong-shape": (
        lambda c: with_header(c, lambda h: h["model.norm.weight"].update(shape=[65])),
        "model.norm.weight: 128 bytes do not hold BF16 of shape [65]",
    ),
    "negative": (
        lambda c: with_header(c, lambda h: h["model.norm.weight"].update(shape=[-1, -64])),
        "model.norm.weight: a shape or an offset is not a count",
    ),
    "overlap": (
        lambda c: with_header(
            c,
            lambda h: h["model.norm.weight"].update(
                data_offsets=[x - 2 for x in h["model.norm.weight"]["data_offsets"]]
            ),
        ),
        "corrupt header",
    ),
}


@pytest.mark.parametrize("case", FILE_DAMAGE)
def test_a_damaged_base_is_refused(case: str, base: Path, adapter: Path, tmp_path: Path) -> None:
    damage, message = FILE_DAMAGE[case]
    file = base / "model.safetensors"
    file.write_bytes(damage(file.read_bytes()))
    found = refusal(base, adapter, tmp_path / "out")
    assert message in found
    assert str(file) in found


@pytest.mark.parametrize("name", ["model.norm.weight", "model.layers.0.self_attn.q_proj.weight"])
def test_a_base_with_nan_is_refused(name: str, base: Path, adapter: Path, tmp_path: Path) -> None:
    edit_tensors(base / "model.safetensors", lambda t: t[name].view(-1)[5:6].fill_(float("nan")))
    assert f"{name}: " in refusal(base, adapter, tmp_path / "out")


def test_a_merge_that_overflows_its_dtype_is_refused(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    edit_tensors(adapter / WEIGHTS, lambda t: t[f"{Q_PROJ}.lora_B.weight"].fill_(1e5))
    source = resolve_model(str(base))
    with pytest.raises(ArtifactError, match=r"q_proj.weight: is merged to NaN or infinity \(F16\)"):
        merge(MergeConfig(dtype="float16"), source, adapter, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_quantized_base_is_refused(base: Path, adapter: Path, tmp_path: Path) -> None:
    edit_json(base / "config.json", quantization_config={"quant_method": "gptq"})
    assert "the model is quantized (gptq)" in refusal(base, adapter, tmp_path / "out")


def test_a_weight_stored_in_eight_bits_is_refused(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    name = "model.layers.0.self_attn.q_proj.weight"
    edit_tensors(
        base / "model.safetensors", lambda t: t.update({name: t[name].to(torch.float8_e4m3fn)})
    )
    assert f"{name} is stored as F8_E4M3" in refusal(base, adapter, tmp_path / "out")


INDEX_DAMAGE: dict[str, Callable[[dict[str, str]], Any]] = {
    "says is here\n  Try: download the folder again": lambda m: m.update(
        {"model.norm.weight": m[min(m)]}
    ),
    "no file holds model.ghost": lambda m: m.update({"model.ghost": m[min(m)]}),
    "no such file": lambda m: m.update({min(m): "model-00099.safetensors"}),
    "outside the folder": lambda m: m.update({min(m): "../model.safetensors"}),
}


@pytest.mark.parametrize("message", INDEX_DAMAGE)
def test_an_index_that_disagrees_with_its_shards_is_refused(
    message: str, adapter: Path, tmp_path: Path
) -> None:
    base = families.make_base(tmp_path / "base", "llama", torch.bfloat16, max_shard_size="60KB")
    index = base / "model.safetensors.index.json"
    values = json.loads(index.read_text())
    assert len(set(values["weight_map"].values())) > 2
    INDEX_DAMAGE[message](values["weight_map"])
    index.write_text(json.dumps(values))
    assert message in refusal(base, adapter, tmp_path / "out")


def test_an_adapter_of_another_base_is_refused_by_shape(adapter: Path, tmp_path: Path) -> None:
    other = families.make_base(tmp_path / "other", "llama-wide")
    message = refusal(other, adapter, tmp_path / "out")
    assert "to fit model.layers.0." in message
    assert "adapter belongs to another base" in message


def test_an_adapter_of_another_base_is_refused_by_digest(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    source = resolve_model(str(base))
    right = as_artifact(adapter, tmp_path / "right", source.digest)
    wrong = as_artifact(adapter, tmp_path / "wrong", "sha256:" + "1" * 64)
    merged = merge(MergeConfig(), source, right, tmp_path / "merged")
    assert merged.manifest.inputs[1].digest == right.digest
    for form in (wrong, wrong.path):  # a folder with a manifest is that artifact
        with pytest.raises(ArtifactError, match="was trained on a base with digest 111111111111;"):
            merge(MergeConfig(), source, form, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_artifact_of_another_kind_is_refused(base: Path, adapter: Path, tmp_path: Path) -> None:
    wrong = as_artifact(adapter, tmp_path / "wrong", "sha256:0", kind="dataset")
    assert "expected" in refusal(base, wrong, tmp_path / "out")
    assert "expected" in refusal(base, wrong.path, tmp_path / "out")


def test_a_tokenizer_larger_than_the_vocabulary_is_refused(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(adapter)
    tokenizer.add_tokens([f"<|new-{index}|>" for index in range(40)])
    tokenizer.save_pretrained(adapter)
    assert "the vocabulary was resized" in refusal(base, adapter, tmp_path / "out")
    tokenizer.save_pretrained(base)  # a base with such ids of its own, as Gemma 3's 1B
    run_merge(base, adapter, tmp_path / "out")


def test_an_existing_directory_is_not_overwritten(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(ArtifactError, match="exists already"):
        merge(MergeConfig(), resolve_model(str(base)), adapter, tmp_path / "out")


def test_too_little_space_is_refused_before_anything_is_written(
    base: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = shutil.disk_usage

    def nearly_full(path: Any) -> Any:
        return real(path)._replace(free=1_000_000)

    monkeypatch.setattr(shutil, "disk_usage", nearly_full)
    assert "1 MiB are free; expected" in refusal(base, adapter, tmp_path / "runs" / "out")
    assert not (tmp_path / "runs").exists()


def test_a_disk_that_fills_up_leaves_nothing(
    base: Path, adapter: Path, small_disk: Callable[[str], Path]
) -> None:
    disk = small_disk("128k")
    with pytest.raises(DiskFullError, match="the disk is full"):
        merge(MergeConfig(), resolve_model(str(base)), adapter, disk / "out")
    assert list(disk.iterdir()) == []


@pytest.mark.parametrize(
    ("named", "folder", "warns"),
    [
        ("Qwen/Qwen3-0.6B", "Qwen3-0.6B", False),
        ("/data/qwen3-0.6b/", "Qwen3-0.6B", False),
        ("Qwen/Qwen3-0.6B-Base", "Qwen3-0.6B", True),
        ("Qwen/Qwen3-0.6B", "models--Qwen--Qwen3-0.6B/snapshots/c1899de2", False),
        ("Qwen/Qwen3-0.6B-Base", "models--Qwen--Qwen3-0.6B/snapshots/c1899de2", True),
        (None, "Qwen3-0.6B", False),
    ],
)
def test_an_adapter_that_names_another_base_is_merged_with_a_warning(
    named: str | None,
    folder: str,
    warns: bool,
    made: tuple[Path, Path],
    adapter: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The shapes of a base model and of its chat model are the same."""
    base = Path(shutil.copytree(made[0], tmp_path / folder))
    edit_json(adapter / "adapter_config.json", base_model_name_or_path=named)
    run_merge(base, adapter, tmp_path / "out")
    assert (f"names {named} as its base" in caplog.text) == warns

"""A weighted sum of several adapters, against PEFT's `add_weighted_adapter` with `cat`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import safetensors.torch
import torch
import transformers

from export.config import MergeConfig
from export.merge.merge import merge
from tests.integration.export import families
from tests.integration.export.merging import assert_same_bits, edit_json, tensors
from tuneline.core.artifact import Artifact
from tuneline.core.errors import ArtifactError
from tuneline.models.source import resolve_model

Weighted = list[tuple[Path | Artifact, float]]


def run_sum(base: Path, adapters: Weighted, out: Path) -> Artifact:
    return merge(MergeConfig(), resolve_model(str(base)), adapters, out)


def peft_sum(base: Path, adapters: Weighted) -> dict[str, torch.Tensor]:
    """In float32: with a bfloat16 base, PEFT rounds the A and B of the sum to bfloat16."""
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    names = [f"adapter{index}" for index in range(len(adapters))]
    tuned = peft.PeftModel.from_pretrained(model, adapters[0][0], adapter_name=names[0])
    for name, (folder, _) in zip(names[1:], adapters[1:], strict=True):
        tuned.load_adapter(folder, name)
    weights = [weight for _, weight in adapters]
    tuned.add_weighted_adapter(names, weights, "sum", combination_type="cat")
    tuned.set_adapter("sum")
    return dict(tuned.merge_and_unload().state_dict())


OPTIONS: dict[str, tuple[str, list[dict[str, Any]], list[float]]] = {
    "two": ("llama", [{}, {"r": 4, "lora_alpha": 3}], [0.7, 0.5]),
    "three-one-against": ("qwen3", [{}, {"use_rslora": True}, {"r": 3}], [1.0, 0.25, -0.3]),
    "other-modules": (
        "mistral", [{"target_modules": ["q_proj"]}, {"target_modules": ["q_proj", "up_proj"]}],
        [0.6, 0.4],
    ),
    "conv1d": ("gpt2", [{}, {"lora_alpha": 7}], [0.5, 0.5]),
    "embedding": (
        "llama", [{"target_modules": ["q_proj", "embed_tokens"]} for _ in range(2)], [0.3, 0.8],
    ),
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("case", OPTIONS)
def test_a_sum_has_the_bits_of_peft_rounded_once(
    case: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    family, options, weights = OPTIONS[case]
    base = families.make_base(tmp_path / "base", family, dtype)
    adapters: Weighted = [
        (families.make_adapter(tmp_path / f"a{seed}", base, seed=seed, **chosen), weight)
        for seed, (chosen, weight) in enumerate(zip(options, weights, strict=True), start=1)
    ]
    merged = run_sum(base, adapters, tmp_path / "out")
    exact = peft_sum(base, adapters)
    assert_same_bits(merged.path, {name: exact[name].to(dtype) for name in exact}, base)
    assert merged.manifest.config["adapter_weights"] == weights
    assert len(merged.manifest.inputs) == 1 + len(adapters)


def test_a_sum_that_starts_with_rslora_has_each_adapters_own_scale(tmp_path: Path) -> None:
    """W + sum of weight * alpha / sqrt(rank) * BA. PEFT 0.21 scales the whole sum by sqrt(rank)."""
    base = families.make_base(tmp_path / "base", "llama")
    options: list[tuple[float, dict[str, Any]]] = [
        (0.7, {"use_rslora": True, "r": 4, "lora_alpha": 6}), (0.5, {"r": 2, "lora_alpha": 3}),
    ]  # fmt: skip
    adapters: Weighted = [
        (families.make_adapter(tmp_path / f"a{seed}", base, seed=seed, **chosen), weight)
        for seed, (weight, chosen) in enumerate(options, start=1)
    ]
    merged = tensors(run_sum(base, adapters, tmp_path / "out").path)
    name = "model.layers.0.self_attn.q_proj"
    expected = tensors(base)[f"{name}.weight"].double()
    for (folder, weight), scale in zip(adapters, (6 / 2, 3 / 2), strict=True):
        factors = safetensors.torch.load_file(Path(str(folder)) / "adapter_model.safetensors")
        b, a = (factors[f"base_model.model.{name}.lora_{side}.weight"].double() for side in "BA")
        expected += weight * scale * b @ a
    assert (merged[f"{name}.weight"].double() - expected).abs().max() < 1e-5
    of_peft = peft_sum(base, adapters)[f"{name}.weight"].double()
    assert (of_peft - expected).abs().max() > 0.1


def test_a_weight_scales_one_adapter(tmp_path: Path) -> None:
    """Twice the delta, by numpy's own arithmetic on the two results."""
    base = families.make_base(tmp_path / "base", "llama")
    adapter = families.make_adapter(tmp_path / "adapter", base)
    once = tensors(merge(MergeConfig(), resolve_model(str(base)), adapter, tmp_path / "a").path)
    twice = tensors(run_sum(base, [(adapter, 2.0)], tmp_path / "b").path)
    before = tensors(base)
    name = "model.layers.0.self_attn.q_proj.weight"
    delta = once[name].numpy() - before[name].numpy()
    assert abs(delta).max() > 0.1
    assert abs(twice[name].numpy() - before[name].numpy() - 2 * delta).max() < 1e-5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"use_dora": True}, "DoRA has no weighted share"),
        ({"modules_to_save": ["lm_head"]}, "lm_head.weight: a tensor saved whole has no weighted"),
        ({"trainable_token_indices": [3]}, "trained tokens has no weighted share"),
        ({"bias": "all"}, "a tensor saved whole has no weighted share"),
    ],
)
def test_a_change_without_a_weighted_share_is_refused(
    options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    family = "qwen2" if "bias" in options else "llama"
    base = families.make_base(tmp_path / "base", family)
    values = {"target_modules": ["q_proj"], **options}
    plain = families.make_adapter(tmp_path / "plain", base, target_modules=["q_proj"])
    other = families.make_adapter(tmp_path / "other", base, **values)
    with pytest.raises(ArtifactError, match=message):
        run_sum(base, [(plain, 0.5), (other, 0.5)], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_experts_cannot_be_summed(tmp_path: Path) -> None:
    base = families.make_base(tmp_path / "base", "mixtral")
    adapter = families.make_adapter(tmp_path / "adapter", base, target_modules="all-linear")
    with pytest.raises(ArtifactError, match="LoRA on fused experts has no weighted share"):
        run_sum(base, [(adapter, 0.5), (adapter, 0.5)], tmp_path / "out")


def test_adapters_of_different_templates_are_refused(tmp_path: Path) -> None:
    base = families.make_base(tmp_path / "base")
    one = families.make_adapter(tmp_path / "one", base)
    other = families.make_adapter(tmp_path / "other", base, seed=2)
    (other / "chat_template.jinja").write_text("another {{ messages }}")
    with pytest.raises(ArtifactError, match="its chat template differs from that of"):
        run_sum(base, [(one, 0.5), (other, 0.5)], tmp_path / "out")
    (other / "chat_template.jinja").unlink()
    merged = run_sum(base, [(one, 0.5), (other, 0.5)], tmp_path / "out")
    template = (merged.path / "chat_template.jinja").read_text()
    assert template == (one / "chat_template.jinja").read_text()


@pytest.mark.parametrize(
    ("what", "changed"),
    [
        ("chat template", "template-of-the-second"),
        ("chat template", "template-in-the-tokenizer-config"),
        ("tokenizer", "no-tokenizer-in-the-first"),
        ("eos_token_id", "other-stop-tokens"),
        ("eos_token_id", "stop-tokens-of-the-second"),
    ],
)
def test_a_prompt_that_only_one_adapter_has_is_refused(
    what: str, changed: str, tmp_path: Path
) -> None:
    base = families.make_base(tmp_path / "base")
    one = families.make_adapter(tmp_path / "one", base)
    other = families.make_adapter(tmp_path / "other", base, seed=2)
    if changed == "template-of-the-second":
        (one / "chat_template.jinja").unlink()
        (other / "chat_template.jinja").write_text("another {{ messages }}")
    elif changed == "template-in-the-tokenizer-config":
        (other / "chat_template.jinja").unlink()
        edit_json(other / "tokenizer_config.json", chat_template="another {{ messages }}")
    elif changed == "no-tokenizer-in-the-first":
        for file in one.glob("tokenizer*"):
            file.unlink()
        tokenizer = families.make_tokenizer()
        tokenizer.add_tokens(["<|another|>"])
        tokenizer.save_pretrained(other)
    else:
        if changed == "other-stop-tokens":
            (one / "generation_config.json").write_text('{"eos_token_id": [2, 9]}')
        (other / "generation_config.json").write_text('{"eos_token_id": 7}')
    with pytest.raises(ArtifactError, match=f"{other}: its {what} differs from that of {one}"):
        run_sum(base, [(one, 0.5), (other, 0.5)], tmp_path / "out")


def test_prompts_from_the_base_do_not_differ(tmp_path: Path) -> None:
    base = families.make_base(tmp_path / "base")
    one = families.make_adapter(tmp_path / "one", base)
    other = families.make_adapter(tmp_path / "other", base, seed=2)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (one / name).unlink()
    template = (other / "chat_template.jinja").read_text()
    (other / "chat_template.jinja").unlink()
    edit_json(other / "tokenizer_config.json", chat_template=template)
    (other / "generation_config.json").write_text('{"eos_token_id": [2]}')  # 2 in the base's
    run_sum(base, [(one, 0.5), (other, 0.5)], tmp_path / "out")


def test_an_adapter_of_other_options_is_named(tmp_path: Path) -> None:
    base = families.make_base(tmp_path / "base")
    one = families.make_adapter(tmp_path / "one", base)
    other = families.make_adapter(tmp_path / "other", base)
    edit_json(other / "adapter_config.json", layer_replication=[[0, 2]])
    with pytest.raises(ArtifactError, match=r"other/adapter_config.json: .*layer_replication"):
        run_sum(base, [(one, 0.5), (other, 0.5)], tmp_path / "out")
    assert json.loads((one / "adapter_config.json").read_text())["r"] == 8

"""Bases whose files name or store tensors otherwise than memory does: models of text and pictures,
and experts that lie fused on the disk."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file

from export.weights.blocks import block_rows
from tests.integration.export import families
from tests.integration.export.merging import edit_json, edit_tensors, refusal, run_merge, tensors

WEIGHTS = "adapter_model.safetensors"
LINEAR = ["q_proj", "o_proj", "in_proj_qkv", "down_proj"]

NAMES = [*families.NAMED_OTHERWISE]
# Training loads these by their text half.
TEXT_HALVES = ["qwen3.5", "qwen3.5-moe", "llama4"]
WITH_EXPERTS = [
    "qwen3.5-moe", "qwen3-vl-moe", "llama4", "llama4-text", "gpt-oss", "granite-moe", "jamba",
    "lfm2-moe",
]  # fmt: skip
CASES = [(name, False) for name in NAMES] + [(name, True) for name in TEXT_HALVES]


def loader_of(family: str, text_half: bool) -> Any:
    if text_half:
        return transformers.AutoModelForCausalLM
    return families.loader_of(families.NAMED_OTHERWISE[family]())


def make_base(folder: Path, family: str, dtype: torch.dtype = torch.float32) -> Path:
    return families.save_random(folder, families.NAMED_OTHERWISE[family](), dtype)


def make_adapter(folder: Path, base: Path, loader: Any, **options: Any) -> Path:
    torch.manual_seed(1)
    model = loader.from_pretrained(base)
    tuned = peft.get_peft_model(model, peft.LoraConfig(r=8, lora_alpha=12, **options))
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    tuned.save_pretrained(folder)
    return folder


def expert_parameters(base: Path, loader: Any) -> list[str]:
    """The `target_parameters` for which PEFT adapts the experts of every layer."""
    names = [name for name, value in loader.from_pretrained(base).named_parameters()
             if value.ndim == 3 and ".experts." in name]  # fmt: skip
    return sorted({name.partition("layers.")[2].partition(".")[2] for name in names})


def merged_state(base: Path, adapter: Path, loader: Any, dtype: Any) -> dict[str, torch.Tensor]:
    model = loader.from_pretrained(base, dtype=dtype)
    merged = peft.PeftModel.from_pretrained(model, adapter).merge_and_unload()
    return dict(merged.state_dict())


def assert_same_state(
    folder: Path, expected: dict[str, torch.Tensor], loader: Any, dtype: Any
) -> None:
    """The folder, loaded as the adapter's base was, holds PEFT's merge, bit by bit."""
    model, info = loader.from_pretrained(folder, dtype=dtype, output_loading_info=True)
    assert not info["missing_keys"] and not info["mismatched_keys"], info
    found = model.state_dict()
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert value.dtype == expected[name].dtype and torch.equal(value, expected[name]), name


def assert_only_changed(base: Path, merged: Path, parts: tuple[str, ...]) -> None:
    before, after = tensors(base), tensors(merged)
    assert list(before) == list(after)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(any(part in name for part in parts) for name in changed), changed


DTYPES = pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"]
)


@DTYPES
@pytest.mark.parametrize(("family", "text_half"), CASES)
def test_linear_layers_have_the_bits_of_peft(
    family: str, text_half: bool, dtype: torch.dtype, tmp_path: Path
) -> None:
    loader = loader_of(family, text_half)
    base = make_base(tmp_path / "base", family, dtype)
    adapter = make_adapter(tmp_path / "adapter", base, loader, target_modules=LINEAR)
    merged = run_merge(base, adapter, tmp_path / "out")
    expected = merged_state(base, adapter, loader, dtype)
    assert_same_state(merged.path, expected, loader, dtype)
    assert_only_changed(base, merged.path, (*LINEAR, "output_linear"))


@DTYPES
@pytest.mark.parametrize(
    ("family", "text_half"), [case for case in CASES if case[0] in WITH_EXPERTS]
)
def test_experts_have_the_bits_of_peft(
    family: str, text_half: bool, dtype: torch.dtype, tmp_path: Path
) -> None:
    loader = loader_of(family, text_half)
    base = make_base(tmp_path / "base", family, dtype)
    parameters = expert_parameters(base, loader)
    assert [name.rpartition(".")[2] for name in parameters] == ["down_proj", "gate_up_proj"]
    adapter = make_adapter(
        tmp_path / "adapter", base, loader, target_modules=["q_proj"], target_parameters=parameters
    )
    merged = run_merge(base, adapter, tmp_path / "out")
    expected = merged_state(base, adapter, loader, dtype)
    assert_same_state(merged.path, expected, loader, dtype)
    parts = ("q_proj", ".experts.", "input_linear", "output_linear")
    assert_only_changed(base, merged.path, parts)


@pytest.mark.parametrize(
    ("family", "text_class", "targets"),
    [
        ("gemma3", transformers.Gemma3ForCausalLM, ["q_proj", "down_proj"]),
        ("mistral3", transformers.MistralForCausalLM, ["o_proj", "lm_head"]),
    ],
)
def test_an_adapter_of_a_class_of_the_text_half_goes_onto_the_whole(
    family: str, text_class: Any, targets: list[str], tmp_path: Path
) -> None:
    """transformers does not load these classes from the whole model's files; other trainers do."""
    base = make_base(tmp_path / "base", family)
    loader = families.loader_of(families.NAMED_OTHERWISE[family]())
    whole = loader.from_pretrained(base, dtype=torch.float32)
    text = text_class(whole.config.text_config)
    text.load_state_dict(
        {name.replace("language_model.", "", 1): value for name, value in whole.state_dict().items()
         if "language_model" in name or name == "lm_head.weight"}
    )  # fmt: skip
    text.save_pretrained(tmp_path / "text")
    options = {"target_modules": targets}
    adapter = make_adapter(tmp_path / "adapter", tmp_path / "text", text_class, **options)
    merged = run_merge(base, adapter, tmp_path / "out")
    live = peft.PeftModel.from_pretrained(text.eval(), adapter)
    ids = torch.randint(3, families.VOCABULARY, (3, 16), generator=torch.Generator().manual_seed(5))
    found = loader.from_pretrained(merged.path, dtype=torch.float32)
    with torch.inference_mode():
        expected, logits = (network(input_ids=ids).logits for network in (live, found))
    assert float((whole(input_ids=ids).logits - expected).abs().max()) > 0.1
    assert float((logits - expected).abs().max()) < 1e-4
    assert_only_changed(base, merged.path, tuple(targets))


def test_transposed_experts_have_the_bits_of_peft(tmp_path: Path) -> None:
    """Qwen3-VL-MoE is published with (experts, in, out), and turned as it is loaded."""
    loader = transformers.AutoModelForImageTextToText
    base = make_base(tmp_path / "base", "qwen3-vl-moe")
    options = {"target_modules": ["q_proj"], "target_parameters": expert_parameters(base, loader)}
    adapter = make_adapter(tmp_path / "adapter", base, loader, **options)
    expected = merged_state(base, adapter, loader, torch.float32)
    shapes = {name: value.shape for name, value in tensors(base).items()}
    edit_tensors(
        base / "model.safetensors",
        lambda t: t.update(
            {name: value.transpose(1, 2).contiguous()
             for name, value in t.items() if ".experts." in name}
        ),
    )  # fmt: skip
    assert any(value.shape != shapes[name] for name, value in tensors(base).items())
    merged = run_merge(base, adapter, tmp_path / "out")
    assert_same_state(merged.path, expected, loader, torch.float32)


@pytest.mark.parametrize("family", ["gpt-oss", "granite-moe"])
def test_blocks_that_end_within_an_expert_have_the_bits_of_peft(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("export.weights.blocks.BLOCK_BYTES", 1)
    loader = transformers.AutoModelForCausalLM
    config = families.NAMED_OTHERWISE[family]()
    config.hidden_size, config.intermediate_size = 208, 176
    assert {stop - start for start, stop in block_rows(4 * 208, 176)} == {118, 119}
    base = families.save_random(tmp_path / "base", config, torch.float32)
    options = {"target_modules": ["q_proj"], "target_parameters": expert_parameters(base, loader)}
    adapter = make_adapter(tmp_path / "adapter", base, loader, **options)
    merged = run_merge(base, adapter, tmp_path / "out")
    expected = merged_state(base, adapter, loader, torch.float32)
    assert_same_state(merged.path, expected, loader, torch.float32)


@pytest.fixture(scope="module")
def gpt_oss(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("made")
    loader = transformers.AutoModelForCausalLM
    base = make_base(folder / "base", "gpt-oss")
    options = {"target_modules": ["q_proj"], "target_parameters": expert_parameters(base, loader)}
    return base, make_adapter(folder / "adapter", base, loader, **options)


EXPERTS = "base_model.model.model.layers.0.mlp.experts"
DAMAGE: dict[str, Callable[[dict[str, torch.Tensor]], Any]] = {
    "has lora_A; expected lora_A and lora_B": lambda t: t.pop(f"{EXPERTS}.lora_B.weight"),
    "do not fit 4 experts": lambda t: t.update({f"{EXPERTS}.lora_A.weight": torch.ones(32, 7)}),
    "which target_parameters in": lambda t: [
        t.pop(name) for name in list(t) if name.startswith(EXPERTS)
    ],
    "which another module of the adapter changes too": lambda t: t.update(
        {name.replace("experts.lora", "experts.base_layer.lora"): value.clone()
         for name, value in t.items() if name.startswith(f"{EXPERTS}.lora")}
    ),
    "has no tensor model.vision.proj": lambda t: t.update(
        {f"base_model.model.model.vision.proj.lora_{side}.weight": torch.ones(8, 8)
         for side in "AB"}
    ),
}  # fmt: skip


@pytest.mark.parametrize("message", DAMAGE)
def test_a_damaged_adapter_of_fused_experts_is_refused(
    message: str, gpt_oss: tuple[Path, Path], tmp_path: Path
) -> None:
    adapter = Path(shutil.copytree(gpt_oss[1], tmp_path / "adapter"))
    edit_tensors(adapter / WEIGHTS, DAMAGE[message])
    assert message in refusal(gpt_oss[0], adapter, tmp_path / "out")


def test_a_base_of_no_known_family_is_refused(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", "gemma3")
    loader = transformers.AutoModelForImageTextToText
    adapter = make_adapter(tmp_path / "adapter", base, loader, target_modules=LINEAR)
    edit_json(base / "config.json", model_type="unheard-of", architectures=["Unheard"])
    message = refusal(base, adapter, tmp_path / "out")
    assert "has no tensor model.language_model.layers.0" in message


def test_a_model_of_text_and_pictures_stays_tied(tmp_path: Path) -> None:
    """Its text half ties the output layer; one that comes untied has no place in its files."""
    base = make_base(tmp_path / "base", "gemma3")
    loader = transformers.AutoModelForImageTextToText
    adapter = make_adapter(tmp_path / "adapter", base, loader, target_modules=["embed_tokens"])
    assert "text and pictures" in refusal(base, adapter, tmp_path / "out")


def test_another_dtype_is_that_of_both_halves(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", "qwen3.5", torch.bfloat16)
    loader = transformers.AutoModelForImageTextToText
    adapter = make_adapter(tmp_path / "adapter", base, loader, target_modules=LINEAR)
    merged = run_merge(base, adapter, tmp_path / "out", "float32")
    config = json.loads((merged.path / "config.json").read_text())
    halves = [config, config["text_config"], config["vision_config"]]
    assert {half.get("dtype") for half in halves} == {"float32"}
    for way in (loader, transformers.AutoModelForCausalLM):
        assert way.from_pretrained(merged.path, dtype="auto").dtype == torch.float32


def difference(base: Path, adapter: Path, merged: Path, loader: Any) -> float:
    """Of the merged folder's logits from the live model's."""
    live = peft.PeftModel.from_pretrained(
        loader.from_pretrained(base, dtype=torch.float32), adapter
    )
    found = loader.from_pretrained(merged, dtype=torch.float32)
    ids = torch.randint(3, families.VOCABULARY, (3, 16), generator=torch.Generator().manual_seed(5))
    with torch.inference_mode():
        logits = [network.eval()(input_ids=ids).logits for network in (live, found)]
    return float((logits[0] - logits[1]).abs().max())


def test_a_head_that_predicts_further_tokens_is_not_the_output_layer(tmp_path: Path) -> None:
    base = families.make_base(tmp_path / "base", "qwen3-next")
    loader = transformers.AutoModelForCausalLM
    further = "mtp.lm_head.weight"
    edit_tensors(base / "model.safetensors", lambda t: t.update({further: torch.ones(320, 64)}))
    options = {"target_modules": ["q_proj", "lm_head"]}
    adapter = make_adapter(tmp_path / "adapter", base, loader, **options)
    merged = run_merge(base, adapter, tmp_path / "out")
    assert torch.equal(tensors(merged.path)[further], torch.ones(320, 64))
    assert difference(base, adapter, merged.path, loader) < 1e-4


@pytest.mark.parametrize("family", ["mistral3", "gemma3"])
def test_tensors_that_differ_are_not_tied_unless_the_config_says_so(
    family: str, tmp_path: Path
) -> None:
    config = families.NAMED_OTHERWISE[family]()
    config.tie_word_embeddings = config.text_config.tie_word_embeddings = False
    base = families.save_random(tmp_path / "base", config, torch.float32)
    loader = transformers.AutoModelForImageTextToText
    said = json.loads((base / "config.json").read_text())
    for half in (said, said["text_config"]):
        half.pop("tie_word_embeddings", None)
    (base / "config.json").write_text(json.dumps(said))
    options = {"target_modules": ["q_proj", "lm_head"]}
    adapter = make_adapter(tmp_path / "adapter", base, loader, **options)
    merged = run_merge(base, adapter, tmp_path / "out")
    assert difference(base, adapter, merged.path, loader) < 1e-4


def test_an_adapter_of_the_half_that_sees_pictures_is_merged(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", "qwen2.5-vl")
    loader = transformers.AutoModelForImageTextToText
    options = {
        "target_modules": ["qkv", "gate_proj", "down_proj"],
        "exclude_modules": r".*language_model.*",
    }
    adapter = make_adapter(tmp_path / "adapter", base, loader, **options)
    merged = run_merge(base, adapter, tmp_path / "out")
    expected = merged_state(base, adapter, loader, torch.float32)
    assert_same_state(merged.path, expected, loader, torch.float32)
    assert_only_changed(base, merged.path, ("visual.",))


def test_an_adapter_that_lost_one_of_its_halves_is_refused(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", "qwen2.5-vl")
    loader = transformers.AutoModelForImageTextToText
    targets = r"model\.language_model\..*q_proj|model\.visual\..*qkv"
    adapter = make_adapter(tmp_path / "adapter", base, loader, target_modules=targets)
    edit_tensors(
        adapter / WEIGHTS,
        lambda t: [t.pop(name) for name in list(t) if "language_model" in name],
    )
    message = refusal(base, adapter, tmp_path / "out")
    assert "has nothing for model.language_model.layers.0.self_attn.q_proj" in message


def test_names_that_only_the_files_have_are_not_demanded(tmp_path: Path) -> None:
    """The files of Granite call its fused experts as memory calls layers of its shared block."""
    config = transformers.GraniteMoeSharedConfig(
        **families.SMALL, **families.LOCAL, shared_intermediate_size=48
    )
    base = families.save_random(tmp_path / "base", config, torch.float32)
    loader = transformers.AutoModelForCausalLM
    options = {"target_modules": ["q_proj", "input_linear", "output_linear"]}
    adapter = make_adapter(tmp_path / "adapter", base, loader, **options)
    merged = run_merge(base, adapter, tmp_path / "out")
    expected = merged_state(base, adapter, loader, torch.float32)
    assert_same_state(merged.path, expected, loader, torch.float32)
    assert_only_changed(base, merged.path, ("q_proj", "shared_mlp."))


@pytest.mark.parametrize(
    ("family", "targets"),
    [
        ("llama", ["q_proj", "down_proj"]),
        ("qwen3", ["v_proj", "embed_tokens"]),
        ("mixtral", ["q_proj"]),
    ],
)
def test_an_adapter_of_an_embedding_model_is_merged(
    family: str, targets: list[str], tmp_path: Path
) -> None:
    """sentence-transformers trains the model without its output layer, so the adapter's names lack
    the first component of the names in the files."""
    base = families.save_random(tmp_path / "base", families.FAMILIES[family](), torch.float32)
    options: dict[str, Any] = {"target_modules": targets, "task_type": "FEATURE_EXTRACTION"}
    if family == "mixtral":
        options["target_parameters"] = ["mlp.experts.gate_up_proj"]
    loader = transformers.AutoModel
    adapter = make_adapter(tmp_path / "adapter", base, loader, **options)
    assert "base_model.model.layers.0.self_attn" in str([*tensors(adapter)])
    merged = run_merge(base, adapter, tmp_path / "out")
    ids = torch.arange(9)[None]
    live = peft.PeftModel.from_pretrained(loader.from_pretrained(base), adapter).eval()
    with torch.inference_mode():
        before, expected, found = (
            model(input_ids=ids).last_hidden_state
            for model in (loader.from_pretrained(base), live, loader.from_pretrained(merged.path))
        )
    assert (expected - before).abs().max() > 0.01
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("parts", ["whole", "layers"])
@pytest.mark.parametrize(
    "targets",
    ["all-linear", ["q_proj", "down_proj"], r".*layers\.\d\.(_orig_mod\.)?mlp\..*_proj"],
)
def test_an_adapter_of_a_compiled_model_is_merged(
    parts: str, targets: str | list[str], tmp_path: Path
) -> None:
    """PEFT loads such an adapter only onto a model that is compiled in the same way; onto another
    one it adds nothing, and warns or stops."""
    base = families.make_base(tmp_path / "base", "llama-tied")

    def compiled() -> Any:
        model = transformers.AutoModelForCausalLM.from_pretrained(base)
        if parts == "whole":
            return torch.compile(model, backend="eager")
        layers = model.model.layers
        for index, layer in enumerate(layers):
            layers[index] = torch.compile(layer, backend="eager")
        return model

    torch.manual_seed(1)
    pattern = "up_proj" if parts == "whole" else r"_orig_mod\.mlp\.up_proj"
    tuned = peft.get_peft_model(
        compiled(),
        peft.LoraConfig(
            target_modules=targets, task_type="CAUSAL_LM", r=4, alpha_pattern={pattern: 3}
        ),
    )
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    tuned.save_pretrained(tmp_path / "adapter")
    named = load_file(tmp_path / "adapter" / WEIGHTS)
    assert named and all("_orig_mod." in name for name in named if "lm_head" not in name)
    live = peft.PeftModel.from_pretrained(compiled(), tmp_path / "adapter")
    with torch.compiler.set_stance("force_eager"):  # the names are the compiler's, not the graph
        expected = families._logits(live, families.VOCABULARY)
    merged = run_merge(base, tmp_path / "adapter", tmp_path / "out")
    found = families.merged_logits(merged.path)
    assert (found - families.merged_logits(base)).abs().max() > 0.1
    assert (found - expected).abs().max() < 1e-5


def test_a_resized_model_of_text_and_pictures_is_refused(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", "gemma3")
    edit_json(base / "config.json", vocab_size=320)
    loader = transformers.AutoModelForImageTextToText
    adapter = make_adapter(tmp_path / "adapter", base, loader, target_modules=["q_proj"])
    resized = {
        f"base_model.model.{name}.weight": torch.zeros(326, 64)
        for name in ("model.language_model.embed_tokens", "lm_head")
    }
    edit_tensors(adapter / WEIGHTS, lambda t: t.update(resized))
    assert "resizes the vocabulary" in refusal(base, adapter, tmp_path / "out")


@pytest.mark.parametrize(
    "damage",
    [
        {"vision_config": [1]},
        {"architectures": 5},
        {"architectures": []},
        {"vision_config": {"num_hidden_layers": "x"}},
        {"vision_config": {"model_type": "siglip_vision_model", "num_attention_heads": 0}},
    ],
)
def test_a_damaged_configuration_is_refused_by_name(damage: dict[str, Any], tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", "gemma3")
    loader = transformers.AutoModelForImageTextToText
    adapter = make_adapter(tmp_path / "adapter", base, loader, target_modules=LINEAR)
    edit_json(base / "config.json", **damage)
    if damage == {"architectures": []}:
        run_merge(base, adapter, tmp_path / "out")  # the family says enough
    else:
        message = refusal(base, adapter, tmp_path / "out")
        assert "has no tensor model.language_model" in message or "architectures" in message

"""Quantized mixtures of experts: what is stored, what is computed of it, and what a proof catches.

The oracles are compressed-tensors' own compressor, expert by expert, and an arithmetic written out
here: codes times scales, one token and one expert at a time.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization.utils.helpers import calculate_qparams
from safetensors.torch import save_file

from export import form_name, resolve_form
from export.config import MergeConfig, ParityConfig
from export.merge.merge import merge
from export.parity import prove_model
from export.quantize.schemes import FORMATS
from export.runtimes.transformers_folder import load_model
from tests.integration.export import families
from tests.integration.export.merging import edit_json, edit_tensors, tensors
from tests.integration.export.quantize.test_quantize import SCHEMES, run_quantize
from tests.unit.export.quantize.test_schemes import library_scheme
from tuneline.core.artifact import Artifact
from tuneline.core.errors import ArtifactError
from tuneline.core.files import MANIFEST
from tuneline.core.parity import Parity
from tuneline.models.source import resolve_model

SIZES = {
    **families.SMALL, "hidden_size": 128, "intermediate_size": 128, "num_attention_heads": 2,
    "num_key_value_heads": 1,
}  # fmt: skip
FEW = {"num_experts": 4, "num_experts_per_tok": 2}
EXPERTS = {**FEW, "moe_intermediate_size": 128, "mlp_only_layers": []}
ROUTED = {
    **SIZES, "moe_intermediate_size": 128, "n_routed_experts": 4, "num_experts_per_tok": 2,
    "n_group": 1, "topk_group": 1, "n_shared_experts": 1, "first_k_dense_replace": 1,
}  # fmt: skip
LATENT = {
    **ROUTED, "num_key_value_heads": 2, "kv_lora_rank": 32, "q_lora_rank": 32,
    "qk_rope_head_dim": 32, "qk_nope_head_dim": 32, "v_head_dim": 32, "topk_method": "noaux_tc",
}  # fmt: skip
MIXTURES: dict[str, Callable[[], Any]] = {
    "mixtral": lambda: transformers.MixtralConfig(
        **SIZES, num_local_experts=4, num_experts_per_tok=2
    ),
    "olmoe": lambda: transformers.OlmoeConfig(**SIZES, **FEW),
    "qwen2_moe": lambda: transformers.Qwen2MoeConfig(
        **SIZES, **{**EXPERTS, "mlp_only_layers": [1]}, shared_expert_intermediate_size=64
    ),
    "qwen3_moe": lambda: transformers.Qwen3MoeConfig(**SIZES, **EXPERTS, head_dim=64),
    "qwen3_next": lambda: transformers.Qwen3NextConfig(
        **SIZES, **EXPERTS, head_dim=64, shared_expert_intermediate_size=64,
        **{**families.LINEAR_ATTENTION, "linear_key_head_dim": 32, "linear_value_head_dim": 32},
    ),
    "glm4_moe": lambda: transformers.Glm4MoeConfig(**ROUTED, head_dim=64, use_qk_norm=True),
    "glm4_moe_lite": lambda: transformers.Glm4MoeLiteConfig(**LATENT),
    "deepseek_v2": lambda: transformers.DeepseekV2Config(
        **{**LATENT, "q_lora_rank": None, "topk_method": "greedy"}
    ),
    "deepseek_v3": lambda: transformers.DeepseekV3Config(**LATENT),
}  # fmt: skip
SPARSE_LAYERS = {
    "qwen2_moe": [0], "glm4_moe": [1], "glm4_moe_lite": [1], "deepseek_v2": [1], "deepseek_v3": [1],
}  # fmt: skip
"""The layers with experts, of families that do not have them in both layers."""
DENSE: dict[str, Callable[[], Any]] = {
    "nanochat": lambda: transformers.NanoChatConfig(**SIZES),
    "mamba2": lambda: transformers.Mamba2Config(
        **families.SMALL, num_heads=8, head_dim=16, n_groups=1, state_size=16
    ),
    "recurrent-gemma": lambda: transformers.RecurrentGemmaConfig(
        **{**SIZES, "num_hidden_layers": 3}, head_dim=64
    ),
    "gpt-neox": lambda: transformers.GPTNeoXConfig(**{**SIZES, "num_hidden_layers": 3}),
    "hrm": lambda: transformers.HrmTextConfig(**SIZES, H_cycles=1, L_cycles=1),
}
LOADED_HERE = [
    ("nanochat", "w4a16"), ("mamba2", "w4a16"), ("recurrent-gemma", "w4a16"), ("gpt-neox", "int8"),
    ("hrm", "int8"), ("hrm", "w4a16"),
]  # fmt: skip
ROUTERS = {
    "mixtral": ["block_sparse_moe.gate"], "olmoe": ["mlp.gate"], "qwen3_moe": ["mlp.gate"],
    "qwen2_moe": ["mlp.gate", "mlp.shared_expert_gate"],
    "qwen3_next": ["mlp.gate", "mlp.shared_expert_gate"], "glm4_moe": ["mlp.gate"],
    "glm4_moe_lite": ["mlp.gate"], "deepseek_v2": ["mlp.gate"], "deepseek_v3": ["mlp.gate"],
}  # fmt: skip
STATE_GATES = {"qwen3_next": ["model.layers.0.linear_attn.in_proj_ba"]}
BOTH = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


def make_base(folder: Path, family: str, dtype: torch.dtype = torch.bfloat16, **save: Any) -> Path:
    return families.save_random(folder, MIXTURES[family](), dtype, **save)


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("family", MIXTURES)
def test_each_expert_is_stored_as_the_library_stores_it(
    family: str, name: str, tmp_path: Path
) -> None:
    base = make_base(tmp_path / "base", family)
    made = run_quantize(base, name, tmp_path / "out")
    before, after = tensors(base), tensors(made.path)
    scheme = library_scheme(name)
    if name == "w4a16":
        scheme.weights.group_size = 32
    compressor = BaseCompressor.get_value_from_registry(FORMATS[name])
    layers = SPARSE_LAYERS.get(family, [0, 1])
    experts = [key for key in before if re.fullmatch(r".+\.experts\.\d\.\w+\.weight", key)]
    assert len(experts) == len(layers) * 4 * 3
    for key in experts:
        weight = before[key]
        groups = weight.float().reshape(len(weight), -1, scheme.weights.group_size or 128)
        scale, _ = calculate_qparams(groups.amin(2), groups.amax(2), scheme.weights)
        scale = scale.to(torch.bfloat16)
        state = {"weight": weight.float(), "weight_scale": scale.float()}
        expected = {**compressor.compress(state, scheme), "weight_scale": scale}
        module = key.removesuffix(".weight")
        found = {
            part.removeprefix(f"{module}."): after[part]
            for part in after if part.startswith(f"{module}.")
        }  # fmt: skip
        assert found.keys() == expected.keys()
        for part, value in found.items():
            assert value.dtype == expected[part].dtype, (key, part)
            assert torch.equal(value.view(torch.uint8), expected[part].view(torch.uint8))

    routers = [f"model.layers.{layer}.{router}" for layer in layers for router in ROUTERS[family]]
    routers += STATE_GATES.get(family, [])
    said = json.loads((made.path / "config.json").read_text())["quantization_config"]
    assert sorted(said["ignore"]) == sorted(["lm_head", *routers])
    for router in routers:
        assert torch.equal(after[f"{router}.weight"], before[f"{router}.weight"])
    linear = {key for key, value in before.items() if ".layers." in key and value.ndim == 2}
    quantized = linear - {f"{router}.weight" for router in routers}
    assert made.manifest.metrics["num_quantized_tensors"] == len(quantized)
    assert all(f"{key}_scale" in after for key in quantized)


@pytest.mark.parametrize(
    ("family", "name"), [("mixtral", "fp8"), ("qwen2_moe", "w4a16"), ("qwen3_moe", "int8")]
)
def test_one_pass_gives_the_bytes_of_two(family: str, name: str, tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", family, max_shard_size="100KB")
    assert len(list(base.glob("*.safetensors"))) > 3
    options: dict[str, Any] = {"target_modules": ["q_proj"], "target_parameters": BOTH}
    adapter = families.make_adapter(tmp_path / "adapter", base, **options)
    source = resolve_model(str(base))
    config = MergeConfig.model_validate({"quantize": name, "group_size": 32})
    at_once = merge(config, source, adapter, tmp_path / "at-once")
    merged = merge(MergeConfig(), source, adapter, tmp_path / "merged")
    in_two = run_quantize(merged.path, name, tmp_path / "in-two")
    assert at_once.digest == in_two.digest
    network, _ = load_model(at_once.path)  # its shards, by their index
    assert sum("experts" in key for key in network.state_dict()) == (2 if "2" in family else 4)
    assert at_once.digest != run_quantize(base, name, tmp_path / "base-alone").digest


def by_hand(path: Path, name: str, out: Path) -> Any:
    """The model that a quantized folder stands for: a plain folder of codes times scales, loaded by
    transformers, its inputs rounded one token at a time."""
    stored = tensors(path)
    plain = {}
    for key, value in stored.items():
        module, _, kind = key.rpartition(".")
        scale = stored.get(f"{module}.weight_scale")
        if scale is None or kind == "bias":
            plain[key] = value.float()
        elif kind == "weight":
            plain[key] = value.float() * scale.float()
        elif kind == "weight_packed":
            rows = [[(int(word) >> (4 * at) & 15) - 8 for word in row for at in range(8)]
                    for row in value.tolist()]  # fmt: skip
            plain[f"{module}.weight"] = torch.tensor(rows) * scale.float().repeat_interleave(32, 1)
    config = json.loads((path / "config.json").read_text())
    ignore = config.pop("quantization_config")["ignore"]
    out.mkdir()
    (out / "config.json").write_text(json.dumps({**config, "dtype": "float32"}))
    save_file(plain, out / "model.safetensors", metadata={"format": "pt"})
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        out, dtype=torch.float32, output_loading_info=True, experts_implementation="eager"
    )
    assert not info["missing_keys"] and not info["unexpected_keys"], info
    if name == "w4a16":
        return model

    def rounded(token: torch.Tensor) -> torch.Tensor:
        half, low, high = (448.0, -448, 448) if name == "fp8" else (127.5, -128, 127)
        scale = token.abs().max() / half
        codes = (token / scale).clamp(low, high)
        codes = codes.to(torch.float8_e4m3fn).float() if name == "fp8" else codes.round()
        return codes * scale

    def each(values: torch.Tensor) -> torch.Tensor:
        tokens = values.reshape(-1, values.shape[-1])
        return torch.stack([rounded(token) for token in tokens]).reshape(values.shape)

    def mixed(experts: Any, hidden: torch.Tensor, index: Any, weights: torch.Tensor) -> Any:
        found = []
        for token, chosen, shares in zip(hidden, index.tolist(), weights, strict=True):
            total = torch.zeros_like(token)
            for expert, share in zip(chosen, shares, strict=True):
                gate, up = (experts.gate_up_proj[expert] @ rounded(token)).chunk(2)
                inner = torch.nn.functional.silu(gate) * up
                total += share * (experts.down_proj[expert] @ rounded(inner))
            found.append(total)
        return torch.stack(found)

    num_rounded = 0
    for key, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and key not in ignore:
            module.register_forward_pre_hook(lambda _, given: (each(given[0]),))
            num_rounded += 1
        if key.endswith(".experts"):
            module.forward = lambda *given, experts=module: mixed(experts, *given)
            num_rounded += 1
    assert num_rounded >= 10
    return model


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("family", MIXTURES)
def test_what_is_computed_is_codes_times_scales(family: str, name: str, tmp_path: Path) -> None:
    check_computed(make_base(tmp_path / "base", family), name, tmp_path)


@pytest.mark.parametrize(("family", "name"), LOADED_HERE)
def test_families_that_transformers_does_not_load_quantized_are_proven(
    family: str, name: str, tmp_path: Path
) -> None:
    """transformers 5.19 ends with an error in the first three, and renames or splits layers of the
    others without their scales."""
    config = DENSE[family]()
    check_computed(families.save_random(tmp_path / "base", config, torch.bfloat16), name, tmp_path)


def check_computed(base: Path, name: str, tmp_path: Path) -> None:
    made = run_quantize(base, name, tmp_path / "out")
    network, _ = load_model(made.path)
    found = families._logits(network, families.VOCABULARY).log_softmax(-1)
    hand = by_hand(made.path, name, tmp_path / "plain")
    expected = families._logits(hand, families.VOCABULARY).log_softmax(-1)
    exact = families.merged_logits(base).log_softmax(-1)
    difference, rounding = (found - expected).abs(), (found - exact).abs()
    assert rounding.mean() > 5e-4
    if name == "w4a16":
        assert difference.max() < 1e-4
    else:
        # A last bit that falls otherwise moves one activation by a whole step, and what follows.
        assert difference.median() < 0.02 * rounding.median()
        assert difference.mean() < 0.2 * rounding.mean()


@dataclass
class Line:
    reference: Artifact
    merged: Path
    folder: Path


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Line:
    """A Qwen3-MoE that has learnt its answers, an adapter on it, its reference and its merge."""
    folder = tmp_path_factory.mktemp("line")
    base = make_base(folder / "base", "qwen3_moe", torch.float32)
    learn(base)
    adapter = small_adapter(folder / "adapter", base)
    reference = families.make_reference(folder / "reference", base, adapter)
    merged = merge(MergeConfig(), resolve_model(str(base)), adapter, folder / "merged")
    return Line(reference, merged.path, folder)


def learn(base: Path) -> None:
    """Teach the base another answer to each prompt; deterministic on one machine."""
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    texts = []
    for index, prompt in enumerate(families.PROMPTS):
        answer = families.PROMPTS[index - 1]
        asked = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, tokenize=False
        )
        texts.append(f"{asked}{answer}<|im_end|>")
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    labels = batch.input_ids.masked_fill(batch.attention_mask == 0, -100)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(150):
        loss = model(**batch, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.4
    model.save_pretrained(base)


def small_adapter(folder: Path, base: Path) -> Path:
    torch.manual_seed(1)
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    options: Any = {"r": 4, "lora_alpha": 8, "task_type": "CAUSAL_LM"}
    tuned = peft.get_peft_model(
        model, peft.LoraConfig(**options, target_modules=["q_proj"], target_parameters=BOTH)
    )
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.01)
    tuned.save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return folder


def prove(line: Line, candidate: Path, out: Path) -> Parity:
    source = resolve_form(str(candidate))
    made = prove_model(ParityConfig(), line.reference, source, out, form=form_name(source))
    return Parity.model_validate_json((made.path / "parity.json").read_text())


EXPERT = "model.layers.0.mlp.experts.{}.{}"


def double(values: dict[str, torch.Tensor]) -> None:
    """Make the output of one of the eight experts in two layers about eight times too large."""
    for part in ("gate_proj", "up_proj", "down_proj"):
        values[f"{EXPERT.format(1, part)}.weight_scale"].mul_(2)


def exchange(values: dict[str, torch.Tensor]) -> None:
    for one in [name for name in values if name.startswith(EXPERT.format(0, ""))]:
        other = one.replace("experts.0.", "experts.2.")
        values[one], values[other] = values[other], values[one]


@pytest.mark.parametrize("name", SCHEMES)
def test_a_proof_passes_what_is_right_and_catches_what_is_broken(
    name: str, line: Line, tmp_path: Path
) -> None:
    made = run_quantize(line.merged, name, tmp_path / "model")
    right = prove(line, made.path, tmp_path / "right")
    assert right.num_prompts == len(families.PROMPTS) and right.num_tokens > 30
    assert right.verdict == "PASS", right.problems
    for fault in (double, exchange):
        broken = Path(shutil.copytree(made.path, tmp_path / fault.__name__))
        (broken / MANIFEST).unlink()
        edit_tensors(broken / "model.safetensors", fault)
        wrong = prove(line, broken, tmp_path / f"wrong-{fault.__name__}")
        assert wrong.verdict == "FAIL", fault.__name__


def test_a_folder_that_says_otherwise_than_it_stores_is_an_error(
    line: Line, tmp_path: Path
) -> None:
    made = run_quantize(line.merged, "int8", tmp_path / "model")
    (made.path / MANIFEST).unlink()
    config = json.loads((made.path / "config.json").read_text())["quantization_config"]
    assert "lm_head" in config["ignore"]

    def refusal(ignore: list[str], **more: Any) -> str:
        edit_json(
            made.path / "config.json", quantization_config={**config, "ignore": ignore, **more}
        )
        with pytest.raises(ArtifactError) as raised:
            load_model(made.path)
        return raised.value.message

    q_proj = "model.layers.0.self_attn.q_proj"
    expert = EXPERT.format(3, "up_proj")
    assert f"says that {q_proj} is not quantized" in refusal([*config["ignore"], q_proj])
    assert f"says that {expert} is not quantized" in refusal([*config["ignore"], expert])
    assert "says that lm_head is quantized" in refusal([])
    static = json.loads(json.dumps(config["config_groups"]))
    static["group_0"]["input_activations"].update(dynamic=False, strategy="tensor")
    assert "activations are quantized by tensor" in refusal(config["ignore"], config_groups=static)
    two = {"group_0": config["config_groups"]["group_0"], "group_1": static["group_0"]}
    assert "has 2 quantization schemes" in refusal(config["ignore"], config_groups=two)

    # As llm-compressor may say it.
    patterns = {**config, "ignore": ["lm_head", r"re:.*mlp\.gate$"]}
    edit_json(made.path / "config.json", quantization_config=patterns)
    load_model(made.path)
    weights = made.path / "model.safetensors"
    zero_point = f"{expert}.weight_zero_point"
    edit_tensors(weights, lambda values: values.update({zero_point: torch.zeros(128, 1)}))
    with pytest.raises(ArtifactError, match="zero_point"):
        load_model(made.path)
    parts = ("weight", "weight_scale", "weight_zero_point")
    edit_tensors(weights, lambda values: [values.pop(f"{expert}.{part}") for part in parts])
    with pytest.raises(ArtifactError, match="transformers cannot load it"):
        load_model(made.path)


def test_other_mixtures_are_refused_by_name(tmp_path: Path) -> None:
    base = families.save_random(
        tmp_path / "base", families.NAMED_OTHERWISE["lfm2-moe"](), torch.bfloat16
    )
    adapter = families.make_adapter(tmp_path / "adapter", base, target_modules=["q_proj"])
    match = r"experts.*: a mixture of experts of the family lfm2_moe; expected one of deepseek_v2"
    with pytest.raises(ArtifactError, match=match):
        run_quantize(base, "int8", tmp_path / "out")
    config = MergeConfig.model_validate({"quantize": "int8"})
    with pytest.raises(ArtifactError, match=match):
        merge(config, resolve_model(str(base)), adapter, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("family", "prefix", "pattern"),
    [
        ("glm4_moe", "model.layers.2", r"re:(.*\.)?layers\.2\..*"),
        ("qwen3_next", "mtp.layers.0", r"re:(.*\.)?mtp\..*"),
    ],
)
def test_layers_that_predict_further_tokens_keep_their_format(
    family: str, prefix: str, pattern: str, tmp_path: Path
) -> None:
    """vLLM builds `eh_proj` and the head of such layers without quantization, and drafts with
    them."""
    base = make_base(tmp_path / "base", family)
    further: dict[str, torch.Tensor] = {}

    def add(values: dict[str, torch.Tensor]) -> None:
        for name, value in list(values.items()):
            if name.startswith("model.layers.1."):
                further[name.replace("model.layers.1", prefix)] = value.clone()
        wide = torch.cat([values["lm_head.weight"][:128]] * 2, dim=1)
        further[f"{prefix}.eh_proj.weight"] = wide
        further[f"{prefix}.embed_tokens.weight"] = values["lm_head.weight"].clone()
        values.update(further)

    edit_tensors(base / "model.safetensors", add)
    made = run_quantize(base, "int8", tmp_path / "out")
    found = tensors(made.path)
    assert len(further) > 20
    assert {name for name in found if name.startswith(f"{prefix}.")} == further.keys()
    assert all(torch.equal(found[name], value) for name, value in further.items())
    said = json.loads((made.path / "config.json").read_text())["quantization_config"]["ignore"]
    assert pattern in said and not [name for name in said if name.startswith(prefix)]
    assert found["model.layers.1.self_attn.q_proj.weight"].dtype == torch.int8
    network, _ = load_model(made.path)
    plain = make_base(tmp_path / "plain", family)
    other, _ = load_model(run_quantize(plain, "int8", tmp_path / "plain-out").path)
    found_logits, expected = (
        families._logits(one, families.VOCABULARY) for one in (network, other)
    )
    assert torch.equal(found_logits, expected)


@pytest.mark.parametrize(
    ("name", "shape"),
    [("experts.gate_up_proj", (4, 256, 128)), ("experts.0.up_proj.bias", (128,))],
)
def test_experts_in_another_layout_are_refused(
    name: str, shape: tuple[int, ...], tmp_path: Path
) -> None:
    base = make_base(tmp_path / "base", "qwen3_moe")
    called = f"model.layers.0.mlp.{name}"
    edit_tensors(
        base / "model.safetensors",
        lambda values: values.update({called: torch.zeros(shape, dtype=torch.bfloat16)}),
    )
    with pytest.raises(ArtifactError, match=f"{re.escape(called)} .*stored one by one"):
        run_quantize(base, "int8", tmp_path / "out")

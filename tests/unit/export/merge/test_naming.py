"""Names in memory by rules only, without transformers."""

from __future__ import annotations

from typing import Any

import pytest

from export.merge.naming import FusedExperts, Piece, namings, plain_naming
from tests.unit.export.merge.made import Shapes, adapter_of, base_of

LAYER = "model.layers.0"
Q = f"{LAYER}.self_attn.q_proj"
HEAD = "lm_head.weight"
LLAMA: Shapes = {
    "model.embed_tokens.weight": (9, 4),
    f"{Q}.weight": (4, 4),
    HEAD: (9, 4),
}
HEADLESS: Shapes = {"embed_tokens.weight": (9, 4), "layers.0.self_attn.q_proj.weight": (4, 4)}
W2 = f"{LAYER}.block_sparse_moe.experts.1.w2.weight"
MIXTRAL: Shapes = {
    f"{LAYER}.block_sparse_moe.gate.weight": (2, 4),
    **{
        f"{LAYER}.block_sparse_moe.experts.{number}.{part}.weight": shape
        for number in (0, 1)
        for part, shape in (("w1", (6, 4)), ("w2", (4, 6)), ("w3", (6, 4)))
    },
}
WITH_PICTURES: Shapes = {
    "language_model.model.layers.0.self_attn.q_proj.weight": (4, 4),
    "vision_tower.proj.weight": (4, 4),
    HEAD: (9, 4),
}

# The base's tensors and configuration, an adapter's tensor, and names in memory with their files'.
CASES: dict[str, tuple[Shapes, dict[str, Any], str, dict[str, str | None]]] = {
    "as-in-the-files": (
        LLAMA, {}, f"{Q}.lora_A.weight", {f"{Q}.weight": f"{Q}.weight", HEAD: HEAD},
    ),
    "without-its-head": (
        HEADLESS, {}, f"{Q}.lora_A.weight",
        {f"{Q}.weight": "layers.0.self_attn.q_proj.weight", HEAD: HEAD},
    ),
    "without-its-head-and-untied": (
        HEADLESS, {"tie_word_embeddings": False}, f"{Q}.lora_A.weight", {HEAD: None},
    ),
    "head-of-neox": (
        {"gpt_neox.embed_in.weight": (9, 4), "embed_out.weight": (9, 4)},
        {"model_type": "gpt_neox", "tie_word_embeddings": False}, "lm_head.lora_A.weight",
        {HEAD: "embed_out.weight", "embed_out.weight": None},
    ),
    "head-of-neox-by-its-old-name": (
        {"gpt_neox.embed_in.weight": (9, 4), "embed_out.weight": (9, 4)},
        {"model_type": "gpt_neox", "tie_word_embeddings": False}, "embed_out.lora_A.weight",
        {"embed_out.weight": "embed_out.weight", HEAD: None},
    ),
    "block-of-mixtral": (
        MIXTRAL, {"tie_word_embeddings": False}, f"{LAYER}.mlp.gate.lora_A.weight",
        {f"{LAYER}.mlp.gate.weight": f"{LAYER}.block_sparse_moe.gate.weight"},
    ),
    "experts-one-by-one": (
        MIXTRAL, {"tie_word_embeddings": False},
        f"{LAYER}.block_sparse_moe.experts.1.w2.lora_A.weight",
        {W2: W2},
    ),
    "text-half": (
        WITH_PICTURES, {"tie_word_embeddings": False}, f"{Q}.lora_A.weight",
        {f"{Q}.weight": "language_model.model.layers.0.self_attn.q_proj.weight",
         HEAD: HEAD, "vision_tower.proj.weight": None},
    ),
    "buffers": (
        {**LLAMA, f"{LAYER}.self_attn.rotary_emb.inv_freq": (2,)}, {}, f"{Q}.lora_A.weight",
        {f"{LAYER}.self_attn.rotary_emb.inv_freq": None},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_rules_name_the_tensors_of_the_files(case: str) -> None:
    shapes, config, key, expected = CASES[case]
    base = base_of(shapes, **{"tie_word_embeddings": HEAD not in shapes, **config})
    naming = plain_naming(adapter_of(key), base)
    assert {name: naming.tensors.get(name) for name in expected} == expected


def test_experts_are_fused_in_memory() -> None:
    base = base_of(MIXTRAL, tie_word_embeddings=False)
    naming = plain_naming(adapter_of(f"{LAYER}.mlp.experts.lora_A.weight"), base)
    stored = f"{LAYER}.block_sparse_moe.experts"
    gate_up = [Piece(f"{stored}.{n}.w1.weight", n, 0) for n in (0, 1)]
    gate_up += [Piece(f"{stored}.{n}.w3.weight", n, 6) for n in (0, 1)]
    down = tuple(Piece(f"{stored}.{n}.w2.weight", n, 0) for n in (0, 1))
    assert naming.fused_in(f"{LAYER}.mlp.experts") == {
        "gate_up_proj": FusedExperts(2, 12, 4, tuple(gate_up)),
        "down_proj": FusedExperts(2, 4, 6, down),
    }
    by_file = naming.by_file()
    assert by_file[f"{stored}.1.w3.weight"] == f"{LAYER}.mlp.experts.gate_up_proj"
    assert by_file[f"{LAYER}.block_sparse_moe.gate.weight"] == f"{LAYER}.mlp.gate.weight"


@pytest.mark.parametrize("damage", ["a-number-missing", "another-shape"])
def test_experts_that_do_not_fit_together_are_not_fused(damage: str) -> None:
    shapes = dict(MIXTRAL)
    name = f"{LAYER}.block_sparse_moe.experts.0.w2.weight"
    if damage == "a-number-missing":
        del shapes[name]
    else:
        shapes[name] = (4, 7)
    naming = plain_naming(adapter_of(), base_of(shapes, tie_word_embeddings=False))
    assert set(naming.fused_in(f"{LAYER}.mlp.experts")) == {"gate_up_proj"}


def test_rules_that_name_everything_come_first() -> None:
    base = base_of(LLAMA, tie_word_embeddings=False)
    adapter = adapter_of(f"{Q}.lora_A.weight")
    assert next(namings(adapter, base)) == plain_naming(adapter, base)

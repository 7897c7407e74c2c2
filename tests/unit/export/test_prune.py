"""Pruning: the weights that it touches, by their names and shapes."""

from __future__ import annotations

import pytest

from export.config import PruneConfig
from export.prune import is_pruned
from export.weights.tensor_file import TensorEntry
from tuneline.core.config import validate_config
from tuneline.core.errors import ConfigError


@pytest.mark.parametrize(
    "name",
    [
        "backbone.embeddings.weight",
        "model.embed_tokens_per_layer.weight",
        "output.weight",
        "transformer.positions_embed.weight",
        "head.weight",
        "model.layers.0.mlp.gate.wg.weight",
        "model.layers.0.block_sparse_moe.router.layer.weight",
        "model.layers.1.mlp.gate.weight",
        "model.layers.1.mlp.up_proj.bias",
        "model.layers.1.mamba.A_log",
    ],
)
def test_embeddings_heads_routers_biases_and_states_stay(name: str) -> None:
    assert not is_pruned(TensorEntry(name, "F32", (8, 8), 0, 256))


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.mlp.gate_proj.weight",
        "h.0.attn.c_attn.weight",
        "layers.1.o_proj.weight",
        "backbone.layers.0.mixer.in_proj.weight",
    ],
)
def test_linear_layers_inside_numbered_blocks_are_pruned(name: str) -> None:
    assert is_pruned(TensorEntry(name, "F32", (8, 8), 0, 256))


@pytest.mark.parametrize(
    ("name", "dtype", "shape", "expected"),
    [
        ("layers.0.mlp.experts.down_proj", "BF16", (4, 8, 8), True),
        ("layers.0.conv.weight", "BF16", (4, 8, 8), False),
        ("layers.0.norm.weight", "F32", (8,), False),
        ("layers.0.up_proj.weight", "I32", (8, 8), False),
        ("layers.0.up_proj.weight", "F32", (0, 8), False),
    ],
)
def test_shape_and_format_decide_too(
    name: str, dtype: str, shape: tuple[int, ...], expected: bool
) -> None:
    assert is_pruned(TensorEntry(name, dtype, shape, 0, 0)) is expected


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"sparsity": 0.5, "pattern": "2:4"},
        {"sparsity": 1.0},
        {"sparsity": 0},
        {"pattern": "1:4"},
    ],
)
def test_bad_options_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="prune"):
        validate_config(PruneConfig, values, "prune")

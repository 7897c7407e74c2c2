"""The estimate of the ways of training, against sums by hand."""

from __future__ import annotations

import math
from pathlib import Path

from training.config import TrainingConfig
from training.estimates.memory import Batch, estimate_training
from tuneline.models.network import Network, read_network
from tuneline.models.source import embedded_base


def network() -> Network:
    return read_network(Path(embedded_base()))


def test_a_whole_model_takes_16_bytes_for_each_parameter() -> None:
    config = TrainingConfig.model_validate({"finetuning_type": "full", "optim": "adamw_torch"})
    memory = estimate_training(config, network(), Batch(1, 8), 4)
    parts = memory.weights + memory.adapter + memory.gradients + memory.optimizer
    assert network().num_parameters > 10**5
    embedding = math.prod(network().tensors["model.embed_tokens.weight"])
    # The embedding is also the output layer, and has a gradient of each until they are added.
    assert parts == 16 * network().num_parameters + 4 * embedding


def test_a_4bit_base_takes_less_than_5_bits_for_each_linear_weight() -> None:
    batch, plain = Batch(1, 8), network()
    linear = sum(rows * columns for rows, columns in plain.linear_shapes().values())
    assert linear > 10**5
    whole = estimate_training(TrainingConfig(), plain, batch, 4)
    reduced = estimate_training(TrainingConfig(load_in_4bit=True), plain, batch, 4)
    at_once = 4 * max(rows * columns for rows, columns in plain.linear_shapes().values())
    saved_bits = 8 * (whole.weights - (reduced.weights - at_once)) / linear
    assert 32 - 4.13 < saved_bits < 32 - 4.12
    assert whole.total - reduced.total == whole.weights - reduced.weights


def test_targets_may_be_a_regular_expression() -> None:
    plain = network()
    by_name = plain.linear_shapes(["q_proj", "v_proj"])
    assert by_name and plain.linear_shapes(r".*\.(q|v)_proj") == by_name

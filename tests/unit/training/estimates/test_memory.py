"""Memory by hand: a network whose numbers can be added up on paper."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from training.config import TrainingConfig
from training.config.launch import LaunchConfig
from training.estimates.choices import choose_checkpointing
from training.estimates.memory import (
    LOGIT_COPIES,
    RUNTIME_BYTES,
    TILE_COPIES,
    Batch,
    change_that_fits,
    estimate_training,
    largest_batch,
    num_trained,
)
from training.loop.shared_rows import Sharing
from tuneline.models.network import Network

LAYER = "model.layers.0."
NETWORK = Network(
    num_layers=1,
    hidden_size=8,
    intermediate_size=16,
    query_size=8,
    key_value_size=4,
    vocab_size=100,
    tied=True,
    tensors={
        "model.embed_tokens.weight": (100, 8),
        "lm_head.weight": (100, 8),
        LAYER + "self_attn.q_proj.weight": (8, 8),
        LAYER + "mlp.up_proj.weight": (16, 8),
        LAYER + "input_layernorm.weight": (8,),
    },
    file_bytes=0,
)
CONFIG = TrainingConfig(r=2, gradient_checkpointing=False)


def test_the_parts_are_those_counted_by_hand() -> None:
    memory = estimate_training(CONFIG, NETWORK, Batch(2, 5), 4)
    assert memory.weights == 4 * (800 + 64 + 128 + 8)
    assert memory.adapter == memory.gradients == 4 * 2 * (16 + 24)
    assert memory.optimizer == 2 * memory.adapter
    # 4 h + 2 q + 2 k + 4 i = 120 numbers stay, 3 i + 2 h = 64 pass.
    assert memory.activations == 10 * (120 + 64) * 4
    assert memory.logits == LOGIT_COPIES * 4 * 10 * 100
    assert memory.runtime == RUNTIME_BYTES + memory.activations + memory.logits
    assert memory.total == sum(
        (memory.weights, memory.adapter, memory.gradients, memory.optimizer, memory.activations,
         memory.logits, memory.runtime)
    )  # fmt: skip


@pytest.mark.parametrize(
    ("optim", "bytes_per_parameter"),
    [("adamw_torch", 8), ("adamw_8bit", 2), ("lion_32bit", 4), ("lion_8bit", 1), ("adafactor", 0)],
)
def test_moments_of_an_optimizer(optim: str, bytes_per_parameter: int) -> None:
    config = TrainingConfig.model_validate({"r": 2, "optim": optim})
    assert estimate_training(config, NETWORK, Batch(1, 1), 4).optimizer == 80 * bytes_per_parameter


def test_named_modules_and_names_of_layers() -> None:
    shapes = {LAYER + "self_attn.q_proj": (8, 8), LAYER + "mlp.up_proj": (16, 8)}
    assert NETWORK.linear_shapes() == shapes
    assert list(NETWORK.linear_shapes(["up_proj"]).values()) == [(16, 8)]
    assert NETWORK.linear_shapes(["none"]) == {}


EXPERTS = {LAYER + "mlp.experts.gate_up_proj": (3, 8, 12)}


@pytest.mark.parametrize(
    ("values", "more", "expected"),
    [
        ({}, {}, 2 * (16 + 24)),
        ({}, EXPERTS, 2 * (16 + 24) + 2 * 3 * 20),
        ({"use_dora": True}, {}, 2 * (16 + 24) + 8 + 16),
        ({"exclude_modules": ["up_proj"]}, {}, 2 * 16),
        ({"rank_pattern": {"up_proj": 5}}, {}, 2 * 16 + 5 * 24),
        ({"layers_to_transform": [1]}, {}, 0),
        ({"modules_to_save": ["embed_tokens"]}, {}, 2 * (16 + 24) + 800),
        ({"modules_to_save": ["lm_head"]}, {}, 2 * (16 + 24) + 800),
        ({"trainable_token_indices": [3, 4]}, {}, 2 * (16 + 24) + 2 * 8),
        ({"trainable_token_indices": {"embed_tokens": [3]}}, {}, 2 * (16 + 24) + 8),
        ({"target_modules": ["q_proj"]}, EXPERTS, 2 * 16),
        (
            {"target_modules": ["q_proj"], "target_parameters": ["gate_up_proj"]},
            EXPERTS,
            2 * 16 + 2 * 3 * 20,
        ),
    ],
)
def test_every_trained_parameter_is_counted(
    values: dict[str, Any], more: dict[str, tuple[int, ...]], expected: int
) -> None:
    network = Network(**{**vars(NETWORK), "tensors": {**NETWORK.tensors, **more}})
    config = TrainingConfig.model_validate({"r": 2, "gradient_checkpointing": False, **values})
    assert num_trained(config, network) == expected
    memory = estimate_training(config, network, Batch(1, 1), 4)
    assert memory.adapter == memory.gradients == 4 * expected
    assert memory.optimizer == 8 * expected


@pytest.mark.parametrize(
    ("lengths", "packing", "expected"),
    [
        ((), False, Batch(8, 2048)),
        ((5, 90, 7), False, Batch(3, 90)),
        ([30] * 20, False, Batch(8, 30)),
        ((5, 90, 7), True, Batch(8, 2048)),
    ],
)
def test_the_largest_batch(lengths: tuple[int, ...], packing: bool, expected: Batch) -> None:
    assert largest_batch(TrainingConfig(packing=packing), lengths) == expected


@pytest.mark.parametrize(("free_gib", "value"), [(1000.0, False), (0.01, True)])
def test_checkpointing_depends_on_the_free_memory(free_gib: float, value: bool) -> None:
    config = TrainingConfig(r=2)
    choice = choose_checkpointing(config, NETWORK, Batch(8, 2048), 4, int(free_gib * 2**30))
    assert choice.value is value
    assert ("above" if value else "below") in choice.reason


def test_the_change_is_the_first_that_fits() -> None:
    batch, deep = Batch(8, 2048), Network(**{**vars(NETWORK), "num_layers": 40})
    checkpointed = CONFIG.model_copy(update={"gradient_checkpointing": True})
    limits = [
        estimate_training(checkpointed, deep, Batch(rows, length), 4).total
        for rows, length in ((8, 2048), (2, 2048), (1, 512))
    ]
    found = [change_that_fits(CONFIG, deep, batch, 4, limit) for limit in (*limits, 1000)]
    assert found == [
        "training.gradient_checkpointing: true",
        "training.gradient_checkpointing: true, per_device_train_batch_size: 2, "
        "gradient_accumulation_steps: 8",
        "training.gradient_checkpointing: true, per_device_train_batch_size: 1, max_length: 512",
        None,
    ]


def test_sft_on_a_cpu_computes_the_last_layer_and_the_logits_of_trained_tokens_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert largest_batch(CONFIG, [5, 3, 4], [2, 3, 1]) == Batch(3, 5, 6)
    one = CONFIG.model_copy(update={"per_device_train_batch_size": 1})
    batch = largest_batch(one, [5, 3, 4], [2, 3, 1])
    assert batch == Batch(1, 5, 3)  # the row with most trained tokens may be another one
    monkeypatch.setattr("training.estimates.memory.gpu_names", list)
    whole, part = (estimate_training(CONFIG, NETWORK, b, 4) for b in (Batch(1, 5), batch))
    assert part.logits == LOGIT_COPIES * 4 * 3 * 100
    # 120 numbers of a token stay; of the two others only 2 h + 2 k = 24.
    assert whole.activations - part.activations == 2 * (120 - 24) * 4


def test_a_shared_start_is_computed_once_unless_activations_are_computed_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("training.estimates.memory.gpu_names", lambda: ["any"])
    batch = largest_batch(CONFIG, [5, 3, 4], sharing=Sharing(0.3, 2))
    assert batch == Batch(3, 5, start=2)
    whole, shared = (estimate_training(CONFIG, NETWORK, b, 4) for b in (Batch(3, 5), batch))
    # 11 tokens of 15 are computed. The rows read 15 keys and values of the queries' size, 8, in
    # place of the 9 of their own, of size 4.
    assert whole.activations == 15 * (120 + 64) * 4
    assert shared.activations == (11 * (120 + 64) + 2 * (15 * 8 - 9 * 4)) * 4
    again = CONFIG.model_copy(update={"gradient_checkpointing": True})
    whole, shared = (estimate_training(again, NETWORK, b, 4) for b in (Batch(3, 5), batch))
    assert whole == shared


@pytest.mark.parametrize(
    ("values", "gpus", "expected"),
    [
        ({}, [], LOGIT_COPIES * 3),
        ({"modules_to_save": ["lm_head"]}, [], TILE_COPIES * 3),
        ({"trainable_token_indices": [3]}, [], TILE_COPIES * 3),
        ({"modules_to_save": ["lm_head"]}, ["a GPU"], LOGIT_COPIES * 3),
        ({"finetuning_type": "full"}, [], LOGIT_COPIES * 3),  # its weights are float32
    ],
)
def test_a_trained_bfloat16_head_on_a_cpu_computes_trained_tokens_in_tiles(
    values: dict[str, Any], gpus: list[str], expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.estimates.memory.gpu_names", lambda: gpus)
    config = TrainingConfig.model_validate({"gradient_checkpointing": False, **values})
    memory = estimate_training(config, NETWORK, Batch(1, 5, 3), 2)
    assert memory.logits == 4 * expected * 100


def test_a_tied_embedding_has_two_gradients() -> None:
    full = TrainingConfig.model_validate({"finetuning_type": "full"})
    untied = replace(NETWORK, tied=False)
    tied, apart = (estimate_training(full, one, Batch(1, 1), 4) for one in (NETWORK, untied))
    assert tied.weights == 4 * 1000 and apart.weights == 4 * 1800  # the head is its own
    assert tied.gradients == 4 * (1000 + 800) == apart.gradients


@pytest.mark.parametrize("seed", range(20))
def test_no_batch_has_more_trained_tokens_than_the_largest(seed: int) -> None:
    choose = random.Random(seed)
    lengths = [choose.randint(2, 6) for _ in range(20)]
    trained = [choose.randint(1, length) for length in lengths]
    bound = largest_batch(CONFIG, lengths, trained)
    for _ in range(50):
        rows = choose.sample(range(20), 8)
        assert sum(trained[row] for row in rows) <= bound.num_trained


def test_a_preference_pair_has_two_sequences() -> None:
    config = TrainingConfig.model_validate({"r": 2, "method": {"type": "dpo"}})
    assert largest_batch(config) == Batch(16, 2048)
    batch = largest_batch(config, [10, 20] * 8)
    limit = estimate_training(
        config.model_copy(update={"gradient_checkpointing": True}), NETWORK, Batch(8, 20), 4
    ).total
    assert change_that_fits(config, NETWORK, batch, 4, limit) == (
        "training.gradient_checkpointing: true, per_device_train_batch_size: 4, "
        "gradient_accumulation_steps: 4"
    )


@pytest.mark.parametrize(
    ("method", "gpus", "expected"),
    [
        # SFT has 64 positions at a time, ORPO all 100, a reward model none.
        ("sft", [], 3 * 64 * 10_000_000),
        ("orpo", [], 3 * 100 * 10_000_000),
        ("reward", [], 0),
        ("dpo", [], TILE_COPIES * 100 * 32768),
        ("kto", [], TILE_COPIES * 100 * 32768),
        ("dpo", ["a GPU"], 100 * 32768),
        ("kto", ["a GPU"], 100 * 32768),
    ],
)
def test_logits_of_each_method(
    method: str, gpus: list[str], expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.estimates.memory.gpu_names", lambda: gpus)
    network = Network(**{**vars(NETWORK), "vocab_size": 10_000_000})
    config = TrainingConfig.model_validate({"r": 2, "method": {"type": method}})
    assert estimate_training(config, network, Batch(2, 50), 4).logits // 4 == expected


@pytest.mark.parametrize(
    ("method", "weights"), [("sft", 4000), ("orpo", 4000), ("dpo", 8000), ("kto", 8000)]
)
def test_a_full_training_has_a_reference_model_where_its_method_reads_one(
    method: str, weights: int
) -> None:
    settings = {"finetuning_type": "full", "method": {"type": method}}
    config = TrainingConfig.model_validate(settings)
    assert estimate_training(config, NETWORK, Batch(2, 5), 4).weights == weights


def test_ddp_keeps_the_gradients_twice() -> None:
    alone = estimate_training(CONFIG, NETWORK, Batch(2, 5), 4)
    launch = LaunchConfig(processes=2)
    one = estimate_training(CONFIG.model_copy(update={"launch": launch}), NETWORK, Batch(2, 5), 4)
    assert one.gradients == 2 * alone.gradients
    assert one.total == alone.total + alone.gradients


def test_fsdp2_spreads_weights_gradients_and_optimizer() -> None:
    alone = estimate_training(CONFIG, NETWORK, Batch(2, 5), 4)
    launch = LaunchConfig(processes=4, strategy="fsdp2")
    one = estimate_training(CONFIG.model_copy(update={"launch": launch}), NETWORK, Batch(2, 5), 4)
    # A quarter stays; the only layer (200 numbers) and the embedding (800) are whole in a pass.
    assert one.weights == 4 * 1000 // 4 + 4 * 1000
    assert one.optimizer == alone.optimizer // 4
    assert one.gradients == alone.gradients // 4 + alone.gradients
    assert one.activations == alone.activations


@pytest.mark.parametrize(
    ("num_rows", "length", "num_threads", "rows_at_once", "num_shares"),
    [(8, 300, 2, 4, 2), (8, 300, 1, 3, 1), (4, 100, 8, 4, 1), (2, 3000, 4, 2, 2)],
)
def test_a_batch_in_shares_needs_the_memory_of_one_share_per_thread(
    num_rows: int, length: int, num_threads: int, rows_at_once: int, num_shares: int
) -> None:
    batch = Batch(num_rows, length, num_threads=num_threads)
    found = estimate_training(CONFIG, NETWORK, batch, 4)
    part = estimate_training(CONFIG, NETWORK, Batch(rows_at_once, length), 4)
    assert found.logits == part.logits
    # Held-out rows are computed in whole batches: 3 i + 2 h = 64 numbers pass for each token.
    assert found.activations == part.activations + num_rows * length * 64 * 4
    assert found.gradients == (1 + num_shares) * part.gradients
    again = CONFIG.model_copy(update={"gradient_checkpointing": True})
    whole = Batch(num_rows, length)
    assert estimate_training(again, NETWORK, batch, 4) == estimate_training(
        again, NETWORK, whole, 4
    )

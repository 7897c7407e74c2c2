"""Rows that start alike are grouped so that a batch computes as few positions as it can."""

from __future__ import annotations

import random
from typing import Any

import pytest

from training.config import TrainingConfig
from training.estimates.memory import largest_batch
from training.loop.shared_rows import Sharing, expected_sharing, shared_starts


def _row(*parts: tuple[int, int]) -> list[int]:
    """Return a row of parts: so many tokens that begin with a number."""
    return [100 * first + index for first, length in parts for index in range(length)]


@pytest.mark.parametrize(
    ("rows", "groups", "lengths", "num_computed"),
    [
        ([((1, 50), (2, 9)), ((1, 50), (3, 10)), ((1, 50), (4, 8))], [0, 0, 0], [50], 50 + 30),
        # Two pairs with prompts of unequal length.
        (
            [((1, 50), (2, 9)), ((5, 70), (6, 10)), ((1, 50), (3, 5)), ((5, 70), (7, 8))],
            [0, 1, 0, 1], [50, 70], 2 * 70 + 4 * 10,
        ),
        # The last row shares nothing; a part of it is computed with the start of the others.
        ([((1, 50), (2, 9)), ((1, 50), (3, 9)), ((4, 55),)], [0, 0, 1], [50, 50], 2 * 50 + 3 * 9),
        # Equal rows: a token of each is left over.
        ([((1, 50),), ((1, 50),)], [0, 0], [49], 49 + 2),
        # One start of 100 for all, and 40 tokens more for two of four: the first saves more.
        (
            [((1, 100), (2, 40), (3, 9)), ((1, 100), (2, 40), (4, 9)), ((1, 100), (5, 49)),
             ((1, 100), (6, 49))],
            [0, 0, 0, 0], [100], 100 + 4 * 49,
        ),
    ],
)  # fmt: skip
def test_rows_are_in_the_groups_that_save_most(
    rows: list[Any], groups: list[int], lengths: list[int], num_computed: int
) -> None:
    found = shared_starts([_row(*parts) for parts in rows])
    assert found is not None
    assert (found.groups, found.lengths, found.num_computed) == (groups, lengths, num_computed)


@pytest.mark.parametrize(
    "rows",
    [
        [((1, 31), (2, 9)), ((1, 31), (3, 9))],  # too short
        [((1, 40), (2, 200)), ((1, 40), (3, 200))],  # saves 8 %
        [((1, 90),), ((2, 90),)],
        [((1, 90),)],
    ],
)
def test_rows_that_save_too_little_stay_whole(rows: list[Any]) -> None:
    assert shared_starts([_row(*parts) for parts in rows]) is None


def test_rows_share_a_start_at_the_same_positions_only() -> None:
    rows = [_row((1, 50), (last, 9)) for last in (2, 3, 4, 5)]
    found = shared_starts(rows, [0, 7, 0, 7])
    assert found is not None
    assert found.groups[0] == found.groups[2] != found.groups[1] == found.groups[3]
    assert shared_starts(rows[:2], [0, 7]) is None


@pytest.mark.parametrize("seed", range(20))
def test_every_row_begins_with_the_start_of_its_group(seed: int) -> None:
    draw = random.Random(seed)
    starts = [_row((number, draw.randint(20, 80))) for number in range(3)]
    rows = [
        draw.choice(starts)[: draw.randint(10, 80)] + draw.choices(range(9), k=draw.randint(1, 30))
        for _ in range(draw.randint(2, 9))
    ]
    found = shared_starts(rows)
    if found is None:
        return
    shared = [rows[found.groups.index(group)][:n] for group, n in enumerate(found.lengths)]
    assert all(
        row[: len(shared[g])] == shared[g] for row, g in zip(rows, found.groups, strict=True)
    )
    assert all(len(row) > len(shared[g]) for row, g in zip(rows, found.groups, strict=True))
    assert found.saved >= 0.15


def _config(method: str = "sft", **changes: Any) -> TrainingConfig:
    options: dict[str, Any] = {"type": method}
    if method == "grpo":
        options |= {
            "reward_funcs": ["a.py:b"], "num_generations": 4, "max_completion_length": 20,
        }  # fmt: skip
    return TrainingConfig.model_validate(
        {"method": options, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 1,
         **changes}
    )  # fmt: skip


def _examples(kind: str) -> list[list[list[int]]]:
    if kind == "pair":  # prompts of 60 and 80 tokens, answers of 20
        return [
            [_row((number, 60 + 20 * (number % 2)), (side, 20)) for side in (200, 300)]
            for number in range(2, 10)
        ]
    if kind == "prompt":
        return [[_row((number, 60))] for number in range(2, 10)]
    starts = {"all": (1,), "two": (1, 2), "none": range(2, 18)}[kind]
    return [[_row((starts[number % len(starts)], 60), (50 + number, 20))] for number in range(16)]


@pytest.mark.parametrize(
    ("method", "kind", "start", "num_sharing", "saved"),
    [
        ("sft", "all", 60, None, 0.56),  # 60 + 4 * 20 of 4 * 80
        ("sft", "two", 0, None, 0.38),  # 2 * 60 + 4 * 20, unless all four draw the same
        ("dpo", "pair", 80, 2, 0.39),
        ("orpo", "pair", 80, 2, 0.39),
        ("grpo", "prompt", 60, 4, 0.56),
    ],
)
def test_what_batches_share_is_told_before_training(
    method: str, kind: str, start: int, num_sharing: int | None, saved: float
) -> None:
    found = expected_sharing(_config(method), _examples(kind))
    assert found is not None
    assert (found.start, found.num_sharing) == (start, num_sharing)
    assert found.saved == pytest.approx(saved, abs=0.04)


TWO: dict[str, Any] = {"gradient_accumulation_steps": 2}  # one batch of each process


@pytest.mark.parametrize(
    ("kind", "changes"), [("none", {}), ("all", {"per_device_train_batch_size": 1})]
)
def test_rows_that_share_too_little_are_not_named(kind: str, changes: dict[str, Any]) -> None:
    assert expected_sharing(_config(**changes), _examples(kind)) is None


@pytest.mark.parametrize(
    ("changes", "setting"),
    [
        ({"packing": True}, "packing: true"),
        ({"lora_dropout": 0.1}, "lora_dropout: 0.1"),
        ({"gradient_checkpointing": True}, "gradient_checkpointing: true"),
        ({"router_aux_loss_coef": 0.001}, "router_aux_loss_coef: 0.001"),
        ({**TWO, "launch": {"processes": 2, "strategy": "fsdp2"}}, "launch.strategy: fsdp2"),
    ],
)
def test_a_setting_with_which_rows_are_computed_whole_is_named(
    changes: dict[str, Any], setting: str
) -> None:
    config = _config(**changes)
    found = expected_sharing(config, _examples("all"))
    assert str(found) == (
        f"starts that rows share are computed for each row: training.{setting}; they are about 56% "
        "of the tokens"
    )
    batch = largest_batch(config, [80] * 16, sharing=found)
    assert batch.num_computed == batch.num_tokens


def test_ddp_shares_starts() -> None:
    found = expected_sharing(
        _config(**TWO, launch={"processes": 2, "strategy": "ddp"}), _examples("all")
    )
    assert found is not None
    assert found.whole_because is None


def test_one_pair_is_a_batch_that_shares_its_prompt() -> None:
    config = _config("dpo", per_device_train_batch_size=1)
    found = expected_sharing(config, _examples("pair"))
    assert found is not None
    assert found.num_sharing == 2
    assert str(found).startswith("a batch computes the prompts that its rows share once: about 3")


def test_the_largest_batch_of_pairs_computes_each_prompt_once() -> None:
    config = _config("dpo")
    batch = largest_batch(config, [100] * 8, sharing=Sharing(0.4, 80, 2))
    assert batch.num_tokens == 8 * 100
    assert batch.num_computed == 4 * 80 + 8 * 20
    # The second pair has shorter rows and computes more: its rests decide.
    pairs = [[_row((2, 80), (9, 20)), _row((2, 80), (8, 20))],
             [_row((3, 40), (9, 50)), _row((3, 40), (8, 50))]]  # fmt: skip
    found = expected_sharing(_config("dpo", per_device_train_batch_size=1), pairs * 4)
    assert found is not None
    assert found.start == 2 * (100 - 90) + 40


@pytest.mark.parametrize("seed", range(20))
def test_no_batch_of_pairs_computes_more_than_is_told(seed: int) -> None:
    draw = random.Random(seed)
    kinds = [((300, 10), (155, 155)), ((80, 9), (70, 12)), ((200, 20), (90, 60))]
    kind = draw.choice(kinds)
    pairs = [
        [_row((number, start), (side, rest)) for side in (200, 300)]
        for number in range(2, 14)
        for start, rest in [draw.choice(kind)]
    ]
    size = draw.choice([1, 2, 4])
    found = expected_sharing(_config("dpo", per_device_train_batch_size=size), pairs)
    told = found.start if found is not None else 0
    longest = max(len(ids) for pair in pairs for ids in pair)
    for _ in range(50):
        batch = [ids for pair in draw.sample(pairs, size) for ids in pair]
        shared = shared_starts(batch)
        computed = len(batch) * max(map(len, batch)) if shared is None else shared.num_computed
        assert computed <= size * (2 * longest - told)

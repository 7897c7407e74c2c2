"""The prompts of an epoch, where a method trains on the model's own answers."""

from __future__ import annotations

from collections import Counter

import pytest
from trl.trainer.utils import RepeatSampler

from training.methods.sampled import Prompts


@pytest.mark.parametrize("num_rows", [8, 10, 11])
def test_every_prompt_is_answered_in_an_epoch_and_steps_are_full(num_rows: int) -> None:
    # Steps of four prompts, each answered twice, whose answers are used in three batches.
    sampler = RepeatSampler(range(num_rows), mini_repeat_count=2, batch_size=4, repeat_count=3)
    prompts = Prompts(sampler, seed=5)
    epochs = []
    for epoch in range(2):
        prompts.set_epoch(epoch)
        epochs.append(list(prompts))
    assert len(epochs[0]) == len(prompts) == -(-num_rows // 4) * 4 * 2 * 3
    assert sorted(epochs[0]) != epochs[0] != epochs[1]
    counts = Counter(epochs[0])
    assert set(counts) == set(range(num_rows))
    assert set(counts.values()) <= {6, 12}
    for start in range(0, len(prompts), 24):
        (one, two, three) = (epochs[0][start + 8 * of : start + 8 * of + 8] for of in range(3))
        assert one == two == three and set(Counter(one).values()) == {2}


def test_whole_steps_are_those_of_trl() -> None:
    sampler = RepeatSampler(range(12), mini_repeat_count=2, batch_size=4, repeat_count=3, seed=7)
    prompts = Prompts(sampler, seed=7)
    assert list(prompts) == list(sampler)

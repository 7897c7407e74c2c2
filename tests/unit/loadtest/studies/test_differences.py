"""Whether a difference of two endpoints is called one, where the truth is known."""

from dataclasses import replace

import numpy as np
import pytest

from loadtest.client.records import Records
from loadtest.studies.differences import differences
from tests.unit.loadtest.made_records import made_records


def side(rng: np.random.Generator, more_s: float, turns: int) -> Records:
    """A run whose TTFT wanders as the queue of a busy server does, around 0.5 s."""
    records = made_records(300)
    steps = rng.normal(0, 0.03, 300)
    wander = np.empty(300)
    wander[0] = rng.normal(0, 0.1)
    for place in range(1, 300):
        wander[place] = 0.95 * wander[place - 1] + steps[place]
    first = records.intended_s + np.maximum(0.5 + wander, 0.01) + more_s
    shift = first - records.first_token_s
    return replace(
        records,
        first_token_s=first,
        last_token_s=records.last_token_s + shift,
        end_s=records.end_s + shift,
        event_s=records.event_s + np.repeat(shift, 6),
        session=np.arange(300) // turns,
        turn=np.arange(300) % turns,
    )


@pytest.mark.parametrize("turns", [1, 3], ids=["requests", "conversations"])
def test_equal_servers_near_saturation_are_seldom_told_apart(turns: int) -> None:
    rng = np.random.default_rng(1)
    verdicts = []
    for _ in range(40):
        pairs = [(side(rng, 0.0, turns), side(rng, 0.0, turns)) for _ in range(4)]
        (found,) = [one for one in differences(pairs, 0.0) if one.metric == "ttft_s"]
        assert found.num_needed is None
        verdicts.append(found.verdict)
    wrong = [one for one in verdicts if one in ("slower", "faster")]
    # 2 of 40 are meant; 7 or more come with a probability below 0.01.
    assert len(wrong) <= 6, wrong


def test_a_slower_server_near_saturation_is_told() -> None:
    rng = np.random.default_rng(2)
    pairs = [(side(rng, 0.0, 1), side(rng, 0.1, 1)) for _ in range(4)]
    (found,) = [one for one in differences(pairs, 0.0) if one.metric == "ttft_s"]
    assert found.verdict == "slower"
    assert found.ci95_low < 0.1 < found.ci95_high

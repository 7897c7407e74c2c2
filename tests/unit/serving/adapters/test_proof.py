"""The proof of an adapter: its answers, and whether they are the base model's."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from serving.adapters.proof import prove_adapter
from tests.unit.serving.adapters.made import PROMPTS, make_adapter, make_reference
from tuneline.core.errors import InconclusiveError, VerdictError
from tuneline.core.parity import Parity
from tuneline.core.tolerances import ARITHMETIC_TOLERANCES, Tolerances

FLOAT32 = ARITHMETIC_TOLERANCES["float32"]
Answers = Mapping[str, tuple[int, float]]
"""By prompt, the token of the answer and its log-probability."""


def completion(token: int, logprob: float) -> dict[str, Any]:
    def step(token: int, logprob: float) -> dict[str, Any]:
        entry = {"token": f"token_id:{token}", "logprob": logprob}
        return entry | {"top_logprobs": [entry]}

    choice = {
        "finish_reason": "stop", "token_ids": [token, 0], "message": {"content": f"t{token}"},
        "logprobs": {"content": [step(token, logprob), step(0, -0.25)]},
    }  # fmt: skip
    return {"prompt_token_ids": [1, 2], "choices": [choice]}


def prove(
    tmp_path: Path, adapter: Answers, base: Answers, tolerances: Tolerances = FLOAT32
) -> Parity:
    """The reference answers every prompt with token 7 at -0.5 nats."""
    reference = make_reference(tmp_path / "reference", make_adapter(tmp_path / "adapter"))
    asked: list[tuple[str, str]] = []

    async def ask(fields: dict[str, Any]) -> dict[str, Any]:
        prompt = fields["messages"][0]["content"]
        asked.append((fields["model"], prompt))
        assert (fields["temperature"], fields["max_tokens"]) == (0, 8)
        return completion(*(adapter if fields["model"] == "a@1" else base)[prompt])

    try:
        return asyncio.run(prove_adapter(ask, "a@1", "base", reference, tolerances))
    finally:
        assert len(asked) == 2 * len(PROMPTS)


TRAINED = dict.fromkeys(PROMPTS, (7, -0.5))
UNTRAINED = dict.fromkeys(PROMPTS, (3, -0.5))


def test_the_reference_s_answers_pass(tmp_path: Path) -> None:
    parity = prove(tmp_path, TRAINED, UNTRAINED)
    assert (parity.num_equal_answers, parity.max_logprob_difference) == (3, 0.0)


def test_answers_of_the_base_fail_by_name(tmp_path: Path) -> None:
    with pytest.raises(VerdictError) as caught:
        prove(tmp_path, UNTRAINED, UNTRAINED)
    assert "3 of 3 answers that the training changed are the base model's" in caught.value.message
    assert caught.value.exit_code == 6


def test_one_answer_of_the_base_fails_in_float32(tmp_path: Path) -> None:
    with pytest.raises(VerdictError, match="1 of 3 answers that the training changed"):
        prove(tmp_path, {**TRAINED, "two": (3, -0.5)}, UNTRAINED)


def test_a_loose_tolerance_does_not_hide_an_adapter_that_is_not_applied(tmp_path: Path) -> None:
    loose = Tolerances(
        min_greedy_agreement=0.0, min_token_agreement=0.0, max_logprob_difference=99.0,
        mean_logprob_difference=99.0,
    )  # fmt: skip
    with pytest.raises(VerdictError, match="the adapter is loaded and not applied"):
        prove(tmp_path, UNTRAINED, UNTRAINED, loose.model_copy(update={
            "min_greedy_agreement": None
        }))  # fmt: skip


def test_other_log_probabilities_fail(tmp_path: Path) -> None:
    with pytest.raises(VerdictError, match=r"max_logprob_difference is 0\.01 nats"):
        prove(tmp_path, {**TRAINED, "one": (7, -0.51)}, UNTRAINED)


def test_equal_answers_with_other_log_probabilities_tell_base_and_adapter_apart(
    tmp_path: Path,
) -> None:
    base = dict.fromkeys(PROMPTS, (7, -0.9))
    assert prove(tmp_path, TRAINED, base).num_equal_answers == 3


def test_a_reference_that_answers_as_the_base_proves_nothing(tmp_path: Path) -> None:
    with pytest.raises(InconclusiveError, match="answers all 3 prompts as the base") as caught:
        prove(tmp_path, TRAINED, TRAINED)
    assert caught.value.exit_code == 7

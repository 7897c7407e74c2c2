"""The causes that a failed proof of a server names."""

from __future__ import annotations

import pytest

from tuneline.commands.prove import _explanation
from tuneline.core.parity import compare
from tuneline.core.reference import Continuation
from tuneline.core.tolerances import ARITHMETIC_TOLERANCES

AGAIN = "tuneline prove --reference R"
NUM_TOKENS = 20


def answer(off: float, prompt: list[int] | None = None) -> Continuation:
    """Return an answer whose log-probabilities are `off` nats below the reference's."""
    logprobs = [-0.1 - off] * NUM_TOKENS
    return Continuation(
        messages=[{"role": "user", "content": "x"}], prompt_token_ids=prompt or [1, 2],
        token_ids=list(range(NUM_TOKENS)), logprobs=logprobs,
        top_logprobs=[{token: value} for token, value in enumerate(logprobs)], text="x",
        finish_reason="stop",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("off", "has_dtype", "expected"),
    [
        # The limits of docs/parity.md on the mean: 8e-4 nats in float16, 0.008 in bfloat16.
        (
            0.0005,
            False,
            [f"in float16 or bfloat16, name the format: {AGAIN} --dtype FORMAT", "--weights DIR"],
        ),
        (0.005, False, [f"in bfloat16, name the format: {AGAIN} --dtype FORMAT", "--weights DIR"]),
        (0.005, True, ["--weights DIR"]),
        (0.02, False, ["--weights DIR"]),
        (0.5, False, ["No number format explains the differences: the server has other weights"]),
    ],
)
def test_the_size_of_the_differences_tells_the_cause(
    off: float, has_dtype: bool, expected: list[str]
) -> None:
    parity = compare("served", [answer(0)] * 8, [answer(off)] * 8, ARITHMETIC_TOLERANCES["float32"])
    assert parity.problems
    lines = _explanation(parity, AGAIN, has_dtype=has_dtype).splitlines()
    assert len(lines) == len(expected)
    for line, words in zip(lines, expected, strict=True):
        assert words in line


def test_another_prompt_is_no_matter_of_numbers() -> None:
    found = [answer(0), answer(0, prompt=[1, 3])]
    parity = compare("served", [answer(0)] * 2, found, ARITHMETIC_TOLERANCES["float32"])
    text = _explanation(parity, AGAIN, has_dtype=False)
    assert text == "Serve the model with the tokenizer and the chat template of its training."

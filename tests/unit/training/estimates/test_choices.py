from __future__ import annotations

from typing import Literal

import pytest

from training.config import TrainingConfig
from training.estimates import choices


@pytest.mark.parametrize(
    ("dtype", "gpus", "multiplies", "expected"),
    [
        ("auto", ["a"], True, ("bfloat16", "a GPU is here")),
        ("auto", [], True, ("float32", "this processor computes in bfloat16 too")),
        ("auto", [], False, ("float32", "no GPU is here")),
        ("bfloat16", [], False, ("bfloat16", "run.yaml sets it")),
    ],
)
def test_the_number_format_and_its_reason(
    dtype: Literal["auto", "bfloat16"],
    gpus: list[str],
    *,
    multiplies: bool,
    expected: tuple[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(choices, "gpu_names", lambda: gpus)
    monkeypatch.setattr(choices, "multiplies_bfloat16", lambda: multiplies)
    choice = choices.choose_format(TrainingConfig.model_validate({"dtype": dtype}))
    value, reason = expected
    assert choice.value == value
    assert reason in choice.reason

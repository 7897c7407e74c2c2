"""Base and trained model answer one after the other."""

from __future__ import annotations

import json
import weakref
from pathlib import Path
from typing import Any

import pytest

from training.config import EvaluationConfig, JudgeConfig
from training.data.row import Row
from training.evaluation import judged_answers
from training.evaluation.answerer import OnReply, Reply
from training.evaluation.kept import Kept
from tuneline.models.source import ModelSource
from tuneline.models.template import TemplateSettings


class _Model:
    identity = "same"

    def answer(self, questions: list[Any], _max_new_tokens: int, on_reply: OnReply) -> list[Reply]:
        replies = [Reply("Same.", "stop") for _ in questions]
        for index, reply in enumerate(replies):
            on_reply(index, reply)
        return replies


def test_one_model_at_a_time_is_in_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    loaded: list[weakref.ref[_Model]] = []

    def load(*_: object, **__: object) -> _Model:
        assert not [model for model in loaded if model() is not None]
        model = _Model()
        loaded.append(weakref.ref(model))
        return model

    monkeypatch.setattr(judged_answers, "local_answerer", load)
    judge = JudgeConfig(url="http://127.0.0.1:1/v1", model="judge")  # equal answers ask no judge
    rows = [Row(prompt=({"role": "user", "content": f"Say {number}."},)) for number in range(3)]
    adapter: Any = object()
    found = judged_answers.judge_answers(
        EvaluationConfig(), judge, rows, TemplateSettings(),
        ModelSource("base", tmp_path, "sha256:0", "base-model"), adapter, tmp_path,
        Kept(tmp_path / "kept", {}),
    )  # fmt: skip
    assert len(loaded) == 2
    assert (found["ties"], found["num_requests"]) == (3, 0)
    lines = (tmp_path / judged_answers.ANSWERS_FILE).read_text().splitlines()
    assert [json.loads(line)["base"] for line in lines] == ["Same."] * 3

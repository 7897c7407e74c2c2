"""Rows and requests that are longer than the model or the server takes, before any training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tuneline.core.config import validate_config
from tuneline.core.errors import ConfigError, DataError
from tuneline.models.source import resolve_model
from tuneline.pipeline.check import check_run
from tuneline.pipeline.lengths import (
    require_rows_fit,
    require_served_length,
)
from tuneline.pipeline.plan import select_stages
from tuneline.pipeline.run_config import Run, RunConfig
from tuneline.pipeline.stages import stage_names
from tuneline.pipeline.up import make_dataset, require_dataset

CONTEXT = 1024
"""Tokens that the embedded base model takes."""


def _run(folder: Path, *, words: int = 2, **sections: Any) -> Run:
    rows = [{"prompt": f"{i} {'word ' * words}", "completion": f"yes {i}"} for i in range(6)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {"name": "lengths", "data": {"path": "rows.jsonl"}, **sections}
    return Run(folder / "run.yaml", validate_config(RunConfig, values, "run.yaml"), folder / "runs")


def test_lengths_that_fit_are_said(tmp_path: Path) -> None:
    run = _run(tmp_path, serving={"max_model_len": 512})
    found = require_rows_fit(run.config, resolve_model("tiny-base"), 512)
    assert found == {"context": "base model 1,024 tokens, server 512 tokens"}
    assert check_run(run).found["context"] == found["context"]


@pytest.mark.parametrize(
    ("sections", "longest", "error", "message"),
    [
        ({}, CONTEXT + 1, DataError, "the base model tiny-base takes 1,024"),
        ({"serving": {"max_model_len": 512}}, 513, DataError, "the server takes 512"),
        (
            {"serving": {"max_model_len": 4096}}, 10, ConfigError,
            "serving.max_model_len is 4,096; the base model tiny-base takes 1,024 tokens",
        ),
        (
            {"loadtest": {"workload": {"source": "synthetic", "input_tokens": {"mean": 1000}}}},
            10, ConfigError, "a request has up to 1,064 tokens with its answer",
        ),
    ],
)  # fmt: skip
def test_lengths_that_do_not_fit_are_refused_with_numbers(
    tmp_path: Path, sections: dict[str, Any], longest: int, error: type[ConfigError], message: str
) -> None:
    run = _run(tmp_path, **sections)
    with pytest.raises(error) as caught:
        require_rows_fit(run.config, resolve_model("tiny-base"), longest)
    assert message in str(caught.value)
    assert caught.value.hint and caught.value.exit_code == 2


def test_vllm_s_own_variable_allows_a_longer_context(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = _run(tmp_path, serving={"max_model_len": 4096})
    monkeypatch.setenv("VLLM_ALLOW_LONG_MAX_MODEL_LEN", "1")
    assert require_served_length(run.config, resolve_model("tiny-base")) == 4096


def test_check_refuses_rows_beyond_the_context_of_the_base(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the base model tiny-base takes 1,024"):
        check_run(_run(tmp_path, words=600))


@pytest.mark.parametrize(
    ("sections", "key"),
    [
        ({"evaluation": {"max_new_tokens": 400}}, "evaluation.max_new_tokens"),
        ({"reference": {"max_new_tokens": 400}}, "reference.max_new_tokens"),
        ({"loadtest": {"max_tokens": 400}}, "loadtest.max_tokens"),
    ],
)
def test_a_held_out_prompt_that_leaves_no_room_for_its_answer_is_refused(
    tmp_path: Path, sections: dict[str, Any], key: str
) -> None:
    short = {
        "evaluation": {"max_new_tokens": 8}, "reference": {"max_new_tokens": 8},
        "loadtest": {"max_tokens": 8},
    }  # fmt: skip
    run = _run(tmp_path, words=150, serving={"max_model_len": 512}, **short)
    assert check_run(run).found["data checks"]
    run = _run(tmp_path, words=150, serving={"max_model_len": 512}, **{**short, **sections})
    with pytest.raises(DataError, match=f"tokens, and {key} asks for 400 more") as caught:
        check_run(run)
    assert "Set serving.max_model_len: " in str(caught.value.hint)
    # A training of its own asks no server.
    dataset = make_dataset(run)
    training = select_stages(run, stage_names(run, groups=("training",)))
    require_dataset(run, training, dataset)

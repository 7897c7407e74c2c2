"""The table of flags: which rows suit a run, and which settings are impossible."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from serving.config import ServingConfig
from tuneline.pipeline.run_config import load_run
from tuneline.pipeline.tune.schema import Offer
from tuneline.pipeline.tune.table import (
    BATCHED,
    CHUNKED_PREFILL,
    KNOBS,
    PREFIX_CACHING,
    SEQS,
    SPECULATION,
    Facts,
    is_impossible,
    is_own,
)
from tuneline.pipeline.tune.tune import chosen_knobs, offers_of

EXAMPLE = Path(__file__).parents[4] / "examples" / "support-tickets" / "run.yaml"


def offered(serving: dict[str, Any], **facts: Any) -> dict[str, Offer]:
    config = ServingConfig.model_validate(serving)
    given = {"has_gpu": False, **facts}
    return {offer.knob: offer for offer in offers_of(Facts(config, **given))}


@pytest.mark.parametrize("prunes", [False, True])
def test_every_row_has_a_reason_and_settings_that_run_yaml_takes(prunes: bool) -> None:
    facts = Facts(
        ServingConfig(enforce_eager=True), has_gpu=False, forms=("int8", "fp8"),
        drafter=Path("/models/small"), prunes=prunes,
    )  # fmt: skip
    overrides = ["export.forms=[quantized-int8,quantized-fp8]"]
    if prunes:
        overrides = [
            "export.forms=[quantized-int8,quantized-fp8,pruned]",
            "export.prune={sparsity: 0.5}",
        ]
    offers = offers_of(facts)
    assert [offer.knob for offer in offers] == [knob.name for knob in KNOBS]
    assert len({knob.name for knob in KNOBS}) == len(KNOBS) == 9
    for offer in offers:
        assert offer.unsuited is None and offer.settings and offer.reason, offer.knob
        for settings in offer.settings:
            load_run(EXAMPLE, overrides, values=settings)  # raises for what run.yaml does not take


def test_int8_weights_on_a_cpu_take_bfloat16_along() -> None:
    own = {"dtype": "float32"}
    on_cpu = offered(own, forms=("int8", "fp8"))["quantized weights"]
    assert on_cpu.settings == [
        {"export.merge.quantize": "int8", "export.forms": [], "serving.dtype": "bfloat16"},
        {"export.merge.quantize": "fp8", "export.forms": []},
    ]
    on_gpu = offered(own, forms=("int8",), has_gpu=True)["quantized weights"]
    assert on_gpu.settings == [{"export.merge.quantize": "int8", "export.forms": []}]


@pytest.mark.parametrize(
    ("serving", "facts", "knob", "words"),
    [
        ({}, {}, "compilation", "compiles already"),
        ({}, {}, "quantized weights", "exported no quantized form"),
        ({"mode": "adapter"}, {"forms": ("int8",)}, "quantized weights", "adapter"),
        ({}, {}, "drafter", "no --drafter"),
        ({"extra_args": {"enable-prefix-caching": True}}, {}, "prefix caching", "run.yaml sets"),
        ({"extra_args": {"stream_interval": 1}}, {}, "stream interval", "run.yaml sets"),
        ({"extra_args": {"speculative_config": {}}}, {}, "n-gram speculation", "run.yaml sets"),
        ({"extra_args": {"enable_chunked_prefill": False}}, {}, "whole prefill", "run.yaml sets"),
    ],
)
def test_a_row_that_does_not_suit_says_why(
    serving: dict[str, Any], facts: dict[str, Any], knob: str, words: str
) -> None:
    offer = offered(serving, **facts)[knob]
    assert words in (offer.unsuited or "")
    assert offer.settings == []


def test_the_runs_own_value_is_not_tried_again() -> None:
    assert {SEQS: 64} not in offered({"max_num_seqs": 64})["sequences"].settings
    assert {SEQS: 64} in offered({})["sequences"].settings
    config = ServingConfig(max_num_seqs=64, extra_args={"enable_prefix_caching": False})
    assert is_own({SEQS: 64, PREFIX_CACHING: False}, config)
    assert not is_own({SEQS: 64, SPECULATION: None}, config)


@pytest.mark.parametrize(
    ("settings", "serving", "words"),
    [
        ({SEQS: 1024, BATCHED: 512}, {}, "512 batched tokens are fewer than 1024 sequences"),
        ({BATCHED: 512}, {"max_num_seqs": 600}, "fewer than 600"),
        ({CHUNKED_PREFILL: False, BATCHED: 512}, {"max_model_len": 1024}, "no prompt of 1024"),
        ({SEQS: 512, BATCHED: 512}, {}, None),
        ({CHUNKED_PREFILL: False, BATCHED: 2048}, {"max_model_len": 1024}, None),
        ({SEQS: 512}, {}, None),
    ],
)
def test_settings_that_the_engine_refuses(
    settings: dict[str, Any], serving: dict[str, Any], words: str | None
) -> None:
    found = is_impossible(settings, ServingConfig.model_validate(serving))
    assert found is None if words is None else words in (found or "")


def test_chosen_rows_keep_the_order_of_the_table() -> None:
    names = [knob.name for knob in chosen_knobs(["sequences", "compilation"])]
    assert names == ["compilation", "sequences"]
    assert chosen_knobs([]) == list(KNOBS)

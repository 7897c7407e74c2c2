"""The table of kinds covers every artifact that a step writes."""

import re
from pathlib import Path
from typing import Any

import pytest

from export import FORMS
from tuneline.core.artifact_kinds import KINDS

ROOT = Path(__file__).parents[3]
ROOMS = ("training", "export", "serving", "loadtest", "k8s", "tuneline")
METRICS: dict[str, tuple[dict[str, Any], str]] = {
    "dataset": ({"num_train": 1200, "num_heldout": 5}, "1,200 training rows, 5 held-out rows"),
    "adapter": (
        {"num_steps": 9, "eval_loss_before": 2.5, "eval_loss": 0.25, "trained_tokens_per_s": 1500},
        "9 steps, held-out loss 2.500 → 0.250, 1,500 trained tokens/s",
    ),
    "acceptance": (
        {
            "share_right": 0.75, "num_tokens": 4096,
            "drafted": [
                {"num_drafted": 1, "tokens_per_step": 1.75},
                {"num_drafted": 8, "tokens_per_step": 3.25},
            ],
        },
        "75.0% of 4,096 tokens are guessed: 3.25 tokens per step with 8 drafted",
    ),
    "evaluation": ({"exact_match": 0.925, "num_rows": 40}, "exact match 92.5% of 40"),
    "evaluation-report": (
        {
            "metrics": {
                "exact_match": {
                    "base": 0.1, "tuned": 0.85, "difference": 0.75, "interval": [0.625, 0.875],
                }
            }
        },
        "exact match 10.0% → 85.0%, difference +75.0 points (95 %: +62.5 to +87.5)",
    ),
    "forgetting": (
        {"verdict": "FAIL", "difference": -0.125, "num_items": 305, "interval": [-0.25, -0.05]},
        "FAIL, -12.5 points on 305 items (95 %: -25.0 to -5.0)",
    ),
    "harness": (
        {"tasks": {"colors": {"acc,none": 0.5, "acc_stderr,none": 0.1, "sample_len": 3}}},
        "colors acc 0.500",
    ),
    "preferences": (
        {
            "num_pairs": 40, "accuracy": 0.9, "accuracy_interval": [0.77, 0.96], "margin": 1.25,
        },
        "prefers the better answer in 90.0% of 40 pairs (77.0% to 96.0%), margin 1.250",
    ),
    "retrieval": (
        {
            "ndcg_base": 0.25, "ndcg": 0.75, "ndcg_difference_interval": [0.25, 0.625],
            "num_queries": 40, "num_passages": 1000,
        },
        "nDCG@10 0.250 → 0.750 (difference +0.250 to +0.625), 40 queries, 1000 passages",
    ),
    "ranking": (
        {
            "ndcg": 0.75, "ndcg_interval": [0.5, 0.875], "mrr": 0.5, "recall": 1.0,
            "num_queries": 40, "num_passages": 1000,
        },
        "nDCG@10 0.750 (95 %: 0.500 to 0.875), MRR@10 0.500, recall@10 1.000, 40 queries, 1000 "
        "passages",
    ),
    "relevance-parity": (
        {
            "verdict": "PASS", "num_pairs": 64, "num_lists": 16, "max_relative_difference": 2e-6,
        },
        "PASS, 64 pairs of 16 queries, scores within 2e-06 standard deviations",
    ),
    "trained-vector-parity": (
        {
            "verdict": "PASS", "num_texts": 64, "max_relative_difference": 2e-6,
            "min_cosine": 0.99999949,
        },
        "PASS, 64 texts, vectors within 2e-06 of their length, cosine at least 0.999999",
    ),
    "reference": ({"num_prompts": 4, "num_tokens": 2048}, "4 prompts, 2,048 tokens"),
    "model": (
        {"num_changed_tensors": 3, "num_tensors": 7, "size_bytes": 2**21},
        "3 of 7 tensors changed, 2.0 MiB",
    ),
    "reward-parity": (
        {
            "verdict": "PASS", "max_relative_difference": 0.00012, "num_equal_orders": 11,
            "num_pairs": 12,
        },
        "PASS, scores within 0.0001 standard deviations, 11 of 12 pairs in one order",
    ),
    "vector-parity": (
        {
            "verdict": "PASS", "num_texts": 13, "recipe": "mean pooling, normalized",
            "min_cosine": 0.99999949,
        },
        "PASS, 13 texts, mean pooling, normalized, cosine at least 0.999999",
    ),
    "score-parity": (
        {
            "verdict": "PASS", "num_texts": 13, "num_pairs": 12, "num_labels": 1,
            "activation": "sigmoid",
        },
        "PASS, 13 texts, 12 pairs, 1 labels, sigmoid",
    ),
    "parity": (
        {
            "verdict": "FAIL", "num_equal_answers": 3, "num_prompts": 4,
            "max_logprob_difference": 0.25,
        },
        "FAIL, 3 of 4 answers equal, log-probabilities within 0.2 nats",
    ),
    "ladder": (
        {"verdicts": {"merged": "PASS", "onnx-int4": "FAIL"}}, "merged PASS, onnx-int4 FAIL",
    ),
    "load-report": ({"verdict": "PASS"}, "PASS"),
    "load-shard": ({}, "the records of one load pod"),
    "load-search": ({"verdict": "INCONCLUSIVE"}, "INCONCLUSIVE"),
    "load-sweep": ({"verdict": "INVALID"}, "INVALID"),
    "load-pareto": ({"verdict": "FAIL"}, "FAIL"),
    "load-comparison": ({"verdict": "FAIL"}, "FAIL"),
    "tune": (
        {
            "verdict": "PASS", "rate_rps": 12.0, "is_changed": True, "gain": 1.5,
            "gain_interval": [1.25, None],
        },
        "PASS, 12 requests/s, 1.50 times the run's own (1.25 to more)",
    ),
    "release": (
        {"verdict": "PASS", "is_signed": True, "waived": ["load", "speed"]},
        "PASS, signed, waived: load, speed",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_has_a_one_line_summary(kind: str) -> None:
    metrics, expected = METRICS[kind]
    assert KINDS[kind].summary(metrics) == expected


@pytest.mark.parametrize(
    ("figures", "summary"),
    [
        ({"is_changed": False}, "PASS, the run's own settings stay: 12 requests/s"),
        ({"gain": None}, "PASS, 12 requests/s; the run's own settings hold no rate"),
        (
            {"gain_interval": [1.1, 2.0]},
            "PASS, 12 requests/s, 1.50 times the run's own (1.10 to 2.00)",
        ),
    ],
)
def test_a_tuning_says_what_it_gained(figures: dict[str, Any], summary: str) -> None:
    assert KINDS["tune"].summary({**METRICS["tune"][0], **figures}) == summary


@pytest.mark.parametrize(
    ("figures", "summary"),
    [
        ({"eval_accuracy_before": 0.5, "eval_accuracy": 1.0}, "accuracy 0.500 → 1.000"),
        # DPO's accuracy before training is one of ties.
        (
            {"eval_accuracy": 1.0, "eval_margin_before": 0.0, "eval_margin": 0.516},
            "margin 0.000 → 0.516",
        ),
        ({"eval_reward_before": 0.25, "eval_reward": 2.0}, "reward 0.250 → 2.000"),
    ],
)
def test_an_adapter_is_summed_up_by_the_figure_of_its_method(
    figures: dict[str, float], summary: str
) -> None:
    metrics = {**METRICS["adapter"][0], **figures}
    expected = f"9 steps, held-out {summary}, 1,500 trained tokens/s"
    assert KINDS["adapter"].summary(metrics) == expected


def test_a_reward_is_summed_up_by_its_difference() -> None:
    metrics = {
        "reward_difference": 0.5, "reward_difference_interval": [0.25, 0.75], "reward": 1.0,
        "reward_base": 0.5,
    }  # fmt: skip
    expected = "reward 0.500 → 1.000 (difference +0.250 to +0.750)"
    assert KINDS["preferences"].summary(metrics) == expected


def test_a_quantized_model_counts_quantized_tensors() -> None:
    metrics = {"num_quantized_tensors": 2, "num_tensors": 7, "size_bytes": 2**20}
    assert KINDS["model"].summary(metrics) == "2 of 7 tensors quantized, 1.0 MiB"


def test_a_parity_without_differences_has_no_nats() -> None:
    metrics = {**METRICS["parity"][0], "max_logprob_difference": None}
    assert KINDS["parity"].summary(metrics) == "FAIL, 3 of 4 answers equal"


def test_every_kind_that_a_step_writes_is_in_the_table() -> None:
    text = "".join(f.read_text() for room in ROOMS for f in sorted((ROOT / room).rglob("*.py")))
    written = set(re.findall(r'new_artifact\(\s*\w+,\s*"([a-z-]+)"', text))
    assert len(written) > 6
    # Forms are summarized by their size.
    assert written - KINDS.keys() <= {form.kind for form in FORMS.values()}

"""The kinds of artifacts: one row per kind, and the only place that knows what a kind holds.

A kind without a row has no verdict and is summarized by its size; the kinds of graphs that the
table of export forms adds are such kinds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Metrics = Mapping[str, Any]


@dataclass(frozen=True)
class Kind:
    """The content of an artifact of one kind.

    Attributes:
        summary: Returns one line for people from the manifest's metrics.
        payload: The file that holds the content, if one file does.
        verdict_file: The JSON file whose key `verdict` holds the verdict; None without a verdict.
        is_printed: Whether `--json` prints the payload too.
    """

    summary: Callable[[Metrics], str]
    payload: str | None = None
    verdict_file: str | None = None
    is_printed: bool = False


def _dataset(metrics: Metrics) -> str:
    return f"{metrics['num_train']:,} training rows, {metrics['num_heldout']:,} held-out rows"


def _adapter(metrics: Metrics) -> str:
    names = ("reward", "accuracy", "margin", "loss")
    figure = next(name for name in names if f"eval_{name}_before" in metrics)
    before, after = metrics[f"eval_{figure}_before"], metrics[f"eval_{figure}"]
    return (
        f"{metrics['num_steps']} steps, held-out {figure} {before:.3f} → {after:.3f}, "
        f"{metrics['trained_tokens_per_s']:,.0f} trained tokens/s"
    )


def _acceptance(metrics: Metrics) -> str:
    best = max(metrics["drafted"], key=lambda one: one["num_drafted"])
    return (
        f"{metrics['share_right']:.1%} of {metrics['num_tokens']:,} tokens are guessed: "
        f"{best['tokens_per_step']:.2f} tokens per step with {best['num_drafted']} drafted"
    )


def _preferences(metrics: Metrics) -> str:
    if "reward_difference" in metrics:
        low, high = metrics["reward_difference_interval"]
        return (
            f"reward {metrics['reward_base']:.3f} → {metrics['reward']:.3f} "
            f"(difference {low:+.3f} to {high:+.3f})"
        )
    low, high = metrics["accuracy_interval"]
    return (
        f"prefers the better answer in {metrics['accuracy']:.1%} of {metrics['num_pairs']} pairs "
        f"({low:.1%} to {high:.1%}), margin {metrics['margin']:.3f}"
    )


def _retrieval(metrics: Metrics) -> str:
    low, high = metrics["ndcg_difference_interval"]
    against = f" (base: {metrics['base_order']})" if "base_order" in metrics else ""
    return (
        f"nDCG@10 {metrics['ndcg_base']:.3f} → {metrics['ndcg']:.3f} (difference {low:+.3f} to "
        f"{high:+.3f}), {metrics['num_queries']} queries, "
        f"{metrics['num_passages']} passages{against}"
    )


def _ranking(metrics: Metrics) -> str:
    if "ndcg_base" in metrics:
        return _retrieval(metrics)
    low, high = metrics["ndcg_interval"]
    return (
        f"nDCG@10 {metrics['ndcg']:.3f} (95 %: {low:.3f} to {high:.3f}), MRR@10 "
        f"{metrics['mrr']:.3f}, recall@10 {metrics['recall']:.3f}, {metrics['num_queries']} "
        f"queries, {metrics['num_passages']} passages"
    )


def _evaluation(metrics: Metrics) -> str:
    return f"exact match {metrics['exact_match']:.1%} of {metrics['num_rows']}"


def _comparison(metrics: Metrics) -> str:
    match = metrics["metrics"]["exact_match"]
    low, high = match["interval"]
    return (
        f"exact match {match['base']:.1%} → {match['tuned']:.1%}, difference "
        f"{100 * match['difference']:+.1f} points (95 %: {100 * low:+.1f} to {100 * high:+.1f})"
    )


def _forgetting(metrics: Metrics) -> str:
    low, high = metrics["interval"]
    if not metrics["num_items"]:
        return f"{_verdict(metrics)}, the base has none of the skills: nothing to forget"
    return (
        f"{_verdict(metrics)}, {100 * metrics['difference']:+.1f} points on "
        f"{metrics['num_items']} items (95 %: {100 * low:+.1f} to {100 * high:+.1f})"
    )


def _harness(metrics: Metrics) -> str:
    return ", ".join(
        f"{task} {key.partition(',')[0]} {value:.3f}"
        for task, row in metrics["tasks"].items()
        for key, value in row.items()
        if not key.startswith(("sample", "alias")) and "_stderr" not in key
    )


def _reference(metrics: Metrics) -> str:
    return f"{metrics['num_prompts']} prompts, {metrics['num_tokens']:,} tokens"


def _model(metrics: Metrics) -> str:
    if "num_steps" in metrics:  # trained whole
        return _adapter(metrics)
    changed = (
        f"{metrics['num_changed_tensors']} of {metrics['num_tensors']} tensors changed"
        if "num_changed_tensors" in metrics
        else f"{metrics['num_quantized_tensors']} of {metrics['num_tensors']} tensors quantized"
    )
    return f"{changed}, {_size(metrics)}"


def _size(metrics: Metrics) -> str:
    return f"{metrics['size_bytes'] / 2**20:,.1f} MiB"


def _parity(metrics: Metrics) -> str:
    nats = metrics["max_logprob_difference"]
    within = "" if nats is None else f", log-probabilities within {nats:.1g} nats"
    equal = f"{metrics['num_equal_answers']} of {metrics['num_prompts']} answers equal"
    return f"{_verdict(metrics)}, {equal}{within}"


def _rewards(metrics: Metrics) -> str:
    return (
        f"{_verdict(metrics)}, scores within {metrics['max_relative_difference']:.1g} standard "
        f"deviations, {metrics['num_equal_orders']} of {metrics['num_pairs']} pairs in one order"
    )


def _vectors(metrics: Metrics) -> str:
    cosine = metrics["min_cosine"]
    least = "" if cosine is None else f", cosine at least {cosine:.6f}"
    return f"{_verdict(metrics)}, {metrics['num_texts']} texts, {metrics['recipe']}{least}"


def _relevance(metrics: Metrics) -> str:
    return (
        f"{_verdict(metrics)}, {metrics['num_pairs']} pairs of {metrics['num_lists']} queries, "
        f"scores within {metrics['max_relative_difference']:.1g} standard deviations"
    )


def _trained_vectors(metrics: Metrics) -> str:
    if metrics["max_relative_difference"] is None:
        return f"{_verdict(metrics)}, {metrics['num_texts']} texts"
    return (
        f"{_verdict(metrics)}, {metrics['num_texts']} texts, vectors within "
        f"{metrics['max_relative_difference']:.1g} of their length, cosine at least "
        f"{metrics['min_cosine']:.6f}"
    )


def _scores(metrics: Metrics) -> str:
    return (
        f"{_verdict(metrics)}, {metrics['num_texts']} texts, {metrics['num_pairs']} pairs, "
        f"{metrics['num_labels']} labels, {metrics['activation']}"
    )


def _verdict(metrics: Metrics) -> str:
    return str(metrics["verdict"]).upper()


def _verdicts(metrics: Metrics) -> str:
    return ", ".join(f"{form} {verdict}" for form, verdict in metrics["verdicts"].items())


def _shard(_metrics: Metrics) -> str:
    return "the records of one load pod"


def _tune(metrics: Metrics) -> str:
    rate = metrics["rate_rps"]
    found = "no rate holds" if rate is None else f"{rate:.3g} requests/s"
    if not metrics["is_changed"]:
        return f"{_verdict(metrics)}, the run's own settings stay: {found}"
    gain = metrics["gain"]
    if gain is None:
        return f"{_verdict(metrics)}, {found}; the run's own settings hold no rate"
    low, high = metrics["gain_interval"]
    most = "more" if high is None else f"{high:.2f}"
    return f"{_verdict(metrics)}, {found}, {gain:.2f} times the run's own ({low:.2f} to {most})"


def _release(metrics: Metrics) -> str:
    waived = ", ".join(metrics["waived"])
    signed = "signed" if metrics["is_signed"] else "not signed"
    return f"{_verdict(metrics)}, {signed}" + (f", waived: {waived}" if waived else "")


REPORT = "report.json"
RELEASE = "release.json"
TUNE = "tune.json"

KINDS: dict[str, Kind] = {
    "acceptance": Kind(_acceptance, payload="acceptance.json"),
    "dataset": Kind(_dataset),
    "adapter": Kind(_adapter, payload="adapter_model.safetensors"),
    "evaluation": Kind(_evaluation, payload="predictions.jsonl"),
    "evaluation-report": Kind(_comparison, payload="comparison.json"),
    "forgetting": Kind(_forgetting, payload="forgetting.json"),
    "harness": Kind(_harness, payload="harness.json"),
    "preferences": Kind(_preferences, payload="preferences.jsonl"),
    "retrieval": Kind(_retrieval, payload="retrieval.json"),
    "ranking": Kind(_ranking, payload="ranking.json"),
    "reference": Kind(_reference, payload="reference.jsonl"),
    "model": Kind(_model),
    "parity": Kind(_parity, payload="parity.json", verdict_file="parity.json"),
    "reward-parity": Kind(_rewards, payload="rewards.json", verdict_file="rewards.json"),
    "relevance-parity": Kind(_relevance, payload="relevance.json", verdict_file="relevance.json"),
    "trained-vector-parity": Kind(
        _trained_vectors, payload="vectors.json", verdict_file="vectors.json"
    ),
    "vector-parity": Kind(_vectors, payload="vectors.json", verdict_file="vectors.json"),
    "score-parity": Kind(_scores, payload="scores.json", verdict_file="scores.json"),
    "ladder": Kind(_verdicts, payload="ladder.json"),
    "load-report": Kind(_verdict, payload=REPORT, verdict_file=REPORT, is_printed=True),
    "load-shard": Kind(_shard),
    "load-search": Kind(_verdict, payload=REPORT, verdict_file=REPORT),
    "load-sweep": Kind(_verdict, payload=REPORT, verdict_file=REPORT),
    "load-pareto": Kind(_verdict, payload=REPORT, verdict_file=REPORT),
    "load-comparison": Kind(_verdict, payload=REPORT, verdict_file=REPORT),
    "tune": Kind(_tune, payload=TUNE, verdict_file=TUNE, is_printed=True),
    "release": Kind(_release, payload=RELEASE, verdict_file=RELEASE, is_printed=True),
}

"""Every figure of a release, each with the file and the place that it comes from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tuneline.core.parity import PARITY_FILE
from tuneline.core.release import Figure
from tuneline.pipeline.products.table import SERVED_PROOFS
from tuneline.pipeline.stage import (
    ADAPTER,
    DATASET,
    EVALUATION_BASE,
    EVALUATION_REPORT,
    EVALUATION_SERVED,
    EVALUATION_TUNED,
    FORGETTING,
    LOADTEST,
    PARITY_SERVED,
    PREFERENCES,
    RETRIEVAL,
)
from tuneline.release.gates.evaluation import COMPARISON_FILE, PREFERENCES_FILE, SCORES_FILE
from tuneline.release.gates.forgetting import FILE as FORGETTING_FILE
from tuneline.release.gates.load import REPORT as LOAD_FILE
from tuneline.release.gates.retrieval import SUMMARY_FILE as RETRIEVAL_FILE
from tuneline.release.proofs import Proofs

EVALUATIONS = {EVALUATION_BASE: "base", EVALUATION_TUNED: "tuned", EVALUATION_SERVED: "served"}
NATS = "nats"
TRAINING = {
    "num_steps": ("Optimizer steps", ""),
    "num_trained_tokens": ("Trained tokens", "tokens"),
    "trained_tokens_per_s": ("Training throughput", "tokens/s"),
    "eval_loss_before": ("Held-out loss before training", NATS),
    "eval_loss": ("Held-out loss after training", NATS),
    "wall_s": ("Time of training", "s"),
    "peak_memory_bytes": ("Peak memory of training", "bytes"),
}
COMPARED = {
    "accuracy": "Better answer preferred by the tuned model",
    "margin": "Margin of the rewards of better and worse answer",
    "likelier_base": "Better answer likelier, base model",
    "likelier": "Better answer likelier, tuned model",
    "reward_base": "Reward, base model",
    "reward": "Reward, tuned model",
    "reward_difference": "Reward, tuned minus base",
}
RANKED = {
    "ndcg_base": "nDCG@10, base model",
    "ndcg": "nDCG@10, tuned model",
    "ndcg_difference": "nDCG@10, tuned minus base",
    "mrr_base": "MRR@10, base model",
    "mrr": "MRR@10, tuned model",
    "recall_base": "Recall@10, base model",
    "recall": "Recall@10, tuned model",
}
PARITY = {
    "greedy_agreement": ("answers equal", ""),
    "max_logprob_difference": ("largest log-probability difference", "nats"),
    "mean_logprob_difference": ("mean log-probability difference", "nats"),
    "mean_kl": ("mean KL divergence", "nats"),
    "accuracy": ("right answers", ""),
}
LATENCIES = {
    "ttft_s": "TTFT",
    "tpot_s": "TPOT",
    "itl_s": "ITL",
    "e2e_s": "End-to-end latency",
}
THROUGHPUT = {
    "offered_rps": ("Offered rate", "requests/s"),
    "succeeded_rps": ("Served rate", "requests/s"),
    "output_tokens_per_s": ("Output throughput", "tokens/s"),
    "prompt_tokens_per_s": ("Prompt throughput", "tokens/s"),
    "goodput_rps": ("Goodput", "requests/s"),
}
OF_TOKENS = ("ttft_s", "tpot_s", "itl_s", "output_tokens_per_s")
"""Figures of the load test of a model that gives text."""


def figures_of(proofs: Proofs) -> list[Figure]:
    """Return the figures in the order of the line."""
    return [
        *_of_manifests(proofs),
        *_of_evaluations(proofs),
        *_of_preferences(proofs),
        *_of_retrieval(proofs),
        *_of_forgetting(proofs),
        *_of_parities(proofs),
        *_of_numbers(proofs),
        *_of_load(proofs),
    ]


def _of_manifests(proofs: Proofs) -> Iterator[Figure]:
    method = proofs.run.config.training.method
    names = {"num_train": ("Training rows", ""), "num_heldout": ("Held-out rows", "")}
    trained = {
        name: (title, "" if unit == NATS and not method.has_token_loss else unit)
        for name, (title, unit) in TRAINING.items()
    }
    for stage, wanted, prefix in ((DATASET, names, "data"), (ADAPTER, trained, "training")):
        artifact = proofs.made.get(stage)
        if artifact is None:
            continue
        for name, (title, unit) in wanted.items():
            if name in artifact.manifest.metrics:
                yield Figure(
                    name=f"{prefix}.{name}", title=title, unit=unit,
                    value=artifact.manifest.metrics[name],
                    source=proofs.metrics_source(stage, f"/{name}"),
                )  # fmt: skip


def _of_evaluations(proofs: Proofs) -> Iterator[Figure]:
    for stage, who in EVALUATIONS.items():
        if stage not in proofs.made:
            continue
        for name, found in proofs.read(stage, SCORES_FILE)["metrics"].items():
            yield Figure(
                name=f"evaluation.{who}.{name}", title=_title(found["title"], f"{who} model"),
                value=found["value"], interval=found["interval"],
                source=proofs.source(stage, SCORES_FILE, f"/metrics/{name}/value"),
            )  # fmt: skip
    if EVALUATION_REPORT in proofs.made:
        for name, found in proofs.read(EVALUATION_REPORT, COMPARISON_FILE)["metrics"].items():
            yield Figure(
                name=f"evaluation.difference.{name}",
                title=_title(found["title"], "tuned minus base"),
                value=found["difference"], interval=found["interval"],
                source=proofs.source(
                    EVALUATION_REPORT, COMPARISON_FILE, f"/metrics/{name}/difference"
                ),
            )  # fmt: skip


def _of_preferences(proofs: Proofs) -> Iterator[Figure]:
    if PREFERENCES not in proofs.made:
        return
    found = proofs.read(PREFERENCES, PREFERENCES_FILE)
    for name, title in COMPARED.items():
        if name in found:
            yield Figure(
                name=f"evaluation.preferences.{name}", title=title, value=found[name],
                interval=found.get(f"{name}_interval"),
                source=proofs.source(PREFERENCES, PREFERENCES_FILE, f"/{name}"),
            )  # fmt: skip


def _of_retrieval(proofs: Proofs) -> Iterator[Figure]:
    if RETRIEVAL not in proofs.made:
        return
    found = proofs.read(RETRIEVAL, RETRIEVAL_FILE)
    for name, title in RANKED.items():
        yield Figure(
            name=f"evaluation.retrieval.{name}", title=title, value=found[name],
            interval=found.get(f"{name}_interval"),
            source=proofs.source(RETRIEVAL, RETRIEVAL_FILE, f"/{name}"),
        )  # fmt: skip


def _title(metric: str, of: str) -> str:
    return f"{metric[0].upper()}{metric[1:]}, {of}"


def _of_forgetting(proofs: Proofs) -> Iterator[Figure]:
    if FORGETTING not in proofs.made:
        return
    report = proofs.read(FORGETTING, FORGETTING_FILE)
    yield Figure(
        name="forgetting.difference", title="Forgetting suite, tuned minus base",
        value=report["difference"], interval=report["interval"],
        source=proofs.source(FORGETTING, FORGETTING_FILE, "/difference"),
    )  # fmt: skip
    for skill, found in report["skills"].items():
        yield Figure(
            name=f"forgetting.{skill}", title=f"Skill {skill}, tuned minus base",
            value=found["difference"], interval=found["interval"],
            source=proofs.source(FORGETTING, FORGETTING_FILE, f"/skills/{skill}/difference"),
        )  # fmt: skip


def _of_parities(proofs: Proofs) -> Iterator[Figure]:
    for stage in proofs.names_of("parity"):
        if stage not in proofs.made:
            continue
        found = proofs.read(stage, PARITY_FILE)
        for name, (title, unit) in PARITY.items():
            if found[name] is None:  # no answer of the reference is right or wrong
                continue
            yield Figure(
                name=f"parity.{found['form']}.{name}", title=f"{found['form']}: {title}",
                value=found[name], unit=unit, source=proofs.source(stage, PARITY_FILE, f"/{name}"),
            )  # fmt: skip


def _of_numbers(proofs: Proofs) -> Iterator[Figure]:
    """Return the figures of the served scores or vectors."""
    made = proofs.made.get(PARITY_SERVED)
    proof = None if made is None else SERVED_PROOFS.get(made.kind)
    if proof is None:
        return
    found = proofs.read(PARITY_SERVED, proof.file)
    for name, (title, unit) in proof.figures.items():
        if found[name] is not None:
            yield Figure(
                name=f"parity.served.{name}", title=f"served: {title}", value=found[name],
                unit=unit, source=proofs.source(PARITY_SERVED, proof.file, f"/{name}"),
            )  # fmt: skip


def _of_load(proofs: Proofs) -> Iterator[Figure]:
    if LOADTEST not in proofs.made:
        return
    # A score comes whole: it has no first token and no output tokens.
    left_out = OF_TOKENS if proofs.run.config.serving.pools else ()
    for index, scenario in enumerate(proofs.read(LOADTEST, LOAD_FILE)["scenarios"]):
        name, at = scenario["name"], f"/scenarios/{index}"
        for metric, title in LATENCIES.items():
            if metric not in left_out:
                yield from _percentiles(proofs, scenario, metric, f"{name}: {title}", at)
        for key, (title, unit) in THROUGHPUT.items():
            # The rate of good requests is null if the run has no limits of a good request.
            if scenario["throughput"][key] is None or key in left_out:
                continue
            yield Figure(
                name=f"load.{name}.{key}", title=f"{name}: {title}", unit=unit,
                value=scenario["throughput"][key],
                source=proofs.source(LOADTEST, LOAD_FILE, f"{at}/throughput/{key}"),
            )  # fmt: skip
        for key, title in (("offered", "Requests"), ("error_rate", "Error rate")):
            yield Figure(
                name=f"load.{name}.{key}", title=f"{name}: {title}",
                value=scenario["requests"][key],
                source=proofs.source(LOADTEST, LOAD_FILE, f"{at}/requests/{key}"),
            )  # fmt: skip
        yield Figure(
            name=f"load.{name}.mean_in_flight", title=f"{name}: Requests in flight",
            value=scenario["mean_in_flight"],
            source=proofs.source(LOADTEST, LOAD_FILE, f"{at}/mean_in_flight"),
        )  # fmt: skip


def _percentiles(
    proofs: Proofs, scenario: dict[str, Any], metric: str, title: str, at: str
) -> Iterator[Figure]:
    found = scenario["latency"].get(metric)
    if found is None:
        return
    for percentile, value in found["percentiles"].items():
        yield Figure(
            name=f"load.{scenario['name']}.{metric}.{percentile}", title=f"{title} {percentile}",
            value=value, unit=found["unit"], interval=found["ci95"].get(percentile),
            source=proofs.source(
                LOADTEST, LOAD_FILE, f"{at}/latency/{metric}/percentiles/{percentile}"
            ),
        )  # fmt: skip

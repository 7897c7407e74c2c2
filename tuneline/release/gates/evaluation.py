"""Gates `evaluation` and `evaluation-served`: the tuned model is better, and so is the served."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from tuneline.pipeline.stage import (
    EVALUATION_BASE,
    EVALUATION_REPORT,
    EVALUATION_SERVED,
    EVALUATION_TUNED,
    PREFERENCES,
)
from tuneline.release.gates.finding import Finding, judged, missing, not_asked
from tuneline.release.proofs import Proofs
from tuneline.release.rows import (
    Compared,
    compare_in_order,
    compare_rows,
    find_lost_rows,
    mean_value,
    read_rows,
)

COMPARISON_FILE = "comparison.json"
SCORES_FILE = "evaluation.json"
PREDICTIONS_FILE = "predictions.jsonl"
PREFERENCES_FILE = "preferences.json"


def judge_evaluation(proofs: Proofs) -> Finding:
    """Compare the tuned model with the base on the held-out rows, and with the threshold.

    The interval comes from the predictions. The report's figures must be those of the predictions.
    """
    if not proofs.has_stage(EVALUATION_REPORT):
        return _judge_preferences(proofs)
    config = proofs.config
    required = f"{config.metric} better than the base's (paired interval at 95 %)"
    if config.threshold is not None:
        required += f", limit {config.threshold:g}"
    for stage in (EVALUATION_BASE, EVALUATION_TUNED, EVALUATION_REPORT):
        if stage not in proofs.made:
            return missing(proofs, stage, required)
    found = proofs.read(EVALUATION_REPORT, COMPARISON_FILE)["metrics"].get(config.metric)
    scores = proofs.read(EVALUATION_TUNED, SCORES_FILE)["metrics"].get(config.metric)
    if found is None or scores is None or scores["value"] is None:
        return judged(
            False, required, "no value", f"The evaluation has no metric {config.metric}.",
            hint=f"Try: --set evaluation.metrics=[{config.metric}], or another release.metric.",
        )  # fmt: skip
    report = proofs.source(EVALUATION_REPORT, COMPARISON_FILE, f"/metrics/{config.metric}")
    base, tuned = (proofs.made[stage].path for stage in (EVALUATION_BASE, EVALUATION_TUNED))
    compared = compare_in_order(base, tuned, config.metric)
    problem = _contradiction(found, compared) or _other_value(
        scores["value"], mean_value(tuned, config.metric)
    )
    if compared is None or problem:
        return judged(
            False, required, "contradiction", f"{EVALUATION_REPORT}: {problem}.",
            hint=proofs.again(EVALUATION_REPORT), sources=(report,),
        )  # fmt: skip
    low, high = found["interval"]
    sign = 1 if scores["higher_is_better"] else -1
    within = config.threshold is None or sign * scores["value"] >= sign * config.threshold
    better = compared.low > 0
    observed = (
        f"{found['base']:.4g} → {found['tuned']:.4g}, difference {low:+.3g} to {high:+.3g}, "
        f"{found['num_rows']} rows"
    )
    sentences = [
        f"The tuned model is {'' if better else 'not shown to be '}better than the base: {observed}"
    ]
    if config.threshold is not None:
        sentences.append(
            f"{config.metric} {scores['value']:.4g} is {'within' if within else 'outside'} the "
            f"limit {config.threshold:g}"
        )
    return judged(
        better and within,
        required,
        observed,
        ". ".join(sentences) + ".",
        hint="Train longer or on more data, or evaluate more held-out rows.",
        sources=(
            report,
            proofs.source(EVALUATION_TUNED, SCORES_FILE, f"/metrics/{config.metric}"),
            *(proofs.source(one, PREDICTIONS_FILE) for one in (EVALUATION_BASE, EVALUATION_TUNED)),
        ),
    )


def _contradiction(found: dict[str, Any], compared: Compared | None) -> str:
    """Return how a comparison differs from the predictions that it is about; empty if it fits."""
    if compared is None:
        return "the predictions of the two models are about different rows"
    own = (compared.first, compared.second)
    if found["num_rows"] != compared.num_rows or not all(
        math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-12)
        for a, b in zip((found["base"], found["tuned"]), own, strict=True)
    ):
        return (
            f"{found['base']:.4g} → {found['tuned']:.4g} on {found['num_rows']} rows contradicts "
            f"the predictions, {own[0]:.4g} → {own[1]:.4g} on {compared.num_rows} rows"
        )
    return ""


def _other_value(stated: float, own: float | None) -> str:
    """Return how the value that the limit is about differs from the predictions; else empty."""
    if own is not None and math.isclose(stated, own, rel_tol=1e-9, abs_tol=1e-12):
        return ""
    return f"{SCORES_FILE} has {stated:.4g}, which contradicts the predictions, {own}"


def _judge_preferences(proofs: Proofs) -> Finding:
    """Compare the tuned model's preferences with the base's, for methods without right answers."""
    required = "the better answer preferred more often than by the base (interval at 95 %)"
    if PREFERENCES not in proofs.made:
        return missing(proofs, PREFERENCES, required)
    metrics = proofs.read(PREFERENCES, PREFERENCES_FILE)
    if "reward_difference_interval" in metrics:
        name, limit, interval = "reward difference", 0.0, metrics["reward_difference_interval"]
    else:
        name, limit, interval = "preference accuracy", 0.5, metrics["accuracy_interval"]
    low, high = interval
    better = low > limit
    return judged(
        better,
        required,
        f"{name} {low:.3g} to {high:.3g}",
        f"The tuned model is {'' if better else 'not shown to be '}better than the base: {name} "
        f"{low:.3g} to {high:.3g}; expected above {limit:g}.",
        hint="Train longer or on more data, or evaluate more held-out rows.",
        sources=(proofs.source(PREFERENCES, PREFERENCES_FILE),),
    )


def judge_served_evaluation(proofs: Proofs) -> Finding:
    """Compare the answers through the API with those of the tuned model, row by row."""
    config = proofs.config
    required = (
        f"{config.metric} through the API not below the tuned model's by more than "
        f"{config.max_regression:g} (paired interval at 95 %)"
    )
    if not proofs.has_stage(EVALUATION_SERVED):
        return not_asked(required, "The training method has no right answers to compare with.")
    for stage in (EVALUATION_TUNED, EVALUATION_SERVED):
        if stage not in proofs.made:
            return missing(proofs, stage, required)
    tuned, served = (
        read_rows(Path(proofs.made[stage].path), config.metric)
        for stage in (EVALUATION_TUNED, EVALUATION_SERVED)
    )
    compared = compare_rows(tuned, served)
    if compared is not None and (lost := find_lost_rows(tuned, served, config.max_regression)):
        return judged(
            False, required, "not comparable",
            f"{compared.num_rows} of the {len(tuned.values)} rows of the tuned model have a value "
            f"of the served model, and {lost}.",
            hint=proofs.again(EVALUATION_SERVED),
            sources=tuple(
                proofs.source(stage, PREDICTIONS_FILE)
                for stage in (EVALUATION_TUNED, EVALUATION_SERVED)
            ),
        )  # fmt: skip
    passed = compared is not None and compared.rules_out(config.max_regression)
    inconclusive = "" if compared is None else compared.inconclusive(config.max_regression)
    return judged(
        passed,
        required,
        "no common row" if compared is None else compared.observed,
        "The served model was not evaluated on the tuned model's rows."
        if compared is None
        else f"The served model answers as well as the tuned model: {compared.observed}."
        if passed
        else f"The served model may be worse than the tuned model: {compared.observed}."
        + (f" {inconclusive}." if inconclusive else ""),
        hint="Evaluate more held-out rows, or look at mismatches.html of evaluation-served.",
        sources=tuple(
            proofs.source(stage, PREDICTIONS_FILE)
            for stage in (EVALUATION_TUNED, EVALUATION_SERVED)
        ),
    )

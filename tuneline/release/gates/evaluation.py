"""Gates `evaluation` and `evaluation-served`: the tuned model is better, and so is the served."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from tuneline.core.statistics import bootstrap_interval, wilson_interval
from tuneline.pipeline.stage import (
    EVALUATION_BASE,
    EVALUATION_REPORT,
    EVALUATION_SERVED,
    EVALUATION_TUNED,
    PREFERENCES,
    RETRIEVAL,
)
from tuneline.release.gates.finding import CONTRADICTION, Finding, judged, missing, not_asked
from tuneline.release.gates.retrieval import judge_retrieval
from tuneline.release.proofs import Proofs
from tuneline.release.rows import (
    MIN_RESAMPLED_ROWS,
    Compared,
    compare_in_order,
    compare_rows,
    find_lost_rows,
    mean_value,
    read_lines,
    read_rows,
)

COMPARISON_FILE = "comparison.json"
SCORES_FILE = "evaluation.json"
PREDICTIONS_FILE = "predictions.jsonl"
PREFERENCES_FILE = "preferences.json"
PREFERENCE_ROWS_FILE = "preferences.jsonl"


def judge_evaluation(proofs: Proofs) -> Finding:
    """Compare the tuned model with the base by what its method makes: answers, preferences or
    rankings."""
    if proofs.has_stage(RETRIEVAL):
        return judge_retrieval(proofs)
    config = proofs.config
    compares = proofs.has_stage(PREFERENCES) and config.metric is None and config.threshold is None
    if compares or not proofs.has_stage(EVALUATION_REPORT):
        return _judge_preferences(proofs)
    return _judge_answers(proofs)


def _judge_answers(proofs: Proofs) -> Finding:
    """Compare the tuned model with the base on the held-out rows, and with the threshold.

    The interval comes from the predictions. The report's figures must be those of the predictions.
    """
    config, metric = proofs.config, proofs.metric
    required = f"{metric} better than the base's (paired interval at 95 %)"
    if config.threshold is not None:
        required += f", limit {config.threshold:g}"
    for stage in (EVALUATION_BASE, EVALUATION_TUNED, EVALUATION_REPORT):
        if stage not in proofs.made:
            return missing(proofs, stage, required)
    found = proofs.read(EVALUATION_REPORT, COMPARISON_FILE)["metrics"].get(metric)
    scores = proofs.read(EVALUATION_TUNED, SCORES_FILE)["metrics"].get(metric)
    if found is None or scores is None or scores["value"] is None:
        return judged(
            False, required, "no value", f"The evaluation has no metric {metric}.",
            hint=f"Try: --set evaluation.metrics=[{metric}], or another release.metric.",
            reasons=["no-metric"],
        )  # fmt: skip
    report = proofs.source(EVALUATION_REPORT, COMPARISON_FILE, f"/metrics/{metric}")
    base, tuned = (proofs.made[stage].path for stage in (EVALUATION_BASE, EVALUATION_TUNED))
    compared = compare_in_order(base, tuned, metric)
    problem = _contradiction(found, compared) or _other_value(
        scores["value"], mean_value(tuned, metric)
    )
    if compared is None or problem:
        return judged(
            False, required, "contradiction", f"{EVALUATION_REPORT}: {problem}.",
            hint=proofs.again(EVALUATION_REPORT), sources=(report,), reasons=[CONTRADICTION],
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
            f"{metric} {scores['value']:.4g} is {'within' if within else 'outside'} the "
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
            proofs.source(EVALUATION_TUNED, SCORES_FILE, f"/metrics/{metric}"),
            *(proofs.source(one, PREDICTIONS_FILE) for one in (EVALUATION_BASE, EVALUATION_TUNED)),
        ),
        reasons=_reasons(compared, within),
    )


def _reasons(compared: Compared, within: bool) -> list[str]:
    """Return the names of what failed."""
    found = {"worse": compared.high < 0, "not-better": compared.low <= 0 <= compared.high}
    return [name for name, failed in (found | {"threshold": not within}).items() if failed]


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
    """Compare the tuned model's preferences with the base's, for methods without right answers.

    The interval comes from the rows. The summary's figures must be those of the rows.
    """
    required = "the better answer preferred in more than half of the pairs (interval at 95 %)"
    if proofs.run.config.training.method.type == "grpo":
        required = "a higher reward than the base's (interval at 95 %)"
    if PREFERENCES not in proofs.made:
        return missing(proofs, PREFERENCES, required)
    rows = read_lines(proofs.made[PREFERENCES].path / PREFERENCE_ROWS_FILE)
    name, key, limit, low, high = _preference_interval(rows)
    stated = proofs.read(PREFERENCES, PREFERENCES_FILE).get(key)
    sources = (
        proofs.source(PREFERENCES, PREFERENCES_FILE, f"/{key}"),
        proofs.source(PREFERENCES, PREFERENCE_ROWS_FILE),
    )
    if stated is None or not all(
        math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-12)
        for a, b in zip(stated, (low, high), strict=True)
    ):
        return judged(
            False, required, "contradiction",
            f"{PREFERENCES}: {key} is {stated}; the rows have {low:.4g} to {high:.4g}.",
            hint=proofs.again(PREFERENCES), sources=sources, reasons=[CONTRADICTION],
        )  # fmt: skip
    enough = key == "accuracy_interval" or len(rows) >= MIN_RESAMPLED_ROWS
    better = enough and low > limit
    is_reward = not proofs.run.config.training.method.answers_prompts
    verb = "prefers" if better else "is not shown to prefer"
    sentence = (
        f"The reward model {verb} the better answer"
        if is_reward
        else f"The tuned model is {'' if better else 'not shown to be '}better than the base"
    ) + f": {name} {low:.3g} to {high:.3g}; expected above {limit:g}."
    if not enough:
        sentence += (
            f" INCONCLUSIVE: {len(rows)} rows have no interval; at least {MIN_RESAMPLED_ROWS} rows "
            "are needed."
        )
    return judged(
        better,
        required,
        f"{name} {low:.3g} to {high:.3g}, {len(rows)} rows",
        sentence,
        hint="Train longer or on more data, or evaluate more held-out rows.",
        sources=sources,
        reasons=["not-better"],
    )


def _preference_interval(rows: list[dict[str, Any]]) -> tuple[str, str, float, float, float]:
    """Return the name, the summary's key, the limit and the ends of the interval of the rows."""
    if "base_reward" in rows[0]:
        differences = [row["reward"] - row["base_reward"] for row in rows]
        return (
            "reward difference", "reward_difference_interval", 0.0, *bootstrap_interval(differences)
        )  # fmt: skip
    if "label" in rows[0]:
        good = [row["rewards"][0] for row in rows if row["label"]]
        pairs = list(zip(good, (r["rewards"][0] for r in rows if not r["label"]), strict=False))
    else:
        pairs = [tuple(row["rewards"]) for row in rows]
    share = sum(better > worse for better, worse in pairs) / len(pairs)
    return (
        "preference accuracy", "accuracy_interval", 0.5, *wilson_interval(share, len(pairs))
    )  # fmt: skip


def judge_served_evaluation(proofs: Proofs) -> Finding:
    """Compare the answers through the API with those of the tuned model, row by row."""
    config, metric = proofs.config, proofs.metric
    required = (
        f"{metric} through the API not below the tuned model's by more than "
        f"{config.max_regression:g} (paired interval at 95 %)"
    )
    if not proofs.has_stage(EVALUATION_SERVED):
        return not_asked(required, "The training method has no right answers to compare with.")
    for stage in (EVALUATION_TUNED, EVALUATION_SERVED):
        if stage not in proofs.made:
            return missing(proofs, stage, required)
    tuned, served = (
        read_rows(Path(proofs.made[stage].path), metric)
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
            reasons=["lost-rows"],
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
        hint=_served_hint(proofs, compared),
        sources=tuple(
            proofs.source(stage, PREDICTIONS_FILE)
            for stage in (EVALUATION_TUNED, EVALUATION_SERVED)
        ),
        reasons=["no-common-row" if compared is None else compared.reason],
    )


def _served_hint(proofs: Proofs, compared: Compared | None) -> str:
    if compared is None or compared.room > proofs.config.max_regression:
        return "Evaluate more held-out rows, or look at mismatches.html of evaluation-served."
    if not compared.are_shares:
        return "Lower release.max_regression."
    return f"Try: {proofs.run.command('up')} --set 'evaluation.metrics=[exact_match,rouge_l]'" + (
        "" if proofs.has_stage(PREFERENCES) else ", then release.metric: rouge_l"
    )

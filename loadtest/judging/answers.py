"""Answers under load against the reference, and repeats against their first sending. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from loadtest.client.records import SUCCEEDED, Records
from loadtest.judging.intervals import paired_difference
from loadtest.report.answer_schema import AnswerFigures, Endings, RepeatFigures, WrongAnswer
from loadtest.workload.checks import Checks
from tuneline.core.parity import compare
from tuneline.core.reference import Continuation
from tuneline.core.server_words import printable

MAX_DIVERGENCES = 5
MIN_REPEATS = 10
SUSPICIOUS_SHARE = 0.5
MIN_COMPARED_SHARE = 0.5
"""Least share of the asked prompts whose answers are compared: the rest failed."""

Answer = tuple[int, int, dict[str, Any]]
"""Index of the request, prompt of the reference, and what came."""


def judge_answers(checks: Checks, answers: Sequence[Answer], num_asked: int) -> AnswerFigures:
    """Compare the answers to the reference's prompts with the reference's answers.

    Token ids and log-probabilities are compared as the proof of a served model does, with its
    tolerances. A server that sends no ids is compared by its texts.
    """
    answers = sorted(answers, key=lambda one: one[0])
    if not answers:
        problem = f"none of {num_asked} prompts of the reference was answered"
        if not num_asked:
            problem = "the measured requests ask no prompt of the reference; expected at least one"
        return _figures(num_asked, [], "text", problems=[problem])
    expected = [checks.expected[number] for _, number, _ in answers]
    has_ids = all("logprobs" in found for _, _, found in answers)
    figures = (
        _by_ids(checks, answers, expected, num_asked)
        if has_ids
        else _by_texts(checks, answers, expected, num_asked)
    )
    drift = figures.length_drift
    problems = list(figures.problems)
    if len(answers) < MIN_COMPARED_SHARE * num_asked:
        problems.append(
            f"only {len(answers)} of {num_asked} prompts of the reference were answered; "
            f"{MIN_COMPARED_SHARE:.0%} must"
        )
    if drift is not None and abs(drift) > checks.max_length_drift:
        problems.append(
            f"the answers have {drift:+.1%} tokens compared with the reference; at most "
            f"{checks.max_length_drift:.1%} is allowed"
        )
    return figures.model_copy(update={"problems": problems})


def _by_ids(
    checks: Checks, answers: Sequence[Answer], expected: list[Continuation], num_asked: int
) -> AnswerFigures:
    found = [
        Continuation(
            messages=right.messages,
            prompt_token_ids=answer["prompt_token_ids"] or right.prompt_token_ids,
            token_ids=answer["token_ids"],
            logprobs=answer["logprobs"],
            top_logprobs=[
                {int(token): value for token, value in one.items()}
                for one in answer["top_logprobs"]
            ],
            text=answer["text"],
            finish_reason="stop" if answer["finish_reason"] == "stop" else "length",
        )
        for (_, _, answer), right in zip(answers, expected, strict=True)
    ]
    parity = compare("served", expected, found, checks.tolerances)
    return _figures(
        num_asked,
        answers,
        "token ids",
        num_equal=parity.num_equal_answers,
        token_agreement=parity.token_agreement,
        max_logprob_difference=parity.max_logprob_difference,
        mean_logprob_difference=parity.mean_logprob_difference,
        length_drift=_drift([len(one.token_ids) for one in found], expected),
        first_divergences=[
            WrongAnswer(
                request=answers[one.prompt_index][0],
                prompt=answers[one.prompt_index][1],
                position=one.position,
                expected=one.expected_text[:200],
                found=one.found_text[:200],
            )
            for one in parity.first_divergences[:MAX_DIVERGENCES]
        ],
        problems=parity.problems,
    )


def _by_texts(
    checks: Checks, answers: Sequence[Answer], expected: list[Continuation], num_asked: int
) -> AnswerFigures:
    wrong = []
    for (index, number, answer), right in zip(answers, expected, strict=True):
        text, wanted = answer["text"].strip(), right.text.strip()
        if text != wanted:
            pairs = zip(text, wanted, strict=False)
            same = next(
                (n for n, (a, b) in enumerate(pairs) if a != b), min(len(text), len(wanted))
            )
            wrong.append(
                WrongAnswer(
                    request=index,
                    prompt=number,
                    position=same,
                    expected=wanted[max(same - 20, 0) :][:200],
                    found=text[max(same - 20, 0) :][:200],
                )
            )
    num_equal = len(answers) - len(wrong)
    least = checks.tolerances.min_greedy_agreement
    problems = []
    if least is not None and num_equal / len(answers) < least:
        problems.append(
            f"{num_equal} of {len(answers)} answers equal the reference's; {least:.0%} must"
        )
    counts = [len(answer["token_ids"]) for _, _, answer in answers if "token_ids" in answer]
    return _figures(
        num_asked,
        answers,
        "text",
        num_equal=num_equal,
        length_drift=_drift(counts, expected) if len(counts) == len(answers) else None,
        first_divergences=wrong[:MAX_DIVERGENCES],
        problems=problems,
    )


def _drift(counts: Sequence[int], expected: Sequence[Continuation]) -> float:
    return sum(counts) / max(sum(len(one.token_ids) for one in expected), 1) - 1


def _figures(
    num_asked: int, answers: Sequence[Answer], compared: Any, **values: Any
) -> AnswerFigures:
    empty: dict[str, Any] = {
        "num_equal": 0, "token_agreement": None, "max_logprob_difference": None,
        "mean_logprob_difference": None, "length_drift": None, "first_divergences": [],
        "problems": [],
    }  # fmt: skip
    return AnswerFigures(
        num_asked=num_asked, num_compared=len(answers), compared=compared, **{**empty, **values}
    )


def repeat_figures(
    records: Records, bodies: Sequence[int], declared: float | None
) -> RepeatFigures | None:
    """Compare the TTFT of repeated prompts with the TTFT of their first sending.

    Args:
        records: All requests: a first sending may be part of the warm-up, a repeat is not.
        bodies: Which body each request had; equal for equal prompts.
        declared: The least share that is declared.

    Returns:
        None without MIN_REPEATS repeats.
    """
    ok = records.state == SUCCEEDED
    ttft_s = records.first_token_s - records.sent_s
    first: dict[int, float] = {}
    shares = []
    for row in np.argsort(records.intended_s, kind="stable"):
        if not ok[row] or not ttft_s[row] > 0:
            continue
        body = bodies[int(row)]
        if body in first:
            if records.warmup[row]:
                continue
            shares.append(float(ttft_s[row]) / first[body])
        else:
            first[body] = float(ttft_s[row])
    if len(shares) < MIN_REPEATS:
        return None
    # The first sendings come early, when the queue may be shorter: logs keep one slow first sending
    # from deciding, and the interval is of their mean.
    _, low, high = paired_difference(np.log(np.array(shares)), 1)
    return RepeatFigures(
        num_repeats=len(shares),
        ttft_share_p50=float(np.median(shares)),
        ttft_share_ci95=(float(np.exp(low)), float(np.exp(high))),
        declared=declared,
    )


def ending_problems(found: Endings | None) -> tuple[list[str], list[str]]:
    """Return problems and warnings of answers that are of several models, or may be cut off."""
    if found is None:
        return [], []
    problems = [
        f"{len(names)} models answered the requests to {asked}: "
        + ", ".join(f"{printable(name)} ({count})" for name, count in names.items())
        for asked, names in found.named.items()
        if len(names) > 1
    ]
    warnings = []
    if found.num_validated == 0:
        warnings.append("no answer was whole, so that its JSON or its calls could be checked")
    num_without, total = found.finish_reasons.get("", 0), sum(found.finish_reasons.values())
    if 0 < num_without < total:
        text = f"{num_without} of {total} answers have no finish reason, as the others have"
        problems.append(f"{text}: they may be cut off")
    elif num_without:
        warnings.append("no answer has a finish reason: one that is cut off looks like the others")
    return problems, warnings


def repeat_problems(
    found: RepeatFigures | None, declared: float | None
) -> tuple[list[str], list[str]]:
    """Return problems and warnings of repeats that are faster than declared."""
    if found is None or found.ttft_share_p50 is None or found.ttft_share_ci95 is None:
        if declared is None:
            return [], []
        text = f"min_repeat_ttft_share is declared; fewer than {MIN_REPEATS} prompts were repeated"
        return [text], []
    least = declared if declared is not None else SUSPICIOUS_SHARE
    if max(found.ttft_share_ci95[1], found.ttft_share_p50) >= least:
        return [], []
    text = (
        f"a repeated prompt has {found.ttft_share_p50:.0%} of the TTFT of its first sending "
        f"(N = {found.num_repeats})"
    )
    if declared is None:
        return [], [f"{text}: a cache answers; unique_prompts avoids it"]
    return [f"{text}; {least:.0%} is declared: a cache answers"], []

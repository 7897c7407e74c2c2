"""Judge what a tuned model forgot: skill by skill, item by item. Pure calculation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from training.evaluation.answerer import Reply
from training.evaluation.forgetting.items import Item
from tuneline.core.config import StrictModel
from tuneline.core.statistics import (
    count_pairs,
    mcnemar_p,
    paired_share_interval,
)
from tuneline.core.verdict import Verdict

MAX_DROP = 0.05
"""The drop over all skills that a PASS rules out, at 95 %."""
MAX_SKILL_DROP = 0.15
"""The same for one skill. Of 29 items, two equal models leave 12 points open."""
ALPHA = 0.05
"""For one test; the tests of single skills share it (Bonferroni)."""
CONSTANT = "Okay."
"""The answer of a model that cannot do anything; some items accept it."""


class SkillResult(StrictModel):
    """One skill of base and tuned model."""

    num_items: int
    base: float
    tuned: float
    constant: float
    """The share of a model that always answers "Okay."."""
    difference: float
    """`tuned` minus `base`."""
    interval: tuple[float, float]
    """Of the difference, at 95 %, Newcombe's."""
    base_only: int
    tuned_only: int
    mcnemar_p: float
    verdict: Verdict
    """INVALID if the base is not better than the constant answer: there is nothing to forget."""


class Repeats(StrictModel):
    """The noise of one model: how its answers fare when they are asked again."""

    num_asked: int
    """Items on which base and tuned model differ."""
    num_changed: int
    """Those of them whose second answer fares otherwise than the first."""


class ForgettingReport(StrictModel):
    """The suite's result."""

    verdict: Verdict
    problems: tuple[str, ...]
    base: float
    tuned: float
    difference: float
    """Over the skills that the base has; 0 if it has none."""
    interval: tuple[float, float]
    """Of the difference, at 95 %, Newcombe's."""
    num_items: int
    """Items of the skills that the base has."""
    skills: dict[str, SkillResult]
    repeats: dict[str, Repeats]
    """By model, `base` and `tuned`; empty if nothing was asked again."""


def differing(base: Sequence[bool], tuned: Sequence[bool]) -> list[int]:
    """Return the items that exactly one model passes."""
    pairs = enumerate(zip(base, tuned, strict=True))
    return [index for index, (first, second) in pairs if first is not second]


def judge_forgetting(
    items: Sequence[Item],
    base: Sequence[bool],
    tuned: Sequence[bool],
    again: Mapping[str, Mapping[int, bool]] = MappingProxyType({}),
) -> ForgettingReport:
    """Return the report of two models that answered the same items.

    A difference counts if it comes again: where a model's second answer fares otherwise than its
    first, the tuned model's result is taken to be that of the base.

    FAIL: over all skills that the base has, or for one of them, the tuned model is worse by more
    than chance explains. PASS: no skill fails, and the interval excludes a drop over `MAX_DROP`.
    INVALID: the base has none of the skills.

    Args:
        items: The items of the suite.
        base: Whether the base passed each item.
        tuned: Whether the tuned model passed each item.
        again: For each model, whether it passed when it was asked again, by item.
    """
    first_time = {"base": base, "tuned": tuned}
    changed = {
        who: [index for index, passed in found.items() if passed is not first_time[who][index]]
        for who, found in again.items()
    }
    noisy = {index for found in changed.values() for index in found}
    tuned = [base[i] if i in noisy else passed for i, passed in enumerate(tuned)]
    skills: dict[str, SkillResult] = {
        skill: _skill(
            [
                (item, first, second)
                for item, first, second in zip(items, base, tuned, strict=True)
                if item.skill == skill
            ]
        )
        for skill in dict.fromkeys(item.skill for item in items)
    }
    skills = _with_verdicts(skills)
    held: set[str] = {
        name for name, found in skills.items() if found.verdict is not Verdict.INVALID
    }
    problems = [f"{name}: nothing to forget: the base is at {_percent(found.base)}, the answer "
                f'"{CONSTANT}" at {_percent(found.constant)}'
                for name, found in skills.items() if name not in held]  # fmt: skip
    problems += [
        f"{name}: forgotten: {_percent(found.base)} → {_percent(found.tuned)}, "
        f"McNemar p {found.mcnemar_p:.2g}"
        for name, found in skills.items()
        if found.verdict is Verdict.FAIL
    ]
    rows = [
        (first, second)
        for item, first, second in zip(items, base, tuned, strict=True)
        if item.skill in held
    ]
    counts = count_pairs([first for first, _ in rows], [second for _, second in rows])
    # It has a width even if no answer changes: few equal answers do not rule out a drop.
    interval = paired_share_interval(counts) if rows else (0.0, 0.0)
    return ForgettingReport(
        verdict=_verdict(skills, held, interval),
        problems=tuple(problems),
        base=sum(base) / len(base),
        tuned=sum(tuned) / len(tuned),
        difference=(counts.second_only - counts.first_only) / len(rows) if rows else 0.0,
        interval=interval,
        num_items=len(rows),
        skills=skills,
        repeats={
            who: Repeats(num_asked=len(found), num_changed=len(changed[who]))
            for who, found in again.items()
        },
    )


def _skill(rows: Sequence[tuple[Item, bool, bool]]) -> SkillResult:
    counts = count_pairs([first for _, first, _ in rows], [second for _, _, second in rows])
    constant = [item.passes(Reply(CONSTANT, "stop")) for item, _, _ in rows]
    first = [base for _, base, _ in rows]
    against = count_pairs(constant, first)
    has_skill = (
        against.second_only > against.first_only
        and mcnemar_p(against.first_only, against.second_only) < ALPHA
    )
    n = len(rows)
    return SkillResult(
        num_items=n,
        base=sum(first) / n,
        tuned=sum(second for _, _, second in rows) / n,
        constant=sum(constant) / n,
        difference=(counts.second_only - counts.first_only) / n,
        interval=paired_share_interval(counts),
        base_only=counts.first_only,
        tuned_only=counts.second_only,
        mcnemar_p=mcnemar_p(counts.first_only, counts.second_only),
        verdict=Verdict.INCONCLUSIVE if has_skill else Verdict.INVALID,
    )


def _with_verdicts(skills: Mapping[str, SkillResult]) -> dict[str, SkillResult]:
    num_held = sum(found.verdict is not Verdict.INVALID for found in skills.values())
    judged: dict[str, SkillResult] = {}
    for name, found in skills.items():
        verdict = found.verdict
        if verdict is not Verdict.INVALID:
            if found.difference < 0 and found.mcnemar_p < ALPHA / num_held:
                verdict = Verdict.FAIL
            elif found.interval[0] >= -MAX_SKILL_DROP:
                verdict = Verdict.PASS
        judged[name] = found.model_copy(update={"verdict": verdict})
    return judged


def _verdict(
    skills: Mapping[str, SkillResult], held: set[str], interval: tuple[float, float]
) -> Verdict:
    if not held:
        return Verdict.INVALID
    if interval[1] < 0 or any(skills[name].verdict is Verdict.FAIL for name in held):
        return Verdict.FAIL
    return Verdict.PASS if interval[0] >= -MAX_DROP else Verdict.INCONCLUSIVE


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"

"""Gate `forgetting`: the tuned model keeps the skills of the base."""

from __future__ import annotations

import math
from typing import Any

from tuneline.core.errors import ArtifactError
from tuneline.core.verdict import Verdict
from tuneline.pipeline.stage import FORGETTING
from tuneline.release.gates.finding import (
    CONTRADICTION,
    UNREADABLE,
    Finding,
    judged,
    missing,
    not_asked,
    reason_of,
)
from tuneline.release.proofs import Proofs

FILE = "forgetting.json"
ANSWERS = "answers.jsonl"
REQUIRED = "not worse than the base beyond the noise of the forgetting suite"


def judge_forgetting(proofs: Proofs) -> Finding:
    """Judge the recorded answers to the forgetting suite again, if the run asks the suite.

    INVALID fails: the run asks what the base cannot show.
    """
    if not proofs.has_stage(FORGETTING):
        return not_asked(REQUIRED, "The run does not ask the suite (evaluation.forgetting: false).")
    if FORGETTING not in proofs.made:
        return missing(proofs, FORGETTING, REQUIRED)
    from training import rejudge_forgetting

    try:
        found = rejudge_forgetting(proofs.made[FORGETTING].path)
    except ArtifactError as error:
        return judged(
            False, REQUIRED, "no proof", f"{error.message}.", hint=proofs.again(FORGETTING),
            reasons=[UNREADABLE],
        )  # fmt: skip
    sources = tuple(proofs.source(FORGETTING, file) for file in (FILE, ANSWERS))
    if problem := _contradiction(proofs.read(FORGETTING, FILE), found.model_dump(mode="json")):
        return judged(False, REQUIRED, "contradiction", f"{FORGETTING}: {problem}.",
                      hint=proofs.again(FORGETTING), sources=sources,
                      reasons=[CONTRADICTION])  # fmt: skip
    verdict = found.verdict
    if verdict is Verdict.INVALID:
        return judged(
            False, REQUIRED, str(verdict),
            "The base has none of the suite's skills, so the suite cannot show that none is lost.",
            hint="Set evaluation.forgetting: false.",
            sources=sources, reasons=["invalid"],
        )  # fmt: skip
    low, high = (100 * bound for bound in found.interval)
    observed = (
        f"{verdict}, {100 * found.difference:+.1f} points ({low:+.1f} to {high:+.1f}) on "
        f"{found.num_items} items"
    )
    lost = [problem for problem in found.problems if "forgotten" in problem]
    words = {
        Verdict.PASS: "The tuned model keeps the base's skills",
        Verdict.FAIL: "The tuned model lost a skill: " + ("; ".join(lost) or "over all skills"),
    }.get(verdict, "The suite cannot rule out that the tuned model lost a skill")
    return judged(
        verdict is Verdict.PASS,
        REQUIRED,
        observed,
        f"{words}: {observed}." if verdict is Verdict.PASS else f"{words} ({observed}).",
        hint="Mix general rows into the data, lower training.learning_rate, or train fewer steps.",
        sources=sources,
        reasons=[reason_of(problem) for problem in lost] or [str(verdict).lower()],
    )


def _contradiction(report: dict[str, Any], found: dict[str, Any]) -> str:
    """Return how a report differs from the answers that it is about; empty if it fits."""
    for name in ("verdict", "num_items"):
        if report[name] != found[name]:
            return f"its {name} is {report[name]}, and that of its answers is {found[name]}"
    stated, own = ([one["difference"], *one["interval"]] for one in (report, found))
    if not all(math.isclose(a, b, abs_tol=1e-9) for a, b in zip(stated, own, strict=True)):
        return f"its difference and interval are {stated}, and those of its answers are {own}"
    return ""

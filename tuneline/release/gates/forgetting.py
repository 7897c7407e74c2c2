"""Gate `forgetting`: the tuned model keeps the skills of the base."""

from __future__ import annotations

from tuneline.core.verdict import Verdict
from tuneline.release.gates.finding import Finding, judged, missing, not_asked
from tuneline.release.proofs import Proofs

STAGE = "forgetting"
FILE = "forgetting.json"
REQUIRED = "not worse than the base beyond the noise of the forgetting suite"


def judge_forgetting(proofs: Proofs) -> Finding:
    """Read the verdict of the forgetting suite, where the run asks the suite."""
    if not proofs.has_stage(STAGE):
        return not_asked(REQUIRED, "The run does not ask the suite (evaluation.forgetting: false).")
    if STAGE not in proofs.made:
        return missing(proofs, STAGE, REQUIRED)
    report = proofs.read(STAGE, FILE)
    verdict = Verdict(report["verdict"])
    if verdict is Verdict.INVALID:
        return not_asked(REQUIRED, "The base has none of the suite's skills: nothing to forget.")
    low, high = (100 * bound for bound in report["interval"])
    observed = (
        f"{verdict}, {100 * report['difference']:+.1f} points ({low:+.1f} to {high:+.1f}) on "
        f"{report['num_items']} items"
    )
    lost = [problem for problem in report["problems"] if "forgotten" in problem]
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
        sources=(proofs.source(STAGE, FILE),),
    )

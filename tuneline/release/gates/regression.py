"""Gates `regression` and `speed`: not worse and not slower than an earlier release."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tuneline.core.artifact import open_artifact, verify_artifact
from tuneline.core.digests import short_digest
from tuneline.core.errors import ArtifactError
from tuneline.core.verdict import Verdict
from tuneline.release.gates.evaluation import SERVED
from tuneline.release.gates.finding import Finding, judged, missing, not_asked
from tuneline.release.proofs import Earlier, Proofs
from tuneline.release.rows import compare_rows, read_released_rows, read_rows

if TYPE_CHECKING:
    from loadtest import ComparisonReport

NO_PREVIOUS = "The run names no earlier release (release.previous)."


def judge_regression(proofs: Proofs) -> Finding:
    """Compare the served answers with the earlier release's, row by row."""
    config, earlier = proofs.config, proofs.earlier
    required = (
        f"{config.metric} not below the earlier release's by more than {config.max_regression:g} "
        "(paired interval at 95 %)"
    )
    if earlier is None:
        return not_asked(required, NO_PREVIOUS)
    if SERVED not in proofs.made:
        return missing(proofs, SERVED, required)
    before = read_released_rows(earlier.artifact.path)
    now = read_rows(proofs.made[SERVED].path, config.metric)
    compared = None if before is None else compare_rows(before, now)
    name = _name(earlier)
    if compared is None:
        return judged(
            False, required, "no common row",
            f"{name} and this release have no held-out row with {config.metric} in common.",
            hint="Evaluate both on the same held-out rows with the same release.metric.",
        )  # fmt: skip
    passed = compared.rules_out(config.max_regression)
    worse = "is worse" if compared.high < 0 else "may be worse: the noise hides it"
    return judged(
        passed,
        required,
        compared.observed,
        f"This release is not worse than {name}: {compared.observed}."
        if passed
        else f"This release {worse} than {name}: {compared.observed}."
        if compared.high < 0
        else f"This release {worse}. Compared with {name}: {compared.observed}.",
        hint="Evaluate more held-out rows, which narrows the interval, or train again.",
        sources=(proofs.source(SERVED, "predictions.jsonl"),),
    )


def judge_speed(proofs: Proofs) -> Finding:
    """Check the interleaved load comparison of the earlier release (A) with this one (B)."""
    required = "an interleaved load comparison says that this release is not slower"
    earlier, served = proofs.earlier, proofs.served
    if earlier is None:
        return not_asked(required, NO_PREVIOUS)
    hint = (
        "Serve both releases and compare them: tuneline loadtest compare --help; then name the "
        "result in release.load_comparison."
    )
    given = proofs.config.load_comparison
    if given is None or served is None:
        return judged(
            False, required, "no proof",
            f"The proof is missing: no load comparison with {_name(earlier)}.", hint=hint,
        )  # fmt: skip
    from loadtest import read_comparison

    try:
        artifact = open_artifact(proofs.run.resolve(given), kind="load-comparison")
        verify_artifact(artifact)
        report = read_comparison(artifact.path)
    except ArtifactError as error:
        return judged(False, required, "no proof", f"{error.message}.", hint=hint)
    problems = _problems(report, earlier, served.digest)
    return judged(
        not problems,
        required,
        str(report.verdict),
        f"The load comparison does not hold: {'; '.join(problems)}."
        if problems
        else f"This release is not slower than {_name(earlier)}, by {report.margin:.0%} or more.",
        hint=hint,
    )


def _problems(report: ComparisonReport, earlier: Earlier, digest: str) -> list[str]:
    problems = []
    if not report.interleaved:
        problems.append("its two sides were not measured in turns")
    for side, expected in (("a", earlier.release.model.digest), ("b", digest)):
        found = report.endpoints[side].artifact_short_digest  # type: ignore[index]  # a Side
        if found != short_digest(expected):
            problems.append(
                f"side {side} served {found or 'an unnamed model'}; expected "
                f"{short_digest(expected)}"
            )
    if report.verdict is not Verdict.PASS:
        problems += report.problems or [f"verdict {report.verdict}"]
    return problems


def _name(earlier: Earlier) -> str:
    return f"release {earlier.artifact.short_digest}"

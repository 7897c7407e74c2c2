"""Gates `regression` and `speed`: not worse and not slower than an earlier release."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from tuneline.core.artifact import Artifact, open_artifact, verify_artifact
from tuneline.core.digests import short_digest
from tuneline.core.errors import ArtifactError
from tuneline.core.release import ROWS_FILE
from tuneline.core.shorten import shorten
from tuneline.core.verdict import Verdict
from tuneline.pipeline.served_stages import loadtest_config
from tuneline.pipeline.stage import EVALUATION_SERVED
from tuneline.release.gates.finding import (
    MISSING,
    UNREADABLE,
    Finding,
    judged,
    missing,
    not_asked,
    reason_of,
)
from tuneline.release.proofs import Earlier, Proofs
from tuneline.release.rows import (
    Compared,
    Rows,
    compare_rows,
    find_lost_rows,
    read_released_rows,
    read_rows,
)

if TYPE_CHECKING:
    from loadtest import ComparisonReport
    from loadtest.config import LoadTestConfig

LOAD_FIELDS = ("workload", "max_tokens", "ignore_eos", "extra_body", "cancellations")
"""The fields of section `loadtest` that decide the load, next to the scenarios."""
NO_PREVIOUS = "The run names no earlier release (release.previous)."


def judge_regression(proofs: Proofs) -> Finding:
    """Compare the served answers with the earlier release's, row by row."""
    config, earlier = proofs.config, proofs.earlier
    limit = config.max_regression
    required = (
        f"{proofs.metric} not below the earlier release's by more than {limit:g} (paired interval "
        f"at 95 %), on at least {1 - limit:.0%} of its rows"
    )
    if earlier is None:
        return not_asked(required, NO_PREVIOUS)
    if EVALUATION_SERVED not in proofs.made:
        return missing(proofs, EVALUATION_SERVED, required)
    before = read_released_rows(earlier.artifact.path)
    now = read_rows(proofs.made[EVALUATION_SERVED].path, proofs.metric)
    if before is None or (problem := _not_comparable(earlier, before, now, limit)):
        words = f"{_name(earlier)} holds no rows" if before is None else problem
        return judged(
            False, required, "not comparable", f"{words}.",
            hint="Evaluate both releases on the same held-out rows with the same release.metric.",
            reasons=["not-comparable"],
        )  # fmt: skip
    compared = compare_rows(before, now)
    assert compared is not None  # noqa: S101 (rows are in common)
    return judged(
        compared.rules_out(limit),
        required,
        compared.observed,
        _regression_words(_name(earlier), compared, limit),
        hint="Evaluate more held-out rows, which narrows the interval, or train again.",
        sources=(proofs.source(EVALUATION_SERVED, "predictions.jsonl"),),
        reasons=[compared.reason],
    )


def _not_comparable(earlier: Earlier, before: Rows, now: Rows, limit: float) -> str:
    """Return why an earlier release's rows are not a baseline; empty if they are."""
    name, release = _name(earlier), earlier.release
    if release.verdict is not Verdict.PASS:
        failed = ", ".join(gate.name for gate in release.failed())
        return (
            f"{name} is {release.verdict} ({failed}), and a release that failed is not a baseline"
        )
    link = release.link(EVALUATION_SERVED)
    if link is None or link.digest != before.evaluation:
        return f"{ROWS_FILE} of {name} is of another evaluation than its chain names"
    if before.metric != now.metric:
        return f"{name} has rows of {before.metric}; this run's release.metric is {now.metric}"
    if lost := find_lost_rows(before, now, limit):
        common = len(before.values.keys() & now.values.keys())
        return (
            f"{common} of the {len(before.values)} held-out rows of {name} are among the "
            f"{len(now.values)} of this run, and {lost}"
        )
    return ""


def _regression_words(name: str, compared: Compared, limit: float) -> str:
    if compared.rules_out(limit):
        return f"This release is not worse than {name}: {compared.observed}."
    if compared.high < 0:
        return f"This release is worse than {name}: {compared.observed}."
    if inconclusive := compared.inconclusive(limit):
        return f"{inconclusive}. Compared with {name}: {compared.observed}."
    return (
        f"This release may be worse: the noise hides it. Compared with {name}: {compared.observed}."
    )


def judge_speed(proofs: Proofs) -> Finding:
    """Check the interleaved load comparison of the earlier release (A) with this one (B)."""
    limit = proofs.config.max_slowdown
    required = (
        f"a load comparison in turns says that this release is not slower by more than {limit:.0%}"
    )
    earlier, served = proofs.earlier, proofs.served
    if earlier is None:
        return not_asked(required, NO_PREVIOUS)
    hint = (
        "Serve both releases and compare them at the load of run.yaml: tuneline loadtest compare "
        f"URL-A URL-B --run {shlex.quote(str(proofs.run.path))} --out DIR; then name DIR in "
        "release.load_comparison."
    )
    given = proofs.config.load_comparison
    if given is None or served is None:
        return judged(
            False, required, "no proof",
            f"The proof is missing: no load comparison with {_name(earlier)}.", hint=hint,
            reasons=[MISSING],
        )  # fmt: skip
    from loadtest import read_comparison

    try:
        artifact = open_artifact(proofs.run.resolve(given), kind="load-comparison")
        verify_artifact(artifact)
        report = read_comparison(artifact.path)
    except ArtifactError as error:
        return judged(
            False, required, "no proof", f"{error.message}.", hint=hint, reasons=[UNREADABLE]
        )
    engines = {"a": earlier.release.model.engine, "b": proofs.measured_engine}
    problems = [
        *_other_load(loadtest_config(proofs.run), artifact, report),
        *_problems(report, earlier, served.digest, limit),
        *_other_engines(report, engines),
    ]
    return judged(
        not problems,
        required,
        str(report.verdict),
        f"The load comparison does not hold: {'; '.join(problems)}."
        if problems
        else f"This release is not slower than {_name(earlier)}, by {report.margin:.0%} or more. "
        f"{_hosts(report)}{_unknown_engines(report, engines)}",
        hint=hint,
        reasons=[reason_of(problem) for problem in problems],
    )


def _other_load(config: LoadTestConfig, artifact: Artifact, report: ComparisonReport) -> list[str]:
    """Return why a comparison was not measured at the load of the run's section `loadtest`.

    The path of a workload file differs from machine to machine, so only its name counts.
    """
    expected, recorded = _load(config.model_dump(mode="json")), _load(artifact.manifest.config)
    problems = [
        f"{name} is {_short(recorded.get(name))}; run.yaml has {_short(value)}"
        for name, value in expected.items()
        if recorded.get(name) != value
    ]
    scenarios = {one.name: one for one in config.scenarios}
    names = [one.name for one in report.scenarios]
    if sorted(names) != sorted(scenarios):
        problems.append(
            f"it has {'the scenarios ' + ', '.join(names) if names else 'no scenario'}; expected "
            f"{', '.join(scenarios)}"
        )
        return problems
    return problems + [
        f"scenario {one.name} ran at another load than run.yaml's"
        for one in report.scenarios
        if any(run.config != scenarios[one.name] for runs in one.runs.values() for run in runs)
    ]


def _other_engines(report: ComparisonReport, engines: Mapping[str, str | None]) -> list[str]:
    """Return the sides whose server had other settings than in the load test of its release."""
    return [
        f"the server of side {side} had other settings than in the load test of its release"
        for side, expected in engines.items()
        if (found := report.endpoints[side].engine) is not None  # type: ignore[index]  # a Side
        and expected not in (found, None)
    ]


def _unknown_engines(report: ComparisonReport, engines: Mapping[str, str | None]) -> str:
    """Return a sentence for sides whose settings cannot be compared; empty if both can."""
    unknown = [
        side
        for side, expected in engines.items()
        if None in (expected, report.endpoints[side].engine)  # type: ignore[index]  # a Side
    ]
    if not unknown:
        return ""
    return f" No file has the settings of the server of side {' and '.join(unknown)}."


def _load(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a load test's configuration that decide the load."""
    found = {name: config.get(name) for name in LOAD_FIELDS}
    workload = dict(found["workload"] or {})
    workload["path"] = Path(workload["path"]).name if workload.get("path") else None
    return {**found, "workload": workload}


def _short(value: Any) -> str:
    return shorten(json.dumps(value), 80)


def _problems(report: ComparisonReport, earlier: Earlier, digest: str, limit: float) -> list[str]:
    from loadtest import recheck_comparison

    problems = []
    if earlier.release.verdict is not Verdict.PASS:
        problems.append(f"{_name(earlier)} is {earlier.release.verdict}")
    if report.margin > limit:
        problems.append(
            f"its margin is {report.margin:.0%}, and release.max_slowdown is {limit:.0%}"
        )
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
    else:
        problems += recheck_comparison(report)
    return problems


def _hosts(report: ComparisonReport) -> str:
    """Return where the two servers ran, as far as the report tells."""
    a, b = (urlsplit(report.endpoints[side].url).hostname or "an unnamed host" for side in "ab")  # type: ignore[index]  # a Side
    if a == b:
        return f"Both were measured in turns on {a}."
    return (
        f"They were measured in turns on {a} and {b}; no file says that the hardware of both is "
        "equal."
    )


def _name(earlier: Earlier) -> str:
    return f"release {earlier.artifact.short_digest}"

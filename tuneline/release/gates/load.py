"""Gate `load`: the load test's verdict is PASS, on this artifact and this configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tuneline.core.digests import short_digest
from tuneline.core.verdict import Verdict
from tuneline.pipeline.served_stages import loadtest_config
from tuneline.pipeline.server import measured_serving
from tuneline.pipeline.stage import LOADTEST
from tuneline.pipeline.stage_inputs import drafter
from tuneline.release.gates.finding import (
    CONTRADICTION,
    Finding,
    judged,
    missing,
    reason_of,
)
from tuneline.release.proofs import Proofs

if TYPE_CHECKING:
    from loadtest import LoadReport
    from loadtest.config import LoadTestConfig

REQUIRED = (
    "verdict PASS on at least one objective, measured on the released artifact with the "
    "run's own limits"
)
REPORT = "report.json"
NEEDED = "; a verdict needs"


def _brief(problem: str) -> str:
    """Return a missed objective without its interval, which the load report has."""
    figure, mark, reason = problem.partition(" (N = ")
    _, needs, num_needed = reason.partition(NEEDED)
    return figure + needs + num_needed if mark else problem


def judge_load(proofs: Proofs) -> Finding:
    """Check the report's verdict, and that it measured what the release is about."""
    if LOADTEST not in proofs.made or proofs.served is None:
        return missing(proofs, LOADTEST, REQUIRED)
    from loadtest import find_contradictions, read_report

    report = read_report(proofs.made[LOADTEST].path)
    found = {
        "other-artifact": _other_artifact(proofs, report),
        "other-server": _other_server(proofs, report),
        "other-configuration": _other_configuration(proofs, report),
    }
    problems = [problem for of_reason in found.values() for problem in of_reason]
    reasons = [reason for reason, of_reason in found.items() if of_reason]
    if report.verdict is not Verdict.PASS:
        missed = report.problems or [f"verdict {report.verdict}"]
        problems += [_brief(problem) for problem in missed]
        reasons += [reason_of(problem) for problem in missed]
    config = loadtest_config(proofs.run)
    slos = {scenario.name: scenario.slo or config.slo for scenario in config.scenarios}
    for one in report.scenarios:
        if not one.objectives:
            problems.append(f"{one.name} has no objective; expected a limit in loadtest.slo")
            reasons.append(f"{one.name}/no-objective")
        # A verdict is a word in a file: the figures next to it must say the same.
        if report.verdict is Verdict.PASS and one.verdict is not Verdict.PASS:
            problems.append(f"{one.name} is {one.verdict}, which contradicts the report's PASS")
            reasons.append(f"{one.name}/{CONTRADICTION}")
        elif one.verdict is Verdict.PASS and one.name in slos:
            contradictions = find_contradictions(one, slos[one.name])
            problems += [
                f"{one.name}: the verdict PASS contradicts the figures: {problem}"
                for problem in contradictions
            ]
            reasons += [f"{one.name}/{CONTRADICTION}"] * bool(contradictions)
    names = ", ".join(scenario.name for scenario in report.scenarios)
    return judged(
        not problems,
        REQUIRED,
        str(report.verdict),
        f"The load test does not hold: {'; '.join(problems)}."
        if problems
        else f"Every objective holds under load: {names}.{_client_lag(config, report)}",
        hint=proofs.again(LOADTEST),
        sources=(proofs.source(LOADTEST, REPORT),),
        reasons=reasons,
    )


def _client_lag(config: LoadTestConfig, report: LoadReport) -> str:
    """Return how late the client sent, if run.yaml allows more than the usual; else empty.

    The lag is a part of each latency, so it makes none look better; late requests may come in other
    gaps than planned.
    """
    if config.max_client_lag_s is None:
        return ""
    late_s = max(one.client.send_lag_s.at(99) or 0.0 for one in report.scenarios)
    return (
        f" The client sent up to {1e3 * late_s:.3g} ms late (p99), and run.yaml allows "
        f"{1e3 * config.max_client_lag_s:g} ms (loadtest.max_client_lag_s)."
    )


def _other_artifact(proofs: Proofs, report: LoadReport) -> list[str]:
    """Return why the report is not about the served artifact.

    The digest is asked twice: of the caller, as an input, and of the server, by its model's name.
    """
    assert proofs.served is not None  # noqa: S101 (the caller has checked)
    own, problems = proofs.served.digest, []
    for inputs in (report.inputs, proofs.made[LOADTEST].manifest.inputs):
        if not proofs.served_digests <= {entry.digest for entry in inputs}:
            measured = ", ".join(short_digest(entry.digest) for entry in inputs) or "no artifact"
            expected = " and ".join(short_digest(one) for one in sorted(proofs.served_digests))
            problems.append(f"it measured {measured}; expected {expected}")
            break
    said = report.endpoint.artifact_short_digest
    if said != short_digest(own):
        problems.append(
            f"the server named the artifact {said or 'by no digest'}; expected {short_digest(own)}"
        )
    return problems


def _other_server(proofs: Proofs, report: LoadReport) -> list[str]:
    """Return why the server that was measured did not have the settings of run.yaml."""
    from serving import engine_settings

    run, found = proofs.run, report.endpoint.engine
    # The settings with a drafter have its folder on the machine that measured.
    if drafter(run) is not None or found == engine_settings(measured_serving(run)):
        return []
    if found is None:
        return ["the server did not state its settings; expected Tuneline's server"]
    return ["the server had other settings than section serving of run.yaml"]


def _other_configuration(proofs: Proofs, report: LoadReport) -> list[str]:
    """Return why the report was not measured with the run's `loadtest` section."""
    config = loadtest_config(proofs.run)
    expected = {scenario.name: scenario for scenario in config.scenarios}
    found = {scenario.name: scenario for scenario in report.scenarios}
    if expected.keys() != found.keys():
        return [f"it has the scenarios {', '.join(found)}; expected {', '.join(expected)}"]
    return [
        f"scenario {name} was judged by other limits or at another load than run.yaml's"
        for name, scenario in expected.items()
        if found[name].config != scenario or found[name].slo != (scenario.slo or config.slo)
    ]

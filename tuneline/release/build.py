"""Judge the gates, and build the document of a release."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from tuneline import __version__
from tuneline.core.errors import ArtifactError, ConfigError
from tuneline.core.release import (
    FORMAT_VERSION,
    Gate,
    Outcome,
    Release,
    Waiver,
)
from tuneline.core.verdict import Verdict
from tuneline.release.facts import (
    base_of,
    chain_of,
    data_of,
    previous_of,
    released_model,
    reproduce,
)
from tuneline.release.figures import figures_of
from tuneline.release.gates.finding import Finding
from tuneline.release.gates.table import GATES
from tuneline.release.proofs import Proofs


def build_release(proofs: Proofs, waivers: Sequence[Waiver] = ()) -> Release:
    """Return the release document of a run.

    Args:
        proofs: The artifacts of the run.
        waivers: The gates that do not stop the release.

    Raises:
        ConfigError: A waiver names no gate, has no reason, or waives a gate that did not fail.
        ArtifactError: The served model or the dataset is not made.
    """
    reasons = _reasons(waivers)
    model, data = released_model(proofs), data_of(proofs)
    gates = judge_gates(proofs, reasons)
    idle = [gate.name for gate in gates if gate.name in reasons and not gate.why]
    if idle:
        raise ConfigError(f"--waive {idle[0]}: the gate did not fail; expected a failing gate")
    return Release(
        format_version=FORMAT_VERSION,
        name=proofs.run.config.name,
        verdict=Verdict.PASS if all(gate.passed for gate in gates) else Verdict.FAIL,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        tuneline_version=__version__,
        model=model,
        base=base_of(proofs),
        data=data,
        gates=gates,
        figures=figures_of(proofs),
        chain=chain_of(proofs),
        waivers=[Waiver(gate=name, why=why) for name, why in reasons.items()],
        reproduce=reproduce(proofs),
        previous=previous_of(proofs),
        config=proofs.run.config.model_dump(mode="json"),
    )


def judge_gates(proofs: Proofs, reasons: dict[str, str]) -> list[Gate]:
    """Return every gate with its outcome, in the order of the table."""
    gates = []
    for name, row in GATES.items():
        try:
            found = row.judge(proofs)
        except ArtifactError as error:
            # A proof that cannot be read is not a proof.
            found = Finding(
                Outcome.FAILED, row.title, "no proof", f"{error.message}.", error.hint or ""
            )
        waived = found.outcome is Outcome.FAILED and name in reasons
        gates.append(
            Gate(
                name=name,
                title=row.title,
                outcome=Outcome.WAIVED if waived else found.outcome,
                required=found.required,
                observed=found.observed,
                words=found.words,
                hint=found.hint,
                why=reasons[name] if waived else "",
                sources=list(found.sources),
            )
        )
    return gates


def _reasons(waivers: Sequence[Waiver]) -> dict[str, str]:
    reasons: dict[str, str] = {}
    for waiver in waivers:
        if waiver.gate not in GATES:
            raise ConfigError(
                f"--waive {waiver.gate}: is not a gate; expected one of {', '.join(GATES)}"
            )
        if not waiver.why.strip():
            raise ConfigError(
                f"--waive {waiver.gate}: the reason is empty; expected --why TEXT",
                hint=f'Try: --waive {waiver.gate} --why "the reason"',
            )
        if waiver.gate in reasons:
            raise ConfigError(f"--waive {waiver.gate}: appears twice; expected each gate once")
        reasons[waiver.gate] = waiver.why
    return reasons

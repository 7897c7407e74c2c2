"""Judge the gates, and build the document of a release."""

from __future__ import annotations

import shlex
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
    teacher_of,
)
from tuneline.release.figures import figures_of
from tuneline.release.gates.finding import UNREADABLE, Finding
from tuneline.release.gates.table import GATES
from tuneline.release.proofs import Proofs


def build_release(proofs: Proofs, waivers: Sequence[Waiver] = ()) -> Release:
    """Return the release document of a run.

    Args:
        proofs: The artifacts of the run.
        waivers: The reasons of failed gates that do not stop the release.

    Raises:
        ConfigError: A waiver names no gate, no reason of its failure, or says no why.
        ArtifactError: The served model or the dataset is not made.
    """
    _check_waivers(waivers)
    model, data = released_model(proofs), data_of(proofs)
    gates = judge_gates(proofs, waivers)
    for waiver in waivers:
        _check_needed(waiver, gates)
    waived = {gate.name for gate in gates if gate.outcome is Outcome.WAIVED}
    return Release(
        format_version=FORMAT_VERSION,
        name=proofs.run.config.name,
        verdict=Verdict.PASS if all(gate.passed for gate in gates) else Verdict.FAIL,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        tuneline_version=__version__,
        model=model,
        base=base_of(proofs),
        teacher=teacher_of(proofs),
        data=data,
        gates=gates,
        figures=figures_of(proofs),
        chain=chain_of(proofs),
        waivers=[waiver for waiver in waivers if waiver.gate in waived],
        reproduce=reproduce(proofs),
        previous=previous_of(proofs),
        config=proofs.run.config.model_dump(mode="json"),
    )


def judge_gates(proofs: Proofs, waivers: Sequence[Waiver]) -> list[Gate]:
    """Return every gate with its outcome, in the order of the table.

    A gate is waived if each of its reasons is: what nobody knew of when a waiver was written fails.
    """
    gates = []
    for name, row in GATES.items():
        try:
            found = row.judge(proofs)
        except ArtifactError as error:
            # A proof that cannot be read is not a proof.
            found = Finding(
                Outcome.FAILED, row.title, "no proof", f"{error.message}.", error.hint or "",
                reasons=(UNREADABLE,),
            )  # fmt: skip
        why = {one.reason: one.why for one in waivers if one.gate == name}
        waived = found.outcome is Outcome.FAILED and why.keys() >= set(found.reasons)
        gates.append(
            Gate(
                name=name,
                title=row.title,
                outcome=Outcome.WAIVED if waived else found.outcome,
                required=found.required,
                observed=found.observed,
                words=found.words,
                hint=found.hint,
                reasons=list(found.reasons),
                why="; ".join(dict.fromkeys(why.values())) if waived else "",
                sources=list(found.sources),
            )
        )
    return gates


def _check_waivers(waivers: Sequence[Waiver]) -> None:
    seen = set()
    for waiver in waivers:
        if waiver.gate not in GATES:
            raise ConfigError(
                f"--waive {waiver.said}: is not a gate; expected one of {', '.join(GATES)}"
            )
        if not waiver.why.strip():
            raise ConfigError(
                f"--waive {waiver.said}: the reason is empty; expected --why TEXT",
                hint=f'Try: --waive {waiver.said} --why "the reason"',
            )
        if waiver.said in seen:
            raise ConfigError(f"--waive {waiver.said}: appears twice; expected each reason once")
        seen.add(waiver.said)


def _check_needed(waiver: Waiver, gates: Sequence[Gate]) -> None:
    """Raise ConfigError if a gate did not fail, or not for the reason that a waiver names."""
    (gate,) = (one for one in gates if one.name == waiver.gate)
    if not gate.reasons:
        raise ConfigError(f"--waive {waiver.said}: the gate did not fail; expected a failing gate")
    if waiver.reason in gate.reasons:
        return
    names = ", ".join(gate.reasons)
    raise ConfigError(
        f"--waive {waiver.said}: "
        + (
            f"is not a reason of the failure; the gate failed for {names}"
            if waiver.reason
            else f"names the gate and no reason; it failed for {names}"
        ),
        hint=f"{gate.words}\n  To release all the same: {waive_options(gate)}",
    )


def waive_options(gate: Gate) -> str:
    """Return the options that waive every reason of a gate."""
    return " ".join(
        f'--waive {shlex.quote(f"{gate.name}:{reason}")} --why "the reason"'
        for reason in gate.reasons
    )

"""Gate `chain`: every artifact is there, is whole, and was made from the artifacts before it."""

from __future__ import annotations

from tuneline.core.digests import short_digest
from tuneline.pipeline.stage import Stage
from tuneline.release.gates.finding import Finding, judged
from tuneline.release.proofs import Proofs

REQUIRED = "every artifact is whole, and was made from the artifacts before it"
JUDGED = ("evaluation", "evaluation-report", "forgetting", "load-report", "parity")
"""Kinds with a gate of their own, which fails if they are missing."""


def judge_chain(proofs: Proofs) -> Finding:
    """Check that the digests connect the data with the load report."""
    problems = [
        f"{stage.name}: {proofs.problems[stage.name]}"
        for stage in proofs.stages
        if stage.name in proofs.broken
        or (stage.name in proofs.problems and stage.kind not in JUDGED)
    ]
    problems += [
        problem
        for stage in proofs.stages
        if stage.name in proofs.made
        for problem in _unconnected(proofs, stage)
    ]
    num_made = len(proofs.made)
    if problems:
        words = f"The chain is broken: {'; '.join(problems)}."
    else:
        words = f"Digests connect all {num_made} artifacts, from the data to the load report."
    return judged(
        not problems,
        REQUIRED,
        f"{num_made} of {len(proofs.stages)} artifacts, {len(problems)} problems",
        words,
        hint=proofs.up,
        sources=tuple(proofs.source(name, "manifest.json") for name in proofs.made),
    )


def _unconnected(proofs: Proofs, stage: Stage) -> list[str]:
    """Return what is wrong with the inputs that a stage's manifest records.

    The directory's name has a key that covers every input. The manifest must name inputs of this
    line, so that an artifact that was copied to that name is found.
    """
    own = {proofs.made[name].digest for name in stage.needs if name in proofs.made}
    given = {entry.digest for entry in stage.inputs(proofs.run, proofs.base)}
    recorded = proofs.made[stage.name].manifest.inputs
    problems = [
        f"{stage.name}: was made from {entry.role} {short_digest(entry.digest)}, which is not of "
        "this line"
        for entry in recorded
        if entry.digest not in own | given
    ]
    if own and not own & {entry.digest for entry in recorded}:
        problems.append(f"{stage.name}: its manifest names none of {', '.join(stage.needs)}")
    return problems

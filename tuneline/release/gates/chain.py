"""Gate `chain`: every artifact is there, is whole, and was made from the artifacts before it."""

from __future__ import annotations

import shlex

from tuneline.core.digests import short_digest
from tuneline.core.errors import TamperedError
from tuneline.models.source import read_digest
from tuneline.pipeline.products.table import SERVED_PROOFS
from tuneline.pipeline.server import serves_adapter
from tuneline.pipeline.stage import SERVED_STAGES, Stage
from tuneline.release.gates.finding import MISSING, Finding, judged
from tuneline.release.proofs import Proofs

REQUIRED = "every artifact is whole, and was made from the artifacts before it"
JUDGED = (
    "evaluation", "evaluation-report", "forgetting", "load-report", "parity", "retrieval",
    *SERVED_PROOFS,
)  # fmt: skip
"""Kinds with a gate of their own, which fails if they are missing."""


def judge_chain(proofs: Proofs) -> Finding:
    """Check that the digests connect the data with the load report."""
    absent = [
        stage.name
        for stage in proofs.stages
        if stage.name in proofs.broken
        or (stage.name in proofs.problems and stage.kind not in JUDGED)
    ]
    problems = [f"{name}: {proofs.problems[name]}" for name in absent]
    reasons = [f"{name}/{'changed' if name in proofs.broken else MISSING}" for name in absent]
    hints = [hint for hint in proofs.broken.values() if hint]
    wrong = _unnamed(proofs)
    reasons += [f"{name}/earlier-tuneline" for name in wrong]
    if wrong:
        problems.append(
            f"{', '.join(wrong)}: the manifest does not record which settings it was made for, as "
            "those of an earlier Tuneline"
        )
    for stage in proofs.stages:
        if stage.name in proofs.made and (found := _unconnected(proofs, stage)):
            problems += found
            reasons.append(f"{stage.name}/other-input")
            wrong.append(stage.name)
    if wrong:
        paths = dict.fromkeys(shlex.quote(str(proofs.made[name].path)) for name in wrong)
        hints.append(f"Make it again: rm -r {' '.join(paths)} && {proofs.run.command('up')}")
    if changed := _changed_base(proofs):
        problems += changed
        reasons.append("base/changed")
    num_made, num_stages = len(proofs.made), len(proofs.stages)
    if problems:
        words = f"The chain is broken: {'; '.join(problems)}."
    elif num_made < num_stages:
        words = f"Digests connect the {num_made} artifacts that are there, of {num_stages}."
    else:
        words = f"Digests connect all {num_made} artifacts, from the data to the served model."
    return judged(
        not problems,
        REQUIRED,
        f"{num_made} of {num_stages} artifacts, {len(problems)} problems",
        words,
        hint="\n  ".join(hints) or proofs.up,
        sources=tuple(proofs.source(name, "manifest.json") for name in proofs.made),
        reasons=reasons,
    )


def _unnamed(proofs: Proofs) -> list[str]:
    """Return the stages whose manifest does not record the name that it was made under."""
    return [name for name, artifact in proofs.made.items() if not artifact.manifest.made_as]


def _changed_base(proofs: Proofs) -> list[str]:
    """Return why the base model that is served with an adapter is not the one that was measured.

    Its digest comes from a cache while the line runs. The server loads the bytes.
    """
    if not serves_adapter(proofs.run.config):
        return []
    try:
        found = read_digest(proofs.base)
    except TamperedError as error:
        return [f"base model: {error.message}"]
    if found == proofs.base.digest:
        return []
    return [
        f"base model {proofs.base.name}: its files have digest {short_digest(found)}; expected "
        f"{short_digest(proofs.base.digest)}"
    ]


def _unconnected(proofs: Proofs, stage: Stage) -> list[str]:
    """Return what is wrong with the inputs that a stage's manifest records.

    The directory's name has a key that covers every input and setting. The manifest must name
    inputs of this line, and that directory, so that an artifact that was copied there is found.
    """
    own = {proofs.made[name].digest for name in stage.needs if name in proofs.made}
    given = {entry.digest for entry in stage.inputs(proofs.run, proofs.base)}
    artifact = proofs.made[stage.name]
    recorded, made_as = artifact.manifest.inputs, artifact.manifest.made_as
    problems = []
    if made_as not in ("", artifact.path.name):
        problems.append(
            f"{stage.name}: was made as {made_as}, for other settings or inputs than "
            f"{artifact.path.name}"
        )
    problems += [
        f"{stage.name}: was made from {entry.role} {short_digest(entry.digest)}, which is not of "
        "this line"
        for entry in recorded
        if entry.digest not in own | given
    ]
    if stage.name in SERVED_STAGES and proofs.served is not None:
        lacking = proofs.served_digests - {entry.digest for entry in recorded}
        problems += [
            f"{stage.name}: its manifest does not name {short_digest(one)}, which the server loads"
            for one in sorted(lacking)
        ]
    if own and not own & {entry.digest for entry in recorded}:
        problems.append(f"{stage.name}: its manifest names none of {', '.join(stage.needs)}")
    return problems

"""Gates `parity` and `parity-served`: every form, and the served model, is the trained model."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pydantic import ValidationError

from tuneline.core.errors import ArtifactError
from tuneline.core.parity import PARITY_FILE, Parity, parity_problems
from tuneline.core.tolerances import Tolerances, said_limits
from tuneline.core.verdict import Verdict
from tuneline.pipeline.products.product import ServedProof
from tuneline.pipeline.products.table import SERVED_PROOFS, product_of
from tuneline.pipeline.stage import PARITY_MERGED, PARITY_SERVED
from tuneline.release.gates.finding import Finding, judged, missing, not_asked, reason_of
from tuneline.release.proofs import Proofs


def judge_forms(proofs: Proofs) -> Finding:
    """Check that the parity of every exported form is PASS."""
    names = [name for name in proofs.names_of("parity") if name != PARITY_SERVED]
    required = "every form of the ladder is PASS"
    for kind, proof in SERVED_PROOFS.items():
        if proofs.names_of(kind):
            model, gives = proof.routes.model, proof.routes.gives
            words = f"{model[0].upper()}{model[1:]} gives {gives}, which are compared as served."
            return not_asked(required, words)
    return _judge(proofs, names or [PARITY_MERGED], required)


def judge_served_parity(proofs: Proofs) -> Finding:
    """Check that the parity through the API is PASS, and that it is about the released model."""
    required = "the served model is PASS"
    if PARITY_SERVED not in proofs.made or proofs.served is None:
        return missing(proofs, PARITY_SERVED, required)
    digests = {entry.digest for entry in proofs.made[PARITY_SERVED].manifest.inputs}
    if not proofs.served_digests <= digests:
        base = " and its base model" if len(proofs.served_digests) > 1 else ""
        return judged(
            False, required, "another artifact",
            f"The served parity is of another artifact than {proofs.served.path.name}{base}.",
            hint=proofs.up, sources=(proofs.source(PARITY_SERVED, "manifest.json"),),
            reasons=["other-artifact"],
        )  # fmt: skip
    if proof := SERVED_PROOFS.get(proofs.made[PARITY_SERVED].kind):
        return _judge_numbers(proofs, proof)
    return _judge(proofs, [PARITY_SERVED], required)


def _judge_numbers(proofs: Proofs, proof: ServedProof) -> Finding:
    """Compare the served scores or vectors with those of the trained model."""
    gives, known_by = proof.routes.gives, product_of(proofs.run.config).known_by
    required = f"the served {gives} are the trained model's, within the limit of the number format"
    if known_by not in proofs.made:
        return missing(proofs, known_by, required)
    problems = proof.recheck(proofs.made[PARITY_SERVED], proofs.made[known_by])
    observed = proof.differ(proofs.read(PARITY_SERVED, proof.file))
    return judged(
        not problems, required, observed,
        f"Not the trained model: {'; '.join(problems)}."
        if problems
        else f"The {gives} are the trained model's: {observed}.",
        hint=proofs.again(PARITY_SERVED), sources=(proofs.source(PARITY_SERVED, proof.file),),
        reasons=[reason_of(problem) for problem in problems],
    )  # fmt: skip


def _why_not(proofs: Proofs, name: str, parity: Parity) -> list[str]:
    """Return why a parity is not PASS; its figures are judged again."""
    if parity.verdict is not Verdict.PASS:
        return parity.problems or [str(parity.verdict)]
    tolerances = _tolerances(proofs, name)
    problems = parity_problems(parity, tolerances)
    if not said_limits(tolerances):
        problems.append("no limit that a form can miss is set; expected a tolerance that judges")
    for share, part, whole in (
        ("greedy_agreement", parity.num_equal_answers, parity.num_prompts),
        ("token_agreement", parity.num_agreeing_tokens, parity.num_tokens),
    ):
        stated = getattr(parity, share)
        if not whole or not math.isclose(stated, part / whole, rel_tol=1e-9):
            problems.append(f"{share} is {stated:g}, and the counts are {part} of {whole}")
    return [f"the verdict PASS contradicts the figures: {problem}" for problem in problems]


def _tolerances(proofs: Proofs, name: str) -> Tolerances:
    """Return the tolerances by which a proof was judged.

    Raises:
        ArtifactError: The manifest does not hold them.
    """
    artifact = proofs.made[name]
    try:
        return Tolerances.model_validate(artifact.manifest.config["tolerances"])
    except (KeyError, ValidationError):
        raise ArtifactError(
            f"{artifact.path}: its manifest does not hold tolerances", hint=proofs.again(name)
        ) from None


def _are_own(proofs: Proofs, form: str) -> bool:
    """Return whether run.yaml sets the tolerances of a form, in place of the defaults."""
    config = proofs.run.config
    parity = config.export.parity
    own = {"merged": parity.tolerances, "served": config.serving.parity.tolerances}
    return {**parity.forms, **own}.get(form) is not None


def _judge(proofs: Proofs, names: Sequence[str], required: str) -> Finding:
    for name in names:
        if name not in proofs.made:
            return missing(proofs, name, required)
    found = {
        name: Parity.model_validate_json(
            (proofs.made[name].path / PARITY_FILE).read_text(encoding="utf-8")
        )
        for name in names
    }
    limits = [
        f"{one.form}: {said_limits(_tolerances(proofs, name)) or 'no limit'}"
        + (" (set in run.yaml)" if _are_own(proofs, one.form) else "")
        for name, one in found.items()
    ]
    failed = {name: why for name, one in found.items() if (why := _why_not(proofs, name, one))}
    lines = [(found[name].form, problem) for name, why in failed.items() for problem in why]
    forms = ", ".join(
        f"{one.form} ({one.num_equal_answers} of {one.num_prompts} answers equal"
        + (", by limits of run.yaml)" if _are_own(proofs, one.form) else ")")
        for one in found.values()
    )
    words = (
        f"Not the trained model: {'; '.join(': '.join(line) for line in lines)}."
        if failed
        else f"Within the limits of the trained model: {forms}."
    )
    return judged(
        not failed,
        f"{required}; {'; '.join(limits)}",
        ", ".join(f"{one.form} {one.verdict}" for one in found.values()),
        words,
        hint=f"Look at the first divergences: {proofs.run.command('prove')}",
        sources=tuple(proofs.source(name, PARITY_FILE) for name in names),
        reasons=[f"{form}/{reason_of(problem)}" for form, problem in lines],
    )

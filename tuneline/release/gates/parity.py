"""Gates `parity` and `parity-served`: every form, and the served model, is the trained model."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pydantic import ValidationError

from tuneline.core.errors import ArtifactError
from tuneline.core.parity import PARITY_FILE, Parity, parity_problems
from tuneline.core.tolerances import Tolerances, said_limits
from tuneline.core.verdict import Verdict
from tuneline.pipeline.stage import PARITY_MERGED, PARITY_SERVED, PREFERENCES, RETRIEVAL
from tuneline.release.gates.finding import Finding, judged, missing, not_asked, reason_of
from tuneline.release.proofs import Proofs

REWARD_KIND = "reward-parity"
"""The kind of the proof of a reward model."""
REWARDS_FILE = "rewards.json"
VECTOR_KIND = "trained-vector-parity"
"""The kind of the proof of an embedding model."""
VECTORS_FILE = "vectors.json"


RELEVANCE_KIND = "relevance-parity"
"""The kind of the proof of a reranker."""
RELEVANCE_FILE = "relevance.json"


def judge_forms(proofs: Proofs) -> Finding:
    """Check that the parity of every exported form is PASS."""
    names = [name for name in proofs.names_of("parity") if name != PARITY_SERVED]
    required = "every form of the ladder is PASS"
    if proofs.names_of(REWARD_KIND):
        return not_asked(required, "A reward model gives scores, which are compared as served.")
    if proofs.names_of(VECTOR_KIND):
        words = "An embedding model gives vectors, which are compared as served."
        return not_asked(required, words)
    if proofs.names_of(RELEVANCE_KIND):
        return not_asked(required, "A reranker gives scores, which are compared as served.")
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
    if proofs.made[PARITY_SERVED].kind == REWARD_KIND:
        return _judge_rewards(proofs)
    if proofs.made[PARITY_SERVED].kind == VECTOR_KIND:
        return _judge_vectors(proofs)
    if proofs.made[PARITY_SERVED].kind == RELEVANCE_KIND:
        return _judge_relevance(proofs)
    return _judge(proofs, [PARITY_SERVED], required)


def _judge_rewards(proofs: Proofs) -> Finding:
    """Compare the served scores of held-out answers with those of the trained reward model."""
    required = "the served scores are the trained model's, within the limit of the number format"
    if PREFERENCES not in proofs.made:
        return missing(proofs, PREFERENCES, required)
    from serving import recheck_rewards

    proof = proofs.made[PARITY_SERVED]
    problems = recheck_rewards(proof, proofs.made[PREFERENCES])
    found = proofs.read(PARITY_SERVED, REWARDS_FILE)
    observed = (
        f"{found['max_relative_difference']:.2g} standard deviations, {found['num_equal_orders']} "
        f"of {found['num_pairs']} pairs in one order"
    )
    return judged(
        not problems, required, observed,
        f"Not the trained model: {'; '.join(problems)}."
        if problems
        else f"The scores are the trained model's: they differ by at most {observed}.",
        hint=proofs.again(PARITY_SERVED), sources=(proofs.source(PARITY_SERVED, REWARDS_FILE),),
        reasons=[reason_of(problem) for problem in problems],
    )  # fmt: skip


def _judge_vectors(proofs: Proofs) -> Finding:
    """Compare the served vectors of texts with those of the trained embedding model."""
    required = "the served vectors are the trained model's, within the limit of the number format"
    if RETRIEVAL not in proofs.made:
        return missing(proofs, RETRIEVAL, required)
    from serving import recheck_trained_vectors

    problems = recheck_trained_vectors(proofs.made[PARITY_SERVED], proofs.made[RETRIEVAL])
    found = proofs.read(PARITY_SERVED, VECTORS_FILE)
    largest = found["max_relative_difference"]
    observed = f"{found['num_texts']} texts" + (
        "" if largest is None else f", vectors within {largest:.2g} of their length"
    )
    return judged(
        not problems, required, observed,
        f"Not the trained model: {'; '.join(problems)}."
        if problems
        else f"The vectors are the trained model's: {observed}.",
        hint=proofs.again(PARITY_SERVED), sources=(proofs.source(PARITY_SERVED, VECTORS_FILE),),
        reasons=[reason_of(problem) for problem in problems],
    )  # fmt: skip


def _judge_relevance(proofs: Proofs) -> Finding:
    """Compare the served scores of queries with passages with those of the trained reranker."""
    required = "the served scores are the trained model's, within the limit of the number format"
    if RETRIEVAL not in proofs.made:
        return missing(proofs, RETRIEVAL, required)
    from serving import recheck_relevance

    problems = recheck_relevance(proofs.made[PARITY_SERVED], proofs.made[RETRIEVAL])
    found = proofs.read(PARITY_SERVED, RELEVANCE_FILE)
    differ = f"{found['max_relative_difference']:.2g} standard deviations"
    observed = f"{found['num_pairs']} pairs, scores within {differ}"
    return judged(
        not problems, required, observed,
        f"Not the trained model: {'; '.join(problems)}."
        if problems
        else f"The scores are the trained model's: {observed}.",
        hint=proofs.again(PARITY_SERVED), sources=(proofs.source(PARITY_SERVED, RELEVANCE_FILE),),
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

"""The finding of a gate: its outcome in figures and in words."""

from __future__ import annotations

from dataclasses import dataclass

from tuneline.core.release import Outcome, Source
from tuneline.release.proofs import Proofs


@dataclass(frozen=True)
class Finding:
    """The outcome of one gate, without its name.

    Attributes:
        outcome: PASSED, FAILED or NOT_ASKED.
        required: The condition.
        observed: The value that was found.
        words: The outcome in one sentence.
        hint: The next command to type, if the gate failed.
        sources: The files that the gate read.
    """

    outcome: Outcome
    required: str
    observed: str
    words: str
    hint: str = ""
    sources: tuple[Source, ...] = ()


def judged(
    passed: bool,
    required: str,
    observed: str,
    words: str,
    *,
    hint: str = "",
    sources: tuple[Source, ...] = (),
) -> Finding:
    """Return the finding of a gate whose proof is there."""
    outcome = Outcome.PASSED if passed else Outcome.FAILED
    return Finding(outcome, required, observed, words, "" if passed else hint, sources)


def missing(proofs: Proofs, stage: str, required: str) -> Finding:
    """Return the failing finding of a gate without its proof."""
    why = proofs.problems.get(stage, "the run does not have the stage")
    return Finding(
        Outcome.FAILED,
        required,
        "no proof",
        f"The proof is missing: stage {stage}: {why}.",
        proofs.up,
    )


def not_asked(required: str, words: str) -> Finding:
    """Return the finding of a gate that the run does not ask for."""
    return Finding(Outcome.NOT_ASKED, required, "not measured", words)

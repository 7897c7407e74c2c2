"""The finding of a gate: its outcome in figures and in words."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from tuneline.core.release import Outcome, Source
from tuneline.release.proofs import Proofs

MISSING, UNREADABLE, CONTRADICTION = "missing", "unreadable", "contradiction"
WORD, DIGEST = re.compile(r"[A-Za-z][\w.-]*"), re.compile(r"[0-9a-f]{8,}")


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
        reasons: Why it failed, each as a short name without a measured value, which a waiver names.
    """

    outcome: Outcome
    required: str
    observed: str
    words: str
    hint: str = ""
    sources: tuple[Source, ...] = ()
    reasons: tuple[str, ...] = ()


def judged(
    passed: bool,
    required: str,
    observed: str,
    words: str,
    *,
    hint: str = "",
    sources: tuple[Source, ...] = (),
    reasons: Sequence[str],
) -> Finding:
    """Return the finding of a gate whose proof is there."""
    if passed:
        return Finding(Outcome.PASSED, required, observed, words, "", sources)
    names = tuple(dict.fromkeys(reasons))
    return Finding(Outcome.FAILED, required, observed, words, hint, sources, names)


def missing(proofs: Proofs, stage: str, required: str) -> Finding:
    """Return the failing finding of a gate without its proof."""
    why = proofs.problems.get(stage, "the run does not have the stage")
    return Finding(
        Outcome.FAILED,
        required,
        "no proof",
        f"The proof is missing: stage {stage}: {why}.",
        proofs.up,
        reasons=(MISSING,),
    )


def not_asked(required: str, words: str) -> Finding:
    """Return the finding of a gate that the run does not ask for."""
    return Finding(Outcome.NOT_ASKED, required, "not measured", words)


def reason_of(problem: str) -> str:
    """Return the name of a problem: its first words up to a value, without numbers and digests."""
    kept: list[str] = []
    for part in re.split(r" is |;", problem)[0].split():
        word = part.strip(",:()'\"")
        if word[:1].isdigit() and len(kept) > 1:
            break
        if WORD.fullmatch(word) and not DIGEST.fullmatch(word):
            kept.append(word)
    return "-".join(kept[:8]).lower() or "failed"

"""The verdict of a measurement, and the error that a verdict other than PASS raises."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from enum import StrEnum

from tuneline.core.artifact import STAGE_DIR, Artifact, remove_command
from tuneline.core.artifact_kinds import KINDS
from tuneline.core.documents import parse_json
from tuneline.core.errors import (
    InconclusiveError,
    InvalidError,
    TamperedError,
    VerdictError,
)


class Verdict(StrEnum):
    """The result of a measurement against its limits."""

    PASS = "PASS"  # noqa: S105 (a verdict)
    FAIL = "FAIL"
    INCONCLUSIVE = "INCONCLUSIVE"
    """The measurement is too small to judge by."""
    INVALID = "INVALID"
    """The measurement says nothing about the thing that it measured."""


REPEATED = (Verdict.INCONCLUSIVE, Verdict.INVALID)
"""Verdicts after which a stage measures again, although its configuration is the same."""


def read_verdict(artifact: Artifact) -> Verdict:
    """Return the verdict in an artifact's payload, which its digest covers; PASS without one.

    Raises:
        TamperedError: The payload is not a document with a verdict.
    """
    kind = KINDS.get(artifact.kind)
    if kind is None or kind.verdict_file is None:
        return Verdict.PASS
    path = artifact.path / kind.verdict_file
    try:
        return Verdict(parse_json(path.read_text(encoding="utf-8"))["verdict"])
    except (ValueError, KeyError, TypeError):
        raise TamperedError(
            f"{path}: has no verdict; expected {', '.join(Verdict)}",
            hint=f"Remove it and run its step again: {remove_command(artifact.path)}",
        ) from None


TIES = ("greedy_agreement", "token_agreement")
"""The figures of a proof that fall if two tokens are almost as likely as one another."""


def _about_ties(artifact: Artifact, reasons: Sequence[str]) -> str:
    """Return what to do about a proof that fails only because of almost equal tokens."""
    if artifact.kind != "parity" or not reasons or not all(r.startswith(TIES) for r in reasons):
        return ""
    sections = {"served": "serving", "merged": "export.merge"}
    section = sections.get(str(artifact.manifest.config.get("form")))
    exact = "" if section is None else f", or --set {section}.dtype=float32"
    return (
        "The log-probabilities are within their limits: answers differ where two tokens are almost "
        f"as likely.\n  Try: a longer training, which tells them apart{exact}{_more(artifact)}\n  "
    )


def _more(artifact: Artifact) -> str:
    """Return advice for a proof whose limit allows other answers, but not one of so few prompts."""
    num_prompts = artifact.manifest.metrics.get("num_prompts")
    tolerances = artifact.manifest.config.get("tolerances") or {}
    least = tolerances.get("min_greedy_agreement")
    if (
        num_prompts is None
        or least is None
        or least == 1
        or round((1 - least) * num_prompts, 6) >= 1
    ):
        return ""
    return f", or more prompts: of {num_prompts} none may differ (reference.num_prompts)"


def _again(artifact: Artifact, verdict: Verdict) -> str:
    """Return how to measure again; a line does so by itself after some verdicts."""
    if verdict in REPEATED and STAGE_DIR.search(artifact.path.name):
        return "The same command measures again."
    remove = remove_command(artifact.path)
    return f"To measure again under the same configuration, remove it: {remove}"


def require_verdict(artifact: Artifact, verdict: Verdict | None = None) -> None:
    """Check that an artifact's verdict is PASS.

    Args:
        artifact: The measurement.
        verdict: Its verdict, for a kind whose verdict does not stop a line.

    Raises:
        VerdictError: The verdict is FAIL.
        InconclusiveError: The verdict is INCONCLUSIVE.
        InvalidError: The verdict is INVALID.
    """
    verdict = verdict or read_verdict(artifact)
    if verdict is Verdict.PASS:
        return
    reasons = artifact.manifest.metrics.get("problems", [])
    lines = "\n".join(f"  {reason}" for reason in reasons)
    errors: dict[Verdict, type[VerdictError]] = {
        Verdict.FAIL: VerdictError,
        Verdict.INCONCLUSIVE: InconclusiveError,
        Verdict.INVALID: InvalidError,
    }
    raise errors[verdict](
        f"{artifact.path.name}: {verdict}" + (f"\n{lines}" if lines else ""),
        hint=_about_ties(artifact, reasons)
        + f"The whole report: {shlex.join(['tuneline', 'inspect', str(artifact.path)])}\n"
        f"  {_again(artifact, verdict)}",
    )

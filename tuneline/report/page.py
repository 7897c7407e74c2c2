"""The page of a report: verdict, waivers and main figures first, then the sections."""

from __future__ import annotations

import contextlib
from collections import Counter
from typing import Any

from tuneline import __version__
from tuneline.core.digests import short_digest
from tuneline.core.errors import ArtifactError
from tuneline.core.page.blocks import (
    Badge,
    Code,
    Document,
    Paragraph,
    Text,
    Tile,
    Tone,
    verdict_badge,
)
from tuneline.core.page.numbers import digits, points, share
from tuneline.core.release import Outcome, Release
from tuneline.core.verdict import Verdict, read_verdict
from tuneline.pipeline.stage import (
    EVALUATION_BASE,
    EVALUATION_TUNED,
    FORGETTING,
    LOADTEST,
    PREFERENCES,
)
from tuneline.report.facts import Facts
from tuneline.report.sections.evaluation import SCORES_FILE
from tuneline.report.sections.forgetting import REPORT_FILE as FORGETTING_FILE
from tuneline.report.sections.table import SECTIONS

ABOUT = "Tuneline release report"
NOT_RELEASED = "NOT RELEASED"


def report_document(facts: Facts) -> Document:
    """Return the page of a run or of its release."""
    sections = [section for make in SECTIONS if (section := make(facts)) is not None]
    return Document(
        name=facts.name,
        about=ABOUT,
        verdict=_verdict(facts.release),
        lead=_lead(facts),
        notices=_notices(facts.release),
        tiles=tuple(_tiles(facts)),
        sections=tuple(sections),
        made=_made(facts.release),
    )


def _verdict(release: Release | None) -> Badge:
    if release is None:
        return Badge(NOT_RELEASED, Tone.WARN)
    if release.verdict is Verdict.PASS and release.waivers:
        return Badge(f"PASS, {len(release.waivers)} WAIVED", Tone.WARN)
    return verdict_badge(release.verdict)


def _lead(facts: Facts) -> Text:
    release = facts.release
    if release is None:
        total = len(facts.made) + len(facts.absent)
        return f"{len(facts.made)} of {total} stages have an artifact. Next: {facts.up}"
    counts = Counter(gate.outcome for gate in release.gates)
    said = ", ".join(f"{counts[outcome]} {outcome}" for outcome in Outcome if counts[outcome])
    named = Code(f"{release.model.served_name}@{short_digest(release.model.digest)}")
    return (f"{len(release.gates)} gates: {said}. The model is ", named, ".")


def _notices(release: Release | None) -> tuple[Paragraph, ...]:
    """Return failed gates and waivers, which no reader may miss."""
    if release is None:
        return ()
    failed = [
        Paragraph(("Failed gate ", Code(gate.name), f": {gate.words}"), Tone.BAD)
        for gate in release.failed()
    ]
    waived = [
        Paragraph(
            ("Waived gate ", Code(gate.name), f": {gate.words} Reason: {gate.why}"), Tone.WARN
        )
        for gate in release.gates
        if gate.outcome is Outcome.WAIVED
    ]
    return (*failed, *waived)


def _tiles(facts: Facts) -> list[Tile]:
    tiles = []
    if PREFERENCES in facts.made:
        tiles.append(_preferences(facts.made[PREFERENCES].manifest.metrics))
    elif EVALUATION_TUNED in facts.made:
        tuned = facts.read(EVALUATION_TUNED, SCORES_FILE)["exact_match"]
        was = ""
        if EVALUATION_BASE in facts.made:
            was = f"base {share(facts.read(EVALUATION_BASE, SCORES_FILE)['exact_match'])}"
        tiles.append(Tile("exact match", share(tuned), was))
    if FORGETTING in facts.made:
        metrics = facts.read(FORGETTING, FORGETTING_FILE)
        tiles.append(
            Tile("skills kept", f"{points(metrics['difference'])} points", "difference to the base")
        )
    proofs = [one for kind in ("parity", "reward-parity") for _, one in facts.of_kind(kind)]
    if proofs:
        passed = sum(read_verdict(proof) is Verdict.PASS for proof in proofs)
        tiles.append(Tile("parity", f"{passed} of {len(proofs)}", "forms PASS"))
    if LOADTEST in facts.made:
        from loadtest import build_load_tiles, read_report

        # The section of the load test says why a report cannot be read.
        with contextlib.suppress(ArtifactError):
            tiles += build_load_tiles(read_report(facts.made[LOADTEST].path))[:3]
    return tiles


def _preferences(metrics: dict[str, Any]) -> Tile:
    """Return the figure of a method whose model prefers an answer, or earns a reward."""
    if "reward_base" in metrics:
        return Tile("reward", digits(metrics["reward"]), f"base {digits(metrics['reward_base'])}")
    pairs = f"of {metrics['num_pairs']} pairs"
    return Tile("better answer preferred", share(metrics["accuracy"]), pairs)


def _made(release: Release | None) -> str:
    if release is None:
        return f"Made by Tuneline {__version__} from the run's artifacts."
    return f"Released {release.created_at} by Tuneline {release.tuneline_version}."

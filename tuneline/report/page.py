"""The page of a report: verdict, waivers and main figures first, then the sections."""

from __future__ import annotations

import contextlib
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
from tuneline.core.page.numbers import count, digits, points, share
from tuneline.core.release import Outcome, Release
from tuneline.core.verdict import Verdict, read_verdict
from tuneline.pipeline.products.table import SERVED_PROOFS
from tuneline.pipeline.stage import (
    EVALUATION_BASE,
    EVALUATION_TUNED,
    FORGETTING,
    LOADTEST,
    PREFERENCES,
    RETRIEVAL,
)
from tuneline.report.facts import Facts
from tuneline.report.sections.evaluation import NO_SHARES, SCORES_FILE
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
        return Badge(f"PASS, {len(release.waived)} WAIVED", Tone.WARN)
    return verdict_badge(release.verdict)


def _lead(facts: Facts) -> Text:
    release = facts.release
    if release is None:
        total = len(facts.made) + len(facts.absent)
        following = facts.up if facts.absent else facts.again("release")
        return f"{len(facts.made)} of {total} stages have an artifact. Next: {following}"
    named = Code(f"{release.model.served_name}@{short_digest(release.model.digest)}")
    data = release.data
    trained = (
        f" is {release.base.id}, trained on {count(data.num_train)} rows of "
        f"{', '.join(data.paths[:1])} and judged by {count(data.num_heldout)} held-out rows."
    )
    return (f"{len(release.gates)} gates: {_outcomes(release)}. ", named, trained)


def _outcomes(release: Release) -> str:
    """Return how many gates have each outcome; those that did not pass have their names."""
    said = []
    for outcome in Outcome:
        names = [gate.name for gate in release.gates if gate.outcome is outcome]
        if names:
            listed = "" if outcome is Outcome.PASSED else f" ({', '.join(names)})"
            said.append(f"{len(names)} {outcome}{listed}")
    return ", ".join(said)


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


PROOFS = ("parity", *SERVED_PROOFS)


def _tiles(facts: Facts) -> list[Tile]:
    tiles = []
    if PREFERENCES in facts.made:
        tiles.append(_preferences(facts.made[PREFERENCES].manifest.metrics))
    elif RETRIEVAL in facts.made:
        found = facts.made[RETRIEVAL].manifest.metrics
        tiles.append(Tile("nDCG@10", digits(found["ndcg"]), f"base {digits(found['ndcg_base'])}"))
    elif EVALUATION_TUNED in facts.made:
        tiles.append(_score(facts))
    if FORGETTING in facts.made:
        suite = facts.read(FORGETTING, FORGETTING_FILE)
        ends = " to ".join(points(bound) for bound in suite["interval"])
        note = f"{ends} (95 %), {suite['verdict']}"
        tiles.append(Tile("skills of the base", f"{points(suite['difference'])} points", note))
    proofs = [one for kind in PROOFS for _, one in facts.of_kind(kind)]
    if proofs:
        passed = sum(read_verdict(proof) is Verdict.PASS for proof in proofs)
        tiles.append(Tile("parity", f"{passed} of {len(proofs)}", "forms PASS"))
    if LOADTEST in facts.made:
        from loadtest import build_load_tiles, read_report

        # The section of the load test says why a report cannot be read.
        with contextlib.suppress(ArtifactError):
            tiles += build_load_tiles(read_report(facts.made[LOADTEST].path))[:3]
    return tiles


def _score(facts: Facts) -> Tile:
    """Return the metric that the gates read, with its interval and the base's value."""
    found = facts.read(EVALUATION_TUNED, SCORES_FILE)["metrics"]
    asked = (facts.config.get("release") or {}).get("metric")
    name = asked if asked in found else "exact_match"
    show, notes = digits if name in NO_SHARES else share, []
    if found[name]["interval"] is not None:
        low, high = found[name]["interval"]
        notes.append(f"{show(low)} to {show(high)} (95 %)")
    if EVALUATION_BASE in facts.made:
        base = facts.read(EVALUATION_BASE, SCORES_FILE)["metrics"].get(name)
        notes += [] if base is None else [f"base {show(base['value'])}"]
    return Tile(found[name]["title"], show(found[name]["value"]), ", ".join(notes))


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

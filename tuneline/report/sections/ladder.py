"""The ladder: every form compared with the trained model's reference."""

from __future__ import annotations

from collections.abc import Sequence

from tuneline.core.artifact import Artifact
from tuneline.core.page.blocks import (
    Block,
    Column,
    Fold,
    Listing,
    Pairs,
    Paragraph,
    Plot,
    Plots,
    Section,
    Table,
    Text,
    verdict_badge,
)
from tuneline.core.page.numbers import ABSENT, nats, share
from tuneline.core.page.plot import Axis, Mark, Row, row_plot
from tuneline.core.parity import PARITY_FILE, Parity
from tuneline.core.tolerances import Tolerances
from tuneline.pipeline.products.product import ServedProof
from tuneline.pipeline.products.table import SERVED_PROOFS
from tuneline.report.facts import Facts
from tuneline.report.sections.absent import absent_section

TITLE = "Parity ladder"
FLOOR_NATS = 1e-9
"""The place of a difference of zero on a logarithmic axis."""
FIGURES = ("max_logprob_difference", "mean_logprob_difference")
COLUMNS = (
    Column("form"),
    Column("verdict"),
    Column("answers equal", True),
    Column("prompt ids equal", True),
    Column("largest, nats", True),
    Column("mean, nats", True),
    Column("KL, nats", True),
    Column("right answers", True),
)
Proof = tuple[Parity, Tolerances]


def ladder_section(facts: Facts) -> Section | None:
    """Return the table of all parity results, with their limits in a plot."""
    found = facts.of_kind("parity")
    for kind, proof in SERVED_PROOFS.items():
        if served := facts.of_kind(kind):
            return _numbers(facts, proof, *served[0])
    if not found:
        stages = [stage for stage in facts.absent if stage.startswith("parity-")]
        return absent_section("parity", TITLE, facts, stages)
    proofs = [_proof(artifact) for _, artifact in found]
    blocks: list[Block] = [_table([parity for parity, _ in proofs])]
    problems = [f"{p.form}: {problem}" for p, _ in proofs for problem in p.problems]
    if problems:
        blocks.append(Listing(tuple(problems)))
    blocks.append(Plots((_plot(proofs),)))
    diverged = [
        f"{p.form}: prompt {d.prompt_index}, token {d.position}: expected {d.expected_text!r}, "
        f"found {d.found_text!r}"
        for p, _ in proofs
        for d in p.first_divergences[:5]
    ]
    if diverged:
        blocks.append(Fold("First divergences", (Listing(tuple(diverged)),)))
    sources = facts.sources(*(stage for stage, _ in found))
    return Section("parity", TITLE, tuple(blocks), sources, facts.again("prove"))


def _numbers(facts: Facts, proof: ServedProof, stage: str, made: Artifact) -> Section:
    """Return the served scores or vectors against those of the trained model."""
    found, gives = made.manifest.metrics, proof.routes.gives
    model = proof.routes.model.partition(" ")[2]
    rows: list[tuple[str, Text]] = [("verdict", verdict_badge(found["verdict"]))]
    rows += proof.rows(found)
    said = f"{gives.capitalize()} through the API against those of the trained {model}."
    blocks: list[Block] = [Paragraph(said), Pairs(tuple(rows))]
    if problems := found.get("problems"):
        blocks.append(Listing(tuple(problems)))
    return Section("parity", f"Served {gives}", tuple(blocks), facts.sources(stage), facts.up)


def _proof(artifact: Artifact) -> Proof:
    text = (artifact.path / PARITY_FILE).read_text(encoding="utf-8")
    allowed = Tolerances.model_validate(artifact.manifest.config["tolerances"])
    return Parity.model_validate_json(text), allowed


def _table(parities: Sequence[Parity]) -> Table:
    first = parities[0]
    rows: list[tuple[Text, ...]] = [
        (
            "trained model, computed twice", ABSENT, ABSENT, ABSENT, nats(first.reference_noise),
            ABSENT, ABSENT, share(first.reference_accuracy),
        )
    ]  # fmt: skip
    rows += [
        (
            parity.form,
            verdict_badge(parity.verdict),
            f"{parity.num_equal_answers} of {parity.num_prompts}",
            f"{parity.num_prompts_with_equal_ids} of {parity.num_prompts}",
            nats(parity.max_logprob_difference),
            nats(parity.mean_logprob_difference),
            nats(parity.mean_kl),
            share(parity.accuracy),
        )
        for parity in parities
    ]
    caption = f"Every form against the trained model's answers to {first.num_prompts} prompts"
    return Table(caption, COLUMNS, tuple(rows))


def _plot(proofs: Sequence[Proof]) -> Plot:
    rows = []
    for parity, allowed in proofs:
        found = [getattr(parity, name) for name in FIGURES]
        limits = [getattr(allowed, name) for name in FIGURES]
        marks = [Mark(max(v, FLOOR_NATS), n) for n, v in enumerate(found) if v is not None]
        ticks = [Mark(v, n) for n, v in enumerate(limits) if v is not None]
        says = f"{nats(found[0])}, {nats(found[1])}; limits {nats(limits[0])}, {nats(limits[1])}"
        rows.append(Row(parity.form, says, marks, limits=ticks))
    axis = Axis("nats; a bar is the limit", is_log=True)
    title = "Log-probability differences"
    return row_plot(title, rows, axis, legend=("largest", "mean"))

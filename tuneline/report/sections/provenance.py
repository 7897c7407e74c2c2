"""Provenance: every artifact with its digest, versions and hardware, every figure's source."""

from __future__ import annotations

import json
from collections.abc import Sequence

from tuneline.core.digests import short_digest
from tuneline.core.page.blocks import (
    Block,
    Code,
    Column,
    Fold,
    Pairs,
    Section,
    Source,
    Table,
    Text,
)
from tuneline.core.page.numbers import ABSENT, digits, size
from tuneline.core.release import Base, Figure, Release
from tuneline.report.facts import Facts
from tuneline.report.sections.training import machine

TITLE = "Provenance"


def provenance_section(facts: Facts) -> Section:
    """Return the chain of artifacts, the environment and the source of every figure."""
    blocks: list[Block] = []
    if facts.release is not None:
        blocks.append(_released(facts.release))
    blocks.append(_chain(facts))
    blocks.append(_environments(facts))
    blocks.append(Fold("Digests and inputs in full", (_digests(facts),)))
    if facts.release is not None:
        figures = facts.release.figures
        blocks.append(Fold(f"{len(figures)} figures with their sources", (_figures(figures),)))
    versions = _versions(facts)
    if versions.pairs:
        blocks.append(Fold("Library versions", (versions,)))
    text = json.dumps(facts.config, indent=2, ensure_ascii=False)
    blocks.append(Fold("The resolved run.yaml", (Source(text),)))
    return Section("provenance", TITLE, tuple(blocks))


def _released(release: Release) -> Pairs:
    model, base, data = release.model, release.base, release.data
    served = f"{model.served_name}, {model.form}, {model.weights} "
    files = f"{', '.join(data.paths)}, licence {data.license or 'unknown'} "
    pairs: list[tuple[str, Text]] = [
        ("served model", (served, Code(model.digest))),
        ("base model", _origin(base)),
        *([] if release.teacher is None else [("teacher", _origin(release.teacher))]),
        ("data", (files, Code(data.digest))),
    ]
    if release.previous is not None:
        earlier = release.previous
        pairs.append(
            ("compared with", (f"{earlier.name} of {earlier.created_at} ", Code(earlier.digest)))
        )
    return Pairs(tuple(pairs))


def _origin(model: Base) -> Text:
    revision = f" at {model.revision}" if model.revision else ""
    return (f"{model.id}{revision}, licence {model.license or 'unknown'} ", Code(model.digest))


def _chain(facts: Facts) -> Table:
    columns = (
        Column("stage"), Column("kind"), Column("digest"), Column("size", True), Column("made"),
    )  # fmt: skip
    rows: list[tuple[Text, ...]] = [
        (
            stage,
            one.kind,
            Code(one.short_digest),
            size(one.size_bytes),
            one.manifest.created_at[:16].replace("T", " "),
        )
        for stage, one in facts.made.items()
    ]
    rows += [(stage, "absent", ABSENT, ABSENT, reason) for stage, reason in facts.absent.items()]
    return Table("Artifacts of the line; times are UTC", columns, tuple(rows))


def _environments(facts: Facts) -> Table:
    """Return the machines of the run, each with the stages that ran there."""
    stages: dict[tuple[str, str, str], list[str]] = {}
    for stage, one in facts.made.items():
        facts_of = one.manifest.environment
        key = (
            machine(facts_of.get("hardware", {})),
            str(facts_of.get("python", "?")),
            str(facts_of.get("git_commit") or "unknown"),
        )
        stages.setdefault(key, []).append(stage)
    rows = [
        (hardware, python, Code(commit[:12]), ", ".join(names))
        for (hardware, python, commit), names in stages.items()
    ]
    columns = (Column("machine"), Column("Python"), Column("commit"), Column("stages"))
    return Table("Machines that ran the stages", columns, tuple(rows), is_stacked=True)


def _digests(facts: Facts) -> Table:
    rows = [
        (
            one.path.name,
            Code(one.digest),
            ", ".join(f"{i.role} {short_digest(i.digest)}" for i in one.manifest.inputs),
        )
        for one in facts.made.values()
    ]
    columns = (Column("directory"), Column("digest"), Column("inputs"))
    return Table("Digest and inputs of each artifact", columns, tuple(rows), is_stacked=True)


def _figures(figures: Sequence[Figure]) -> Table:
    rows = [
        (figure.title, _value(figure), _interval(figure), Code(_place(figure)))
        for figure in figures
    ]
    columns = (
        Column("figure"), Column("value", True), Column("95 % interval", True), Column("source"),
    )  # fmt: skip
    return Table("Figures of the release", columns, tuple(rows), is_stacked=True)


def _value(figure: Figure) -> str:
    if figure.value is None:
        return "withheld"
    shown = figure.value if isinstance(figure.value, str) else digits(figure.value)
    return f"{shown} {figure.unit}".strip()


def _interval(figure: Figure) -> str:
    if figure.interval is None:
        return ABSENT
    return " to ".join("∞" if bound is None else digits(bound) for bound in figure.interval)


def _place(figure: Figure) -> str:
    source = figure.source
    return f"{source.stage} {short_digest(source.digest)} {source.file}{source.pointer}"


def _versions(facts: Facts) -> Pairs:
    found: dict[str, dict[str, None]] = {}
    for one in facts.made.values():
        for name, version in one.manifest.environment.get("libraries", {}).items():
            found.setdefault(name, {})[version] = None
    return Pairs(tuple((name, ", ".join(versions)) for name, versions in sorted(found.items())))

"""The model card of a release: README.md with the metadata block that the Hub reads."""

from __future__ import annotations

from collections.abc import Sequence

import yaml

from tuneline.core.digests import short_digest
from tuneline.core.release import Base, Figure, Outcome, Release
from tuneline.release.licenses import hub_license
from tuneline.report.sections.training import method_words

SHOWN = ("evaluation.", "forgetting.difference", "parity.served.", "load.")
MARKS = {
    Outcome.PASSED: "passed",
    Outcome.FAILED: "**failed**",
    Outcome.WAIVED: "**waived**",
    Outcome.NOT_ASKED: "not asked",
}


def card_text(release: Release) -> str:
    """Return the card, in Markdown. Every figure of it is in `release.json`."""
    model, base, data = release.model, release.base, release.data
    lines = ["---", yaml.safe_dump(_metadata(release), sort_keys=False).rstrip(), "---", ""]
    lines += [f"# {release.name}", "", f"Verdict: **{release.said_verdict}**.", ""]
    lines += [
        "| | |",
        "| --- | --- |",
        f"| model | `{model.digest}`, {model.form}, {model.weights}, {model.size_bytes:,} bytes |",
        f"| base model | {_origin(base)} |",
        *([] if release.teacher is None else [f"| teacher | {_origin(release.teacher)} |"]),
        f"| method | {method_words(release.config['training'])} |",
        f"| data | {data.num_train:,} training rows, {data.num_heldout:,} held-out rows of "
        f"{', '.join(data.paths)}, licence {data.license or 'unknown'} |",
        f"| released | {release.created_at}, Tuneline {release.tuneline_version} |",
    ]
    if release.previous is not None:
        lines.append(
            f"| earlier release | {release.previous.name} "
            f"`{short_digest(release.previous.digest)}` |"
        )
    lines += ["", "## Gates", "", "| gate | outcome | finding |", "| --- | --- | --- |"]
    lines += [
        f"| {gate.name} | {MARKS[gate.outcome]} | {_cell(gate.words)}"
        + (f" Waived: {_cell(gate.why)}" if gate.why else "")
        + " |"
        for gate in release.gates
    ]
    lines += ["", "## Figures", "", "| figure | value | 95 % interval | source |"]
    lines += ["| --- | --- | --- | --- |"]
    lines += [_row(figure) for figure in release.figures if figure.name.startswith(SHOWN)]
    lines += ["", "## Made from", "", "| stage | kind | digest |", "| --- | --- | --- |"]
    lines += [f"| {link.stage} | {link.kind} | `{link.digest}` |" for link in release.chain]
    lines += ["", "## How to reproduce", "", "```", release.reproduce.command, "```", ""]
    lines += [_versions(release), ""]
    lines += ["## What this card does not say", ""]
    lines += [
        "The intended use and the known biases are not measured. Add them before you publish."
    ]
    return "\n".join(lines) + "\n"


def _origin(model: Base) -> str:
    return f"{model.id} `{short_digest(model.digest)}`, licence {model.license or 'unknown'}"


def _metadata(release: Release) -> dict[str, object]:
    """Return the block that the Hub reads. It refuses a name that it does not have, such as the
    path of a base model or of a data file."""
    is_adapter = release.model.form == "adapter"
    values: dict[str, object] = {
        "library_name": "peft" if is_adapter else "transformers",
        "pipeline_tag": release.task,
        "tags": ["tuneline"],
    }
    if release.base.hub_id is not None:
        values["base_model"] = release.base.hub_id
        values["base_model_relation"] = "adapter" if is_adapter else "finetune"
    datasets = {path.removeprefix("hf:") for path in release.data.paths if path.startswith("hf:")}
    if datasets:
        values["datasets"] = sorted(datasets)
    if release.base.license is not None:
        values |= hub_license(release.base.license)
    return values


def _row(figure: Figure) -> str:
    interval = ""
    if figure.interval is not None:
        interval = " to ".join(
            "∞" if bound is None else f"{bound:.4g}" for bound in figure.interval
        )
    value = figure.value
    shown = f"{value:.4g}" if isinstance(value, float) else f"{value}"
    said = "withheld" if value is None else f"{shown} {figure.unit}".strip()
    source = f"`{short_digest(figure.source.digest)}` {figure.source.file}{figure.source.pointer}"
    return f"| {figure.title} | {said} | {interval} | {source} |"


def _versions(release: Release) -> str:
    made: Sequence[str] = [f"{name} {one}" for name, one in release.reproduce.libraries.items()]
    hardware = release.reproduce.hardware
    machine = f"{hardware.get('cpu')}, {hardware.get('cpu_cores')} cores"
    return f"Made with Python {release.reproduce.python} on {machine}, with {', '.join(made)}."


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")

"""Parity results as a table and as a picture: the ladder of all forms."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tuneline.core.artifact import Artifact, Input, new_artifact, open_artifact
from tuneline.core.parity import PARITY_FILE, Parity, nats
from tuneline.core.progress import logger
from tuneline.core.tolerances import Tolerances

TRAINED = "trained"
"""The first row of the ladder: the difference of two runs of the reference."""

COLUMNS = ("form", "verdict", "answers equal", "ids equal", "max", "mean", "KL", "accuracy")
FLOOR_NATS = 1e-8
"""The place of a difference of zero on a logarithmic axis."""


def write_parity(
    out: Path,
    parity: Parity,
    tolerances: Tolerances,
    *,
    config: dict[str, Any],
    inputs: Sequence[Input],
) -> Artifact:
    """Write a comparison as an artifact of kind `parity`; a failed verdict raises no error."""
    logger.info("%s", describe(parity))
    recorded = {**config, "tolerances": tolerances.model_dump()}
    with new_artifact(out, "parity", config=recorded, inputs=inputs) as draft:
        (draft.dir / PARITY_FILE).write_text(parity.model_dump_json(indent=2) + "\n", "utf-8")
        (draft.dir / "parity.md").write_text(markdown([parity]), "utf-8")
        draw(draft.dir / "parity.png", [(parity, tolerances)])
        draft.metrics.update(parity.model_dump(mode="json"))
    return open_artifact(out, kind="parity")


def describe(parity: Parity) -> str:
    """Return a few lines for people: the figures, the verdict, the first divergences in words."""
    lines = [
        f"{parity.form}: {parity.verdict}: {parity.num_equal_answers} of "
        f"{parity.num_prompts} answers equal, prompt ids equal on "
        f"{parity.num_prompts_with_equal_ids}, log-probability difference at most "
        f"{nats(parity.max_logprob_difference)} (mean {nats(parity.mean_logprob_difference)}), "
        f"{parity.num_agreeing_tokens} of {parity.num_tokens} tokens before a divergence"
    ]
    if parity.stated_weights is not None:
        lines.append(f"  the served weights are {parity.stated_weights}, as the caller states")
    if parity.template_date is not None:
        lines.append(
            "  the chat template writes today's date; this comparison is of prompts with "
            f"{parity.template_date}"
        )
    for divergence in parity.first_divergences[:3]:
        margin = (
            f"; the reference preferred its own by {divergence.expected_margin:.2g} nats"
            if divergence.expected_margin is not None
            else ""
        )
        lines.append(
            f"  prompt {divergence.prompt_index}, token {divergence.position}: expected "
            f"{divergence.expected_text!r}, found {divergence.found_text!r}{margin}"
        )
    if parity.num_stopped == 0:
        lines.append("  no answer of the reference ends by itself: stopping was not tested")
    return "\n".join(lines + [f"  {problem}" for problem in parity.problems])


def table(proofs: Sequence[Parity]) -> list[str]:
    """Return one line per form, the reference's noise first; differences are in nats."""
    rows = [COLUMNS, *([_noise(proofs[0])] if proofs else []), *map(_row, proofs)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def markdown(proofs: Sequence[Parity]) -> str:
    """Return the table, then each form's first divergences and problems."""
    rows = [COLUMNS, ("---",) * len(COLUMNS), *([_noise(proofs[0])] if proofs else [])]
    lines = ["| " + " | ".join(row) + " |" for row in [*rows, *map(_row, proofs)]]
    lines += ["", "Differences are in nats; `max`, `mean` and `KL` are over the tokens up to a"]
    lines += ["divergence and at it. The trained model's row is the reference computed twice."]
    longest = max((proof.longest_tokens or 0 for proof in proofs), default=0)
    if longest:
        lines += [f"The longest prompt with its answer has {longest} tokens; rotary scaling and"]
        lines += ["attention windows that act only beyond them are not tested."]
    lines += [
        f"The caller states that {proof.form} has weights in {proof.stated_weights}."
        for proof in proofs
        if proof.stated_weights is not None
    ]
    lines += [
        f"A server of {proof.form} answers with {said_defaults(proof)} by default, because "
        "generation_config.json says so; the proof compares plain greedy answers."
        for proof in proofs
        if proof.sampling_defaults
    ]
    for proof in proofs:
        if proof.problems or proof.first_divergences:
            lines += ["", f"## {proof.form}", ""]
        lines += [f"- {problem}" for problem in proof.problems]
        lines += [
            f"- prompt {d.prompt_index}, token {d.position}: expected `{d.expected_text!r}`, found "
            f"`{d.found_text!r}`"
            for d in proof.first_divergences[:5]
        ]
    return "\n".join(lines) + "\n"


def said_defaults(proof: Parity) -> str:
    """Return the sampling defaults for people: `temperature=0.6, repetition_penalty=1.05`."""
    return ", ".join(f"{name}={value:g}" for name, value in proof.sampling_defaults.items())


def draw(path: Path, proofs: Sequence[tuple[Parity, Tolerances]]) -> bool:
    """Draw the differences of each form with their limits, as a PNG.

    Returns:
        Whether the picture was drawn; False without matplotlib, as on a serving host.
    """
    if importlib.util.find_spec("matplotlib") is None:
        return False
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = [f"{proof.form}: {proof.verdict}" for proof, _ in proofs]
    width, height = 9.0, 1.6 + 0.5 * len(proofs)
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    # Fixed margins, in inches: a layout that measures every label takes twice as long.
    margins = {
        "left": (0.25 + 0.085 * max(map(len, names), default=0)) / width, "right": 0.985,
        "bottom": 0.52 / height, "top": 1 - 0.1 / height, "wspace": 0.05,
    }  # fmt: skip
    left, right = figure.subplots(1, 2, sharey=True, gridspec_kw=margins)
    places = list(range(len(proofs)))
    for figure_name, marker in (("max_logprob_difference", "o"), ("mean_logprob_difference", "s")):
        found = [max(getattr(p, figure_name) or 0.0, FLOOR_NATS) for p, _ in proofs]
        word = figure_name.partition("_")[0]
        (line,) = left.plot(found, places, marker, label=f"{word} |difference|")
        limits = [(getattr(t, figure_name), place) for place, (_, t) in enumerate(proofs)]
        drawn = [(limit, place) for limit, place in limits if limit is not None]
        label = f"{word} allowed"
        left.plot(
            [x for x, _ in drawn], [y for _, y in drawn],
            "|", color=line.get_color(), markersize=16, label=label,
        )  # fmt: skip
    noise = proofs[0][0].reference_noise if proofs else None
    if noise is not None:
        left.axvline(max(noise, FLOOR_NATS), color="0.6", linestyle=":", label="reference's noise")
    left.set_xscale("log")
    # Minor ticks, and powers as mathematical text, are half of the time to draw.
    left.minorticks_off()
    left.xaxis.set_major_formatter("{x:.0e}")
    left.set_xlabel("log-probability difference (nats)")
    left.set_yticks(places, names)
    left.invert_yaxis()
    left.legend(fontsize="x-small")
    right.plot([p.greedy_agreement for p, _ in proofs], places, "o", label="answers equal")
    scored = [(p.accuracy, place) for place, (p, _) in enumerate(proofs) if p.accuracy is not None]
    if scored:
        right.plot([x for x, _ in scored], [y for _, y in scored], "d", label="right answers")
    right.set_xlim(-0.05, 1.05)
    right.set_xlabel("share of prompts")
    right.legend(fontsize="x-small")
    # Without the metadata, the bytes of the picture depend only on the figures.
    figure.savefig(path, metadata={"Software": None})
    return True


def _row(proof: Parity) -> tuple[str, ...]:
    return (
        proof.form,
        proof.verdict,
        f"{proof.num_equal_answers}/{proof.num_prompts}",
        f"{proof.num_prompts_with_equal_ids}/{proof.num_prompts}",
        _figure(proof.max_logprob_difference),
        _figure(proof.mean_logprob_difference),
        _figure(proof.mean_kl),
        _accuracy(proof.accuracy),
    )


def _noise(proof: Parity) -> tuple[str, ...]:
    whole = f"{proof.num_prompts}/{proof.num_prompts}"
    noise, accuracy = _figure(proof.reference_noise), _accuracy(proof.reference_accuracy)
    return (TRAINED, "-", whole, whole, noise, "-", "-", accuracy)


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.1e}"


def _accuracy(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"

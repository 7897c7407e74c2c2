"""The report at the end of a line: accuracy before and after, proofs, load."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from tuneline.core.artifact import Artifact
from tuneline.core.artifact_kinds import KINDS
from tuneline.core.messages import content_of
from tuneline.pipeline.artifact_summary import payload_path
from tuneline.pipeline.products.table import SERVED_PROOFS
from tuneline.pipeline.stage import Stage

Done = Sequence[tuple[Stage, Artifact]]
"""The stages that a line has finished, in order."""


def run_report_lines(done: Done) -> list[str]:
    """Return what a line has shown so far: accuracy before and after, proofs, load."""
    lines = []
    evaluations = [(stage, a) for stage, a in done if a.kind == "evaluation"]
    if evaluations:
        lines.append("\nHeld-out answers")
        lines += [f"  {s.label:16} {_accuracies(a.manifest.metrics)}" for s, a in evaluations]
        lines += _example(evaluations)
    for compared in of_kind(done, "evaluation-report"):
        lines += ["\nBase against tuned", *comparison_lines(compared.manifest.metrics)]
        lines += _advice(compared.manifest.metrics)
        lines.append(f"  answers side by side: {compared.path / 'mismatches.html'}")
    for compared in of_kind(done, "preferences"):
        lines += ["\nPreferences", f"  {KINDS['preferences'].summary(compared.manifest.metrics)}"]
        lines += _judge_lines(compared.manifest.metrics)
    for compared in of_kind(done, "retrieval"):
        lines += ["\nRetrieval", f"  {KINDS['retrieval'].summary(compared.manifest.metrics)}"]
    for forgetting in of_kind(done, "forgetting"):
        lines += ["\nForgetting suite", *forgetting_lines(forgetting.manifest.metrics)]
        lines.append(f"  answers side by side: {forgetting.path / 'mismatches.html'}")
    proofs = of_kind(done, "parity")
    if proofs:
        from tuneline.pipeline.parity_ladder import ladder_lines

        lines.append("\nIs it the trained model? (log-probability differences in nats)")
        lines += [f"  {line}" for line in ladder_lines(proofs)]
    for kind in SERVED_PROOFS:
        for proof in of_kind(done, kind):
            said = KINDS[kind].summary(proof.manifest.metrics)
            lines += ["\nIs it the trained model?", f"  {said}"]
    for load in of_kind(done, "load-report"):
        from loadtest import read_report, report_lines

        report = read_report(load.path)
        lines += ["\nUnder load", *(f"  {line}" for line in report_lines(report))]
    lines += [f"\n{stage.name}: {artifact.path}" for stage, artifact in done[-1:]]
    return lines


def of_kind(done: Done, kind: str) -> list[Artifact]:
    """Return the finished artifacts of one kind, in order."""
    return [artifact for _, artifact in done if artifact.kind == kind]


def evaluation_lines(evaluation: Artifact) -> list[str]:
    """Return one line for each metric of an `evaluation`, and the place of its files."""
    lines = [f"{KINDS['evaluation'].summary(evaluation.manifest.metrics)} held-out rows"]
    for name, entry in evaluation.manifest.metrics["metrics"].items():
        title = f"  {entry.get('title', name):22}"
        if entry["value"] is None:
            lines.append(f"{title} {entry.get('note') or 'no row has a value'}")
            continue
        low, high = entry["interval"]
        lines.append(
            f"{title} {entry['value']:.3f} (95 %: {low:.3f} to {high:.3f}), "
            f"{entry['num_rows']} rows"
        )
    page = evaluation.path / "mismatches.html"
    return [*lines, f"answers: {page}", f"figures: {evaluation.path / 'evaluation.json'}"]


def comparison_lines(metrics: dict[str, Any]) -> list[str]:
    """Return one line for each metric of an `evaluation-report`."""
    lines = []
    for entry in metrics["metrics"].values():
        low, high = entry["interval"]
        p = entry["mcnemar_p"]
        lines.append(
            f"  {entry['title']:22} {entry['base']:.3f} → {entry['tuned']:.3f}  difference "
            f"{entry['difference']:+.3f} (95 %: {low:+.3f} to {high:+.3f})"
            + (f", McNemar p {p:.2g}" if p is not None else "")
        )
    return lines + _judge_lines(metrics)


def _advice(metrics: dict[str, Any]) -> list[str]:
    """Return what to try if no metric tells the tuned model from the base."""
    intervals = [entry["interval"] for entry in metrics["metrics"].values()]
    if not intervals or any(low > 0 or high < 0 for low, high in intervals):
        return []
    return [
        "  no difference is proven: every interval contains 0. Try more epochs, such as --set "
        "training.num_train_epochs=10, more rows, or a larger base model"
    ]


def _judge_lines(metrics: dict[str, Any]) -> list[str]:
    """Return the line of a judge's verdicts, if a judge was asked."""
    judge = metrics.get("judge")
    if judge is None:
        return []
    rate = "unknown" if judge["win_rate"] is None else f"{judge['win_rate']:.1%}"
    if interval := judge.get("interval"):
        rate += f" (95 %: {interval[0]:.1%} to {interval[1]:.1%})"
    unread = f", {judge['unreadable']} without a verdict" if judge["unreadable"] else ""
    return [
        f"  judge: the tuned model's win rate is {rate} ({judge['wins']} wins, "
        f"{judge['losses']} losses, {judge['ties'] + judge['swapped']} ties{unread})"
    ]


def forgetting_lines(metrics: dict[str, Any]) -> list[str]:
    """Return one line for each skill of the forgetting suite, and the problems."""
    lines = [f"  {KINDS['forgetting'].summary(metrics)}"]
    for name, skill in metrics["skills"].items():
        low, high = skill["interval"]
        lines.append(
            f"  {name:14} {skill['base']:6.1%} → {skill['tuned']:6.1%}  "
            f"(95 %: {100 * low:+.1f} to {100 * high:+.1f} points)  {skill['verdict']}"
        )
    repeats = metrics.get("repeats")
    if repeats and repeats["base"]["num_asked"]:
        base, tuned = repeats["base"], repeats["tuned"]
        lines.append(
            f"  {base['num_asked']} items differ. Asked again, {base['num_changed']} answers of "
            f"the base and {tuned['num_changed']} of the tuned model pass or fail otherwise; these "
            "items count as equal."
        )
    for who, num_cut in metrics.get("num_cut", {}).items():
        if 2 * num_cut > metrics["num_asked"]:
            lines.append(
                f"  {num_cut} of {metrics['num_asked']} answers of the {who} model are cut off. If "
                "it thinks before it answers, try data.chat_template_kwargs: "
                "{enable_thinking: false}."
            )
    return lines + [f"  {problem}" for problem in metrics["problems"]]


def _accuracies(metrics: dict[str, Any]) -> str:
    fields = [f"{name} {share:.1%}" for name, share in metrics["field_accuracy"].items()]
    return ", ".join([KINDS["evaluation"].summary(metrics), *fields])


def _example(evaluations: Done) -> list[str]:
    """Return the first held-out prompt and what each evaluated model answered."""
    answers = []
    for stage, evaluation in evaluations:
        with payload_path(evaluation).open(encoding="utf-8") as file:
            answers.append((stage.label, json.loads(file.readline())))
    _, first = answers[0]
    lines = ["\nThe first of them", *_quoted("asked", content_of(first["prompt"][-1]))]
    for label, prediction in answers:
        lines += _quoted(label, prediction["answer"])
    return [*lines, *_quoted("expected", first["expected"])]


def _quoted(title: str, text: str) -> list[str]:
    first, *others = [line for line in text.strip().splitlines() if line] or [""]
    return [f"  {title:16} {first}"] + [f"  {'':16} {line}" for line in others]

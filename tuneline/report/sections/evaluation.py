"""The evaluation: base against tuned with intervals, the fields, and the wrong answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tuneline.core.artifact import Artifact
from tuneline.core.page.blocks import (
    Answer,
    Block,
    Code,
    Column,
    Example,
    Examples,
    Fold,
    Pairs,
    Paragraph,
    Plots,
    Section,
    Table,
    Text,
)
from tuneline.core.page.numbers import (
    ABSENT,
    count,
    digits,
    points,
    share,
    signed,
    three_digits,
)
from tuneline.core.page.plot import Axis, Mark, Row, row_plot
from tuneline.pipeline.stage import (
    EVALUATION_BASE,
    EVALUATION_REPORT,
    EVALUATION_SERVED,
    EVALUATION_TUNED,
    PREFERENCES,
    RETRIEVAL,
)
from tuneline.report.facts import Facts
from tuneline.report.sections.absent import absent_section

TITLE = "Evaluation"
LABELS = {EVALUATION_BASE: "base", EVALUATION_TUNED: "tuned", EVALUATION_SERVED: "served"}
COMPARISON_FILE = "comparison.json"
SCORES_FILE = "evaluation.json"
PREDICTIONS_FILE = "predictions.jsonl"
MAX_EXAMPLES = 20
MAX_CHARACTERS = 8000
"""Of a prompt or an answer; the page with all rows has them whole."""
COMPARED: dict[str, tuple[str, Callable[[float], str]]] = {
    "num_pairs": ("pairs", count),
    "num_rows": ("prompts", count),
    "accuracy": ("better answer preferred by the tuned model", share),
    "margin": ("reward of the better answer minus the other's", digits),
    "likelier_base": ("better answer likelier, base model", share),
    "likelier": ("better answer likelier, tuned model", share),
    "likelier_difference": ("better answer likelier, tuned minus base, in points", points),
    "likelier_p": ("McNemar p", three_digits),
    "reward_base": ("reward, base model", digits),
    "reward": ("reward, tuned model", digits),
    "reward_difference": ("reward, tuned minus base", digits),
}
"""The figures of a method that compares two answers or has a reward; some have an interval."""
NO_SHARES = ("chrf", "nats", "python")
"""Metrics whose values are not shares of 1."""


def evaluation_section(facts: Facts) -> Section | None:
    """Return the metrics of base, tuned and served model with the tuned model's wrong answers."""
    shown = [*LABELS, EVALUATION_REPORT, PREFERENCES, RETRIEVAL]
    blocks: list[Block] = []
    if EVALUATION_REPORT in facts.made:
        judge = facts.made[EVALUATION_REPORT].manifest.metrics.get("judge")
        blocks += _compared(facts.read(EVALUATION_REPORT, COMPARISON_FILE), judge)
    if any(stage in facts.made for stage in LABELS):
        blocks.append(_scores(facts))
    if PREFERENCES in facts.made:
        found = facts.made[PREFERENCES].manifest.metrics
        blocks += [_preferences(found), *_judged(found.get("judge"))]
    if RETRIEVAL in facts.made:
        blocks.append(_ranked(facts.made[RETRIEVAL].manifest.metrics))
    if EVALUATION_TUNED in facts.made:
        blocks.append(_wrong_answers(facts))
    if not blocks:
        return absent_section("evaluation", TITLE, facts, shown)
    sources, again = facts.sources(*shown), facts.again("evaluate")
    return Section("evaluation", TITLE, tuple(blocks), sources, again)


def _compared(comparison: dict[str, Any], judge: dict[str, Any] | None) -> list[Block]:
    columns = (
        Column("metric"), Column("base", True), Column("tuned", True), Column("difference", True),
        Column("95 % interval", True), Column("McNemar p", True), Column("better"),
    )  # fmt: skip
    rows, drawn = [], []
    for name, entry in comparison["metrics"].items():
        value, change = (_number, _change) if name in NO_SHARES else (share, points)
        low, high = entry["interval"]
        p = entry["mcnemar_p"]
        interval = f"{change(low)} to {change(high)}"
        rows.append(
            (
                entry["title"], value(entry["base"]), value(entry["tuned"]),
                change(entry["difference"]), interval,
                ABSENT if p is None else f"{p:.2g}", entry["better"],
            )
        )  # fmt: skip
        if name not in NO_SHARES:
            says = f"{change(entry['difference'])} ({interval})"
            mark = Mark(100 * entry["difference"])
            drawn.append(Row(entry["title"], says, [mark], (100 * low, 100 * high)))
    caption = f"Base against tuned on {comparison['num_rows']} held-out rows; differences in points"
    blocks: list[Block] = [Table(caption, columns, tuple(rows))]
    if drawn:
        axis = Axis("percentage points, right of the line is more")
        blocks.append(Plots((row_plot("Tuned minus base", drawn, axis, zero=True),)))
    return blocks + _judged(judge)


def _ranked(found: dict[str, Any]) -> Block:
    """Return the rankings of base and tuned model."""
    low, high = found["ndcg_difference_interval"]
    difference = f"{found['ndcg_difference']:+.3f} ({low:+.3f} to {high:+.3f})"
    rows = [
        (title, three_digits(found[f"{name}_base"]), three_digits(found[name]),
         difference if name == "ndcg" else ABSENT)
        for name, title in (("ndcg", "nDCG@10"), ("mrr", "MRR@10"), ("recall", "recall@10"))
    ]  # fmt: skip
    columns = (
        Column("metric"), Column("base", True), Column("tuned", True),
        Column("difference (95 % interval)", True),
    )  # fmt: skip
    caption = (
        f"{found['num_queries']} held-out queries, each ranks {count(found['num_passages'])} "
        "passages by cosine"
    )
    if "base_order" in found:
        caption = (
            f"{found['num_queries']} held-out queries rank their own passages, "
            f"{count(found['num_passages'])} in all; the base's order is that of "
            f"{found['base_order']}"
        )
    return Table(caption, columns, tuple(rows))


def _judged(judge: dict[str, Any] | None) -> list[Block]:
    """Return what a judge said, if a judge was asked."""
    if judge is None:
        return []
    unread = f", {judge['unreadable']} without a verdict" if judge["unreadable"] else ""
    interval = judge.get("interval")
    within = "" if interval is None else f" (95 %: {share(interval[0])} to {share(interval[1])})"
    return [
        Paragraph(
            f"Judge: the tuned model's win rate is {share(judge['win_rate'])}{within}: "
            f"{judge['wins']} wins, {judge['losses']} losses, "
            f"{judge['ties'] + judge['swapped']} ties{unread}."
        )
    ]


def _number(value: float) -> str:
    return f"{value:.3f}"


def _change(value: float) -> str:
    return signed(value, 3)


def _scores(facts: Facts) -> Table:
    """Return exact match and the fields of every evaluated model."""
    found = {
        label: facts.read(stage, SCORES_FILE)
        for stage, label in LABELS.items()
        if stage in facts.made
    }
    fields = dict.fromkeys(name for one in found.values() for name in one["field_accuracy"])
    rows: list[tuple[Text, ...]] = [
        ("exact match", *(share(one["exact_match"]) for one in found.values())),
        ("exact match, 95 % interval", *(_interval(one) for one in found.values())),
        *((name, *(share(one["field_accuracy"].get(name)) for one in found.values()))
          for name in fields),
        ("ended by itself", *(share(one["stopped"]) for one in found.values())),
    ]  # fmt: skip
    columns = (Column("share of answers"), *(Column(label, True) for label in found))
    return Table("Right answers of each model", columns, tuple(rows))


def _interval(metrics: dict[str, Any]) -> str:
    low, high = metrics["exact_match_interval"]
    return f"{share(low)} to {share(high)}"


def _preferences(metrics: dict[str, Any]) -> Pairs:
    pairs: list[tuple[str, Text]] = []
    for name, (title, show) in COMPARED.items():
        value, interval = metrics.get(name), metrics.get(f"{name}_interval")
        said = [] if value is None else [show(value)]
        if interval is not None:
            within = f"{show(interval[0])} to {show(interval[1])} (95 %)"
            said.append(within)
        if said:
            pairs.append((title, ", ".join(said)))
    return Pairs(tuple(pairs))


def _wrong_answers(facts: Facts) -> Block:
    tuned = facts.made[EVALUATION_TUNED]
    columns = {"tuned": _predictions(tuned)}
    if EVALUATION_BASE in facts.made:
        columns = {"base": _predictions(facts.made[EVALUATION_BASE]), **columns}
    rows = list(zip(*columns.values(), strict=True))
    wrong = [(number, row) for number, row in enumerate(rows, 1) if not row[-1]["correct"]]
    if not wrong:
        return Paragraph(f"The tuned model answers all {len(rows)} held-out rows rightly.")
    examples = tuple(
        Example(
            f"Row {number}",
            _cut("\n".join(_content(message) for message in row[0]["prompt"])),
            (
                Answer("expected", _answer(row[0]["expected"], row[0]["expected_tool_calls"])),
                *(
                    Answer(label, _answer(one["answer"], one["tool_calls"]), one["correct"])
                    for label, one in zip(columns, row, strict=True)
                ),
            ),
        )
        for number, row in wrong[:MAX_EXAMPLES]
    )
    page = (facts.made.get(EVALUATION_REPORT) or tuned).path.name
    said = f"{len(wrong)} of {len(rows)} held-out rows that the tuned model answers wrongly"
    first = f"The first {len(examples)}. " if len(wrong) > len(examples) else ""
    link = Code(f"{page}/mismatches.html")
    where = Paragraph((f"{first}All rows, with their whole texts, are in ", link, "."))
    return Fold(said, (where, Examples(examples)))


def _predictions(evaluation: Artifact) -> list[dict[str, Any]]:
    path: Path = evaluation.path / PREDICTIONS_FILE
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def _content(message: dict[str, Any]) -> str:
    content = message.get("content")
    return content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)


def _answer(text: str, calls: list[dict[str, Any]]) -> str:
    said = [f"{one['name']}({json.dumps(one['arguments'], ensure_ascii=False)})" for one in calls]
    return _cut("\n".join([*([text] if text else []), *said]))


def _cut(text: str) -> str:
    return text if len(text) <= MAX_CHARACTERS else f"{text[:MAX_CHARACTERS]} …"

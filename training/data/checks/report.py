"""The findings of all checks as one JSON document, and as lines for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from training.data.checks.labels import label_counts
from training.data.checks.run import Checked, Result
from training.data.checks.table import CHECKS
from training.data.formats import row_place

LANGUAGE_NAMES_SHOWN = 12
EXAMPLES_SHOWN = 3


def report_of(checked: Checked) -> dict[str, Any]:
    """Return the counts, the findings, the lengths and the mix of languages and labels.

    In `rows`, `num_read` is `num_kept` and all of `dropped` for each side. `languages` are those of
    a sample, unless languages are named.
    """
    whole = checked.whole
    kept = {side: whole.kept(heldout) for side, heldout in (("train", False), ("heldout", True))}
    codes = np.bincount(whole.languages[kept["train"]], minlength=len(whole.language_names))
    names = dict(zip(whole.language_names, codes.tolist(), strict=True))
    return {
        "rows": {
            side: {
                "num_read": len(whole.read_rows(heldout)),
                "num_kept": len(kept[side]),
                "dropped": dropped_rows(checked, heldout),
            }
            for side, heldout in (("train", False), ("heldout", True))
        },
        "checks": [result.as_json() for result in checked.results],
        "prompt_characters": lengths(whole.characters[kept["train"], 0]),
        "answer_characters": lengths(whole.characters[kept["train"], 1]),
        "scripts": _sorted_counts(names, lambda name: name.partition("/")[0]),
        "languages": _sorted_counts(names, lambda name: name.partition("/")[2]),
        "labels": [{"label": label, "num_rows": count} for label, count, _ in label_counts(whole)],
    }


def _sorted_counts(counts: dict[str, int], group: Callable[[str], str]) -> dict[str, int]:
    """Return the rows of each group of names, the most frequent first; empty names are left out."""
    sums: Counter[str] = Counter()
    for name, count in counts.items():
        sums[group(name)] += count
    return {name: count for name, count in sums.most_common() if name and count}


def lengths(values: npt.NDArray[np.uint32]) -> dict[str, float]:
    """Return the least, the median, the 95th percentile and the greatest of lengths."""
    if not len(values):
        return {}
    ranked = np.sort(values)
    p95 = ranked[max(-(-95 * len(ranked) // 100) - 1, 0)]
    return {
        "min": int(ranked[0]),
        "median": float(np.median(ranked)),
        "p95": int(p95),
        "max": int(ranked[-1]),
    }


def describe_checks(report: dict[str, Any]) -> list[str]:
    """Return the report as lines: the counts, a table of the checks, and their first findings."""
    lines = []
    for side, rows in report["rows"].items():
        if rows["num_read"]:
            reasons = ", ".join(f"{count:,} {name}" for name, count in rows["dropped"].items())
            lines.append(
                f"{side}: {rows['num_read']:,} rows read, {rows['num_kept']:,} kept"
                + (f"; dropped: {reasons}" if reasons else "")
            )
    width = max((len(check["check"]) for check in report["checks"]), default=0)
    lines += ["", f"{'check':<{width}}  {'action':<7}  {'rows':>9}  {'dropped':>9}  {'changed':>9}"]
    for check in report["checks"]:
        lines.append(
            f"{check['check']:<{width}}  {check['action']:<7}  {check['num_rows']:>9,}  "
            f"{check['num_dropped']:>9,}  {check['num_changed']:>9,}"
        )
    for check in report["checks"]:
        if check["num_rows"]:
            kinds = ", ".join(f"{count:,} {kind}" for kind, count in check["kinds"].items())
            lines += ["", f"{check['check']}: {check['title']} ({kinds})"]
            lines += [f"  {describe_example(e)}" for e in check["examples"][:EXAMPLES_SHOWN]]
            if check["action"] == "warn":
                lines.append(f"  {advice_of(check['check'])}")
    if report["languages"]:
        shown = list(report["languages"].items())[:LANGUAGE_NAMES_SHOWN]
        lines += ["", "languages: " + ", ".join(f"{name} {count:,}" for name, count in shown)]
        scripts = ", ".join(f"{name} {count:,}" for name, count in report["scripts"].items())
        lines += [f"scripts: {scripts}"]
    if report["labels"]:
        shown_labels = [f"{entry['label']} {entry['num_rows']:,}" for entry in report["labels"]]
        lines += ["", "labels: " + ", ".join(shown_labels[:LANGUAGE_NAMES_SHOWN])]
    return lines


def advice_of(check: str) -> str:
    """Return how to go on after findings of a check that keeps the rows."""
    return next(known.advice for known in CHECKS if known.name == check)


def describe_example(example: dict[str, Any]) -> str:
    """Return one finding with its file, line, column and kind."""
    other = f" ({example['other']})" if "other" in example else ""
    return (
        f"{row_place(example['file'], example['line'])}: {example['column']}: "
        f"{example['kind']}{other}: {example['excerpt']}"
    )


def warn_of(result: Result) -> str | None:
    """Return the log line of a check that found rows and keeps them; None for any other."""
    if not result.num_rows or result.action == "refuse":
        return None
    return describe_result(result.as_json())


def describe_result(result: Mapping[str, Any]) -> str:
    """Return the rows that a check found and what happened to them, from `Result.as_json`."""
    done = [
        f"{result[f'num_{what}']:,} {what}"
        for what in ("dropped", "changed")
        if result[f"num_{what}"]
    ]
    return f"{result['num_rows']:,} {result['title']}; {', '.join(done) or 'kept'}"


def dropped_rows(checked: Checked, heldout: bool) -> dict[str, int]:
    """Return the dropped rows of one side by their reason."""
    whole = checked.whole
    reasons = whole.dropped[whole.heldout == heldout]
    counts = np.bincount(reasons, minlength=len(whole.reasons) + 1)[1:]
    named = zip(whole.reasons, counts.tolist(), strict=True)
    return {reason: count for reason, count in named if count}

"""Run the checks of a configuration over rows on disk."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from training.config.checks import ChecksConfig
from training.data.checks import duplicates
from training.data.checks.check import Check, Hit
from training.data.checks.length import LengthLimit
from training.data.checks.minhash import find_common, shingles
from training.data.checks.repairs import config_of
from training.data.checks.scan import Part, Settings, scan_rows, workers
from training.data.checks.spool import Spool
from training.data.checks.table import BEFORE_SPLIT, CHECKS
from training.data.checks.texts import answer_columns, answers_text, prompt_text
from training.data.checks.whole import Whole, gather
from training.data.formats import row_place
from training.data.row import PARTS, Row
from training.data.split import choose_heldout, untied_prompts
from tuneline.core.errors import DataError
from tuneline.core.progress import logger, progress

NUM_EXAMPLES = 10
EXCERPT_LENGTH = 80
# Rows whose shingles say which of them are common to the whole file.
NUM_SAMPLED = 2_000


@dataclass(frozen=True)
class Split:
    """How rows are held out of a file; see `choose_heldout`."""

    fraction: float
    group_by: str | None = None
    stratify_by: str | None = None


@dataclass
class Result:
    """The findings of one check."""

    check: Check
    action: str
    num_dropped: int = 0
    num_changed: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    """Rows by kind of finding."""
    rows: list[int] = field(default_factory=list)
    """The rows with findings, by their indices in the spool."""
    examples: list[dict[str, Any]] = field(default_factory=list)

    @property
    def num_rows(self) -> int:
        """Return the number of rows with findings."""
        return len(self.rows)

    def as_json(self) -> dict[str, Any]:
        return {
            "check": self.check.name,
            "title": self.check.title,
            "action": self.action,
            "num_rows": self.num_rows,
            "num_dropped": self.num_dropped,
            "num_changed": self.num_changed,
            "kinds": dict(self.kinds),
            "examples": self.examples,
        }


@dataclass
class Checked:
    """Rows after their checks."""

    whole: Whole
    results: list[Result]

    def rows(self, heldout: bool) -> Iterator[Row]:
        """Return the kept rows of one side, as the checks changed them, in order."""
        kept = (self.whole.dropped == 0) & (self.whole.heldout == heldout)
        for index, row in enumerate(self.whole.spool.read_all()):
            if kept[index]:
                yield self.whole.repaired(index, row)


def check_rows(
    spool: Spool,
    checks: ChecksConfig,
    *,
    seed: int = 0,
    split: Split | None = None,
    limit: LengthLimit | None = None,
) -> Checked:
    """Apply the checks in the order of the table, and hold rows out.

    Args:
        spool: The rows; those of a held-out file are marked.
        seed: Chooses which prompts `split` holds out.
        split: How rows are held out; None for rows that are marked, or for one file.
        limit: The tokenizer and the most tokens of a row; None without a base model.

    Raises:
        DataError: A row has no column that `split` names.
    """
    settings = Settings(
        checks, _common_shingles(spool), seed,
        split.group_by if split else None, split.stratify_by if split else None, limit,
    )  # fmt: skip
    with workers(spool, settings) as run:
        whole = gather(spool, settings, _shown(scan_rows(spool, run), len(spool)), run)
        _require_columns(whole, settings)
        checked = Checked(whole, [])
        for check in CHECKS:
            if split is not None and check not in BEFORE_SPLIT and not whole.heldout.any():
                _hold_out(whole, split)
            config = config_of(check, checks, limit)
            if config is not None and config.action != "ignore":
                _apply(check, config, checked)
    return checked


def _shown(parts: Iterable[Part], num_rows: int) -> Iterator[Part]:
    """Return the parts of a scan, and show how many rows they have."""
    done = 0
    with progress("checking rows", num_rows, "rows") as advance:
        for part in parts:
            done += len(part.keys)
            advance(done)
            yield part


def _common_shingles(spool: Spool) -> Any:
    step = max(len(spool) // NUM_SAMPLED, 1)
    rows = [spool.read(index) for index in range(0, len(spool), step)]
    return find_common([shingles(f"{prompt_text(row)}\n{answers_text(row)}") for row in rows])


def _hold_out(whole: Whole, split: Split) -> None:
    kept = whole.kept()
    prompts, groups = whole.prompt[kept], whole.group[kept] if split.group_by else None
    if groups is not None:
        untied = untied_prompts(prompts, groups)
        if num_shared := len(np.unique(prompts[untied != prompts])):
            logger.info(
                "  %d prompts are in several groups by %r and would tie most of them together; "
                "training rows with a prompt that is held out are leaks",
                num_shared, split.group_by,
            )  # fmt: skip
        prompts = untied
    whole.heldout[kept] = choose_heldout(
        prompts,
        split.fraction,
        groups=groups,
        strata=whole.stratum[kept] if split.stratify_by else None,
    )
    # A dropped duplicate votes on the side of its original.
    whole.votes_heldout = whole.heldout | np.isin(whole.content, whole.content[whole.heldout])


def _apply(check: Check, config: Any, checked: Checked) -> None:
    """Add the result of a check. If its action is `fix`, drop the rows that it did not change."""
    whole, result = checked.whole, Result(check, config.action)
    checked.results.append(result)
    hits = _row_hits(check, whole) if check.compare is None else check.compare(whole, config)
    fixed: set[int] = set()
    for hit in hits:
        result.rows.append(hit.row)
        result.kinds[hit.kind] += 1
        if len(result.examples) < NUM_EXAMPLES:
            result.examples += _examples(hit, check, config, checked)[
                : NUM_EXAMPLES - len(result.examples)
            ]
        if config.action == "fix" and hit.fixed:
            fixed.add(hit.row)
    # A row may have findings of several kinds.
    result.rows = sorted(set(result.rows))
    whole.reasons.append(check.reason)
    changed = fixed & set(whole.changed.get(check.name, np.zeros(0)).tolist())
    result.num_changed = len(changed)
    result.num_dropped = len(fixed) - len(changed)
    dropped = sorted(fixed - changed)
    whole.dropped[dropped] = len(whole.reasons)
    whole.votes[dropped] = check is duplicates.CHECK


def _flagged(check: Check, whole: Whole) -> dict[str, list[int]]:
    """Return the kept rows with findings of a check of single rows, by kind."""
    found = whole.flagged.get(check.name, {})
    return {kind: rows[whole.dropped[rows] == 0].tolist() for kind, rows in found.items()}


def _row_hits(check: Check, whole: Whole) -> Iterable[Hit]:
    for kind, rows in sorted(_flagged(check, whole).items()):
        for row in rows:
            yield Hit(row, kind)


def _examples(hit: Hit, check: Check, config: Any, checked: Checked) -> list[dict[str, Any]]:
    """Return a finding as it is shown: file, row, column, kind and a masked excerpt."""
    whole, place = checked.whole, _place(hit.row, checked)
    if hit.other is not None or check.find is None:
        row = whole.read(hit.row)
        column, text = ("prompt", prompt_text(row)) if row.text is None else ("text", row.text)
        if check.of_answers and row.completion:
            column, text = next(answer_columns(row), (column, text))
        shown = hit.detail or _excerpt(whole, text)
        example = {**place, "column": column, "kind": hit.kind, "excerpt": shown}
        return [
            example | ({"other": whole.spool.place(hit.other)} if hit.other is not None else {})
        ]
    row = whole.read(hit.row, until=check)
    return [
        {
            **place,
            "column": found.column,
            "kind": found.kind,
            "excerpt": _excerpt(whole, found.excerpt, from_end=found.from_end),
        }
        for found in check.find(row, config)
        if found.kind == hit.kind
    ][:1]


def _place(index: int, checked: Checked) -> dict[str, Any]:
    spool = checked.whole.spool
    return {"file": spool.file_names[spool.files[index]], "line": spool.lines[index]}


def _excerpt(whole: Whole, text: str, *, from_end: bool = False) -> str:
    """Return the beginning or the end of a text without personal data."""
    # A cut before would leave a part of a number, which no pattern knows.
    shown = whole.masked(text)
    if len(shown) <= EXCERPT_LENGTH:
        return shown
    kept = EXCERPT_LENGTH - 1
    return "…" + shown[-kept:] if from_end else shown[:kept] + "…"


def _require_columns(whole: Whole, settings: Settings) -> None:
    """Raise a DataError if rows have no column by which the split groups or stratifies."""
    for key, name in (("group_by", settings.group_by), ("stratify_by", settings.stratify_by)):
        for rows in whole.flagged.pop(key, {}).values():
            found = ", ".join([*whole.spool.read(int(rows[0])).fields, *PARTS])
            raise DataError(
                f"{whole.spool.place(int(rows[0]))}: column {name!r} is missing; expected it in "
                f"every row, since data.{key} names it ({len(rows):,} rows have none)",
                hint=f"Try: one of {found}.",
            )


def require_accepted(checked: Checked) -> None:
    """Check that no check with the action `refuse` has findings.

    Raises:
        DataError: Checks have findings; the first of each are named, then their number.
    """
    problems, advice = [], []
    for result in checked.results:
        if result.action != "refuse" or not result.num_rows:
            continue
        for example in result.examples:
            other = f" ({example['other']})" if "other" in example else ""
            problems.append(
                f"{row_place(example['file'], example['line'])}: {example['column']}: "
                f"{example['kind']}{other}: {example['excerpt']}"
            )
        more = result.num_rows - len(result.examples)
        if more > 0:
            problems.append(f"… and {more:,} more rows: {result.check.title}")
        advice.append(result.check.advice)
    if problems:
        raise DataError(problems, hint="\n  ".join(advice))

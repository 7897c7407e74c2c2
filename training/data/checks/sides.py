"""Both sides of a dataset have rows: what to change if one has none."""

from __future__ import annotations

import numpy as np

from training.config import DataConfig
from training.data.checks.report import dropped_rows
from training.data.checks.run import Checked
from training.data.split import count_units
from tuneline.core.errors import DataError


def require_both_sides(config: DataConfig, where: str, checked: Checked) -> None:
    """Check that there are rows to train on, and held-out rows. `where` names their files.

    Raises:
        DataError: One side has no row.
    """
    whole = checked.whole
    if config.heldout_fraction is not None and not whole.heldout.any() and len(whole.kept()):
        raise _not_split(config, checked, where)
    held = config.heldout_path or (f"split {config.heldout_split}" if config.heldout_split else "")
    for heldout, name in ((False, "training"), (True, "held-out")):
        if len(whole.kept(heldout)):
            continue
        reasons = dropped_rows(checked, heldout)
        if not heldout and held and set(reasons) <= {"exact duplicate", "prompt is held out"}:
            raise DataError(f"{where}: every prompt is also held out in {held}; none is left")
        place, number = held if heldout and held else where, len(whole.read_rows(heldout))
        if not number:
            raise DataError(f"{place}: has no {name} rows; expected at least one")
        listed = ", ".join(f"{count:,} {reason}" for reason, count in reasons.items())
        raise DataError(
            f"{place}: the checks drop all {number:,} {name} rows: {listed}; expected one row at "
            "least",
            hint="Try: more rows, or warn in place of fix for these checks in data.checks.",
        )


def _not_split(config: DataConfig, checked: Checked, where: str) -> DataError:
    """Return why no row can be held out."""
    whole = checked.whole
    kept = whole.kept()
    num_prompts = count_units(whole.prompt[kept])
    if num_prompts < 2:
        return DataError(
            f"{where}: has one distinct prompt; expected at least two, to hold one out",
            hint="Give more rows, or a second file as data.heldout_path.",
        )
    groups = whole.group[kept] if config.group_by else None
    if groups is not None and count_units(whole.prompt[kept], groups) < 2:
        return DataError(
            f"data.group_by: {config.group_by!r} ties all {num_prompts:,} prompts of {where} to "
            "one another; expected at least two groups, to hold one out",
            hint="Try: another column, or a second file as data.heldout_path.",
        )
    num_values = len(np.unique(whole.stratum[kept]))
    units = "prompt" if groups is None else "group"
    return DataError(
        f"data.stratify_by: each of the {num_values:,} values of {config.stratify_by!r} has one "
        f"{units}; expected a value with at least two, to hold one out",
        hint="Try: a column with fewer values.",
    )


def describe_share(config: DataConfig, checked: Checked) -> str | None:
    """Return why another share of the prompts is held out than asked for; None if it is near."""
    whole, wanted = checked.whole, config.heldout_fraction
    if wanted is None or (config.group_by is None and config.stratify_by is None):
        return None
    num_held = len(np.unique(whole.prompt[whole.kept(True)]))
    num_prompts = num_held + len(np.unique(whole.prompt[whole.kept(False)]))
    if wanted / 1.5 <= num_held / num_prompts <= wanted * 1.5:
        return None
    why = (
        f"each value of {config.stratify_by!r} has at least one"
        if config.stratify_by is not None
        else f"the groups by {config.group_by!r} are large"
    )
    return (
        f"{num_held:,} of {num_prompts:,} prompts are held out, and data.heldout_fraction is "
        f"{wanted:g}: {why}. Try: another column"
    )

"""The checks that change rows: they come first, so that every other check sees the changed rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from training.config.checks import ChecksConfig
from training.data.checks.check import Check
from training.data.checks.table import REPAIRING
from training.data.row import Row

if TYPE_CHECKING:
    from training.data.checks.length import LengthLimit


class Repaired(NamedTuple):
    """A row after the checks that change rows.

    Attributes:
        row: The row with all changes.
        kinds: The kinds of findings, by check.
        changed: The checks that changed the row.
        is_dropped: Whether a check with the action `fix` could not change the row.
    """

    row: Row
    kinds: dict[str, set[str]]
    changed: tuple[str, ...]
    is_dropped: bool


def config_of(check: Check, checks: ChecksConfig, limit: LengthLimit | None) -> Any:
    """Return the configuration of a check; None for lengths without a base model."""
    return limit if check.name == "length" else getattr(checks, check.name)


def repair_row(
    row: Row, checks: ChecksConfig, limit: LengthLimit | None, until: Check | None = None
) -> Repaired:
    """Apply the checks that change rows to one row.

    Each check sees the changes of those before it; `until` leaves out a check and all after it.
    """
    kinds: dict[str, set[str]] = {}
    changed: list[str] = []
    for check in REPAIRING:
        if check is until:
            break
        config = config_of(check, checks, limit)
        if config is None or config.action == "ignore":
            continue
        assert check.find is not None and check.repair is not None  # noqa: S101 (see REPAIRING)
        found = {entry.kind for entry in check.find(row, config)}
        if not found:
            continue
        kinds[check.name] = found
        if config.action == "fix":
            repaired = check.repair(row, config)
            if repaired is None:
                return Repaired(row, kinds, tuple(changed), is_dropped=True)
            row = repaired
            changed.append(check.name)
    return Repaired(row, kinds, tuple(changed), is_dropped=False)

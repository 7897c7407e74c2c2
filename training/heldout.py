"""The held-out rows that measurements and stages need, checked before anything is trained."""

from __future__ import annotations

from collections.abc import Sequence

from training.config import TrainingConfig
from training.config.checkpoints import EXACT_MATCH
from training.data.row import Row
from training.methods import find_method
from tuneline.core.errors import DataError


def require_heldout(config: TrainingConfig, rows: Sequence[Row], file: str) -> None:
    """Check that the method and its metric can be measured on held-out rows.

    Raises:
        DataError: They cannot.
    """
    find_method(config.method).check_heldout(rows, file)
    if config.metric_for_best_model == EXACT_MATCH:
        answered_rows(rows, file)


def answered_rows(rows: Sequence[Row], file: str) -> list[Row]:
    """Return the rows with a good answer.

    Raises:
        DataError: There are none.
    """
    answered = [row for row in rows if row.completion and row.label is not False]
    if not answered:
        alone = " Without an evaluation: tuneline train" if any(row.prompt for row in rows) else ""
        raise DataError(
            f"{file}: no row has an answer; expected rows with prompt and answer",
            hint="Try: data.heldout_path with rows that have a prompt and an answer, which the "
            f"evaluation compares with the model's own answers.{alone}",
        )
    return answered


def prompted_rows(rows: Sequence[Row], file: str) -> list[Row]:
    """Return the rows with a prompt; plain text has none.

    Raises:
        DataError: There are none.
    """
    prompted = [row for row in rows if row.prompt]
    if not prompted:
        raise DataError(
            f"{file}: no row has a prompt; expected rows with a prompt",
            hint="Try: data.heldout_path with rows that have a prompt.",
        )
    return prompted

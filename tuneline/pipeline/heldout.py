"""The held-out rows of a run: checks for its stages."""

from __future__ import annotations

from tuneline.core.artifact import Artifact
from tuneline.core.dataset import HELDOUT_FILE
from tuneline.pipeline.run_config import Run


def require_measured(run: Run, dataset: Artifact) -> None:
    """Check that the training can measure its held-out rows.

    Raises:
        DataError: It cannot.
    """
    from training import dataset_rows, require_heldout

    require_heldout(run.config.training, dataset_rows(dataset, HELDOUT_FILE), HELDOUT_FILE)


def require_compared(run: Run, dataset: Artifact) -> None:
    """Check that the held-out rows of the evaluation can be compared as the method asks.

    Raises:
        DataError: They cannot.
    """
    from training import dataset_rows, require_heldout

    rows = dataset_rows(dataset, HELDOUT_FILE, run.config.evaluation.num_rows)
    require_heldout(run.config.training, rows, HELDOUT_FILE)


def require_answers(run: Run, dataset: Artifact) -> None:
    """Check that a held-out row of the evaluation has an answer.

    Raises:
        DataError: None has.
    """
    from training import answered_rows, dataset_rows

    rows = dataset_rows(dataset, HELDOUT_FILE, run.config.evaluation.num_rows)
    answered_rows(rows, HELDOUT_FILE)


def require_prompts(_run: Run, dataset: Artifact) -> None:
    """Check that a held-out row has a prompt.

    Raises:
        DataError: None has.
    """
    from training import dataset_rows, prompted_rows

    prompted_rows(dataset_rows(dataset, HELDOUT_FILE), HELDOUT_FILE)

"""The held-out rows of a run: checks for its stages, and what its load test sends."""

from __future__ import annotations

from tuneline.core.artifact import Artifact
from tuneline.core.dataset import (
    HELDOUT_FILE,
    heldout_conversations,
    heldout_lists,
    heldout_prompts,
    heldout_queries,
)
from tuneline.core.messages import ChatPrompt
from tuneline.pipeline.run_config import Run, resolve_base


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


def load_prompts(run: Run, dataset: Artifact) -> list[ChatPrompt]:
    """Return what the run's load test sends: the held-out prompts, for a server of scores the
    conversations whose scores are asked, for one of vectors the queries, and for a reranker the
    queries with their passages.

    Raises:
        DataError: No row fits.
    """
    method = run.config.training.method
    if method.makes == "vectors":
        before = method.prompts(resolve_base(run, download=False).path)["query"]
        return heldout_queries(dataset, before)
    if method.makes == "relevance":
        return heldout_lists(dataset)
    return (heldout_conversations if run.config.serving.pools else heldout_prompts)(dataset)

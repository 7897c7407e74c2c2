"""A chat model: text, which the parity ladder proves."""

from __future__ import annotations

from tuneline.core.artifact import Artifact
from tuneline.core.dataset import heldout_prompts
from tuneline.core.endpoint import Endpoint
from tuneline.core.errors import VerdictError
from tuneline.core.progress import logger
from tuneline.models.source import computed_dtype
from tuneline.pipeline.products.product import NUM_PROMPTS, Product
from tuneline.pipeline.run_config import Run
from tuneline.pipeline.server import model_source
from tuneline.pipeline.stage import REFERENCE


def _compare(run: Run, model: Artifact, reference: Artifact, endpoint: Endpoint) -> None:
    """Compare answers with the reference.

    Raises:
        VerdictError: They differ by more than the run's tolerances.
    """
    from export import weight_tolerances
    from serving import compare_served

    metrics = reference.manifest.metrics
    if metrics.get("chat_template_date") and not metrics.get("chat_template_date_variable"):
        logger.warning("the chat template writes today's date; answers are not compared")
        return
    source = model_source(model)
    dtype = computed_dtype(run.config.serving.dtype, source)
    parity = compare_served(
        run.config.serving.parity,
        reference,
        endpoint,
        dtype=dtype,
        weights=weight_tolerances(source, dtype),
        num_prompts=NUM_PROMPTS,
    )
    if parity.problems:
        reasons = "\n".join(f"  {problem}" for problem in parity.problems)
        raise VerdictError(
            f"the answers of the server differ from the reference's "
            f"({parity.num_equal_answers} of {parity.num_prompts} are equal)\n{reasons}"
        )
    logger.info(
        "  %d of %d answers equal the reference's", parity.num_equal_answers, parity.num_prompts
    )


TEXT = Product(
    known_by=REFERENCE,
    load_prompts=lambda _run, dataset: heldout_prompts(dataset),
    compare=_compare,
)

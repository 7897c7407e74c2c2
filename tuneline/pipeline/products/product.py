"""A kind of model that training methods make, and how the line serves and proves it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from serving.config import ServingConfig
from tuneline.core.artifact import Artifact
from tuneline.core.artifact_kinds import KINDS
from tuneline.core.endpoint import Endpoint
from tuneline.core.errors import VerdictError
from tuneline.core.messages import ChatPrompt
from tuneline.core.progress import logger
from tuneline.core.verdict import Verdict
from tuneline.pipeline.products.routes import Routes
from tuneline.pipeline.run_config import Run, RunConfig
from tuneline.pipeline.server import model_source, served_formats
from tuneline.pipeline.stage import Stage

NUM_PROMPTS = 32
"""Prompts that a smoke test sends: few enough for seconds, and enough that one near tie in bfloat16
does not fail them."""

LoadPrompts = Callable[[Run, Artifact], list[ChatPrompt]]
"""Takes a run and its dataset; raises a DataError if no row fits."""
Compare = Callable[[Run, Artifact, Artifact, Endpoint], None]
"""Takes a run, its model, the artifact of `known_by` and a server; raises a VerdictError if the
answers of the server are not the trained model's."""
Found = Mapping[str, Any]
"""The figures of a proof, which are the metrics of its artifact."""


@dataclass(frozen=True)
class ServedProof:
    """The proof that the numbers of a server, scores or vectors, are the trained model's.

    Attributes:
        routes: The routes that serve the numbers.
        kind: The kind of its artifact, with the figures in the file `file`.
        prove: The function of the room `serving` that makes the artifact.
        compare: The function that compares some numbers and writes nothing.
        recheck: The function that judges a proof anew, and returns its problems.
        options: The options of `prove` and `compare` that the section `serving` decides.
        rows: The rows of the report's table.
        figures: For each figure of a release, its title and unit.
        version: The version of the stage.
    """

    routes: Routes
    kind: str
    file: str
    prove: Callable[..., Artifact]
    compare: Callable[..., tuple[dict[str, Any], Any]]
    recheck: Callable[[Artifact, Artifact], list[str]]
    options: Callable[[ServingConfig], dict[str, Any]]
    rows: Callable[[Found], list[tuple[str, str]]]
    figures: Mapping[str, tuple[str, str]]
    version: int = 1

    def differ(self, found: Found) -> str:
        """Return the largest difference in words."""
        return KINDS[self.kind].summary(found).partition(", ")[2]


@dataclass(frozen=True)
class Product:
    """A kind of model.

    Attributes:
        known_by: The stage whose artifact has answers of the trained model.
        load_prompts: The requests of its load test.
        compare: The smoke test of a deployed server.
        proof: The proof of its served answers; None for text, which the parity ladder proves.
        judged: Stages of its own that judge the trained model, with the model's label.
    """

    known_by: str
    load_prompts: LoadPrompts
    compare: Compare
    proof: ServedProof | None = None
    judged: Callable[[RunConfig, str], list[Stage]] = lambda _config, _label: []


def compare_numbers(
    proof: ServedProof, run: Run, model: Artifact, truth: Artifact, endpoint: Endpoint
) -> None:
    """Compare some scores or vectors of a server with those of the trained model.

    Raises:
        VerdictError: They differ by more than the number format explains.
    """
    serving, gives = run.config.serving, proof.routes.gives
    found, _ = proof.compare(
        serving.parity, truth, endpoint, num=NUM_PROMPTS,
        formats=served_formats(serving, model_source(model)), **proof.options(serving),
    )  # fmt: skip
    if found["verdict"] != Verdict.PASS:
        reasons = found.get("problems") or [
            f"{proof.differ(found)}; at most {found['limit']:g} is allowed"
        ]
        raise VerdictError(
            f"the {gives} of the server are not the trained model's: {'; '.join(reasons)}"
        )
    logger.info("  the %s are the trained model's: %s", gives, proof.differ(found))

"""Does a server give the vectors of the trained embedding model? Through the network, by texts.

The evaluation of an embedding model keeps some texts, and the vectors that the trained model, base
and adapter apart, gives to each. The server is asked for the vectors of the same texts.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from serving.config import ServedParityConfig
from serving.vectors import MAX_DIFFERENCE, ask_all, cosine_of, read_answer, route_url
from tuneline.core.artifact import Artifact, Input, new_artifact, open_artifact
from tuneline.core.endpoint import Endpoint
from tuneline.core.errors import ArtifactError
from tuneline.core.openai_client import openai_client
from tuneline.core.progress import logger

KIND = "trained-vector-parity"
VECTORS_FILE = "vectors.json"
TRAINED_FILE = "vectors.jsonl"
"""The texts and vectors in an evaluation."""


def prove_trained_vectors(
    config: ServedParityConfig,
    evaluation: Artifact,
    endpoint: Endpoint,
    out: Path,
    *,
    route: str,
    formats: Sequence[str],
    inputs: Sequence[Input] = (),
) -> Artifact:
    """Compare a server's vectors of texts with those of the trained embedding model.

    Args:
        evaluation: The evaluation of the embedding model.
        route: `v1/embeddings` or `pooling`, which the server has open.
        formats: The number formats of the served weights and of the server's arithmetic.
        inputs: The served artifacts, for the manifest.

    Returns:
        An artifact of kind `trained-vector-parity` with `vectors.json`; a failed verdict raises
        nothing.

    Raises:
        ArtifactError: The evaluation has no vectors.
        MissingError: The openai package is not installed.
        ServerError: The server cannot be reached, or gives no vectors.
    """
    report, found = compare_trained_vectors(
        config, evaluation, endpoint, route=route, formats=formats
    )
    logger.info(
        "served vectors: %s: they differ by at most %.2g of their length (limit %g)",
        report["verdict"], report["max_relative_difference"], report["limit"],
    )  # fmt: skip
    settings = {"model": endpoint.model, "concurrency": config.concurrency}
    inputs = [evaluation.as_input("evaluation"), *inputs]
    with new_artifact(out, KIND, config=settings, inputs=inputs) as draft:
        text = json.dumps({**report, "vectors": found}) + "\n"
        (draft.dir / VECTORS_FILE).write_text(text, encoding="utf-8")
        draft.metrics.update(report)
    return open_artifact(out, kind=KIND)


def compare_trained_vectors(
    config: ServedParityConfig,
    evaluation: Artifact,
    endpoint: Endpoint,
    *,
    route: str,
    formats: Sequence[str],
    num: int | None = None,
) -> tuple[dict[str, Any], list[list[float]]]:
    """Return the figures of a server's vectors, next to the trained model's, and the vectors.

    Args:
        num: Ask for the vectors of the first texts only; None asks for all.

    Raises:
        ArtifactError: The evaluation has no vectors.
        MissingError: The openai package is not installed.
        ServerError: The server cannot be reached, or gives no vectors.
    """
    texts, expected = _read_vectors(evaluation)
    texts, expected = texts[:num], expected[:num]
    url = route_url(endpoint, route)
    with openai_client(endpoint, timeout_s=config.request_timeout_s) as client:

        def vector(text: str) -> list[float]:
            body = {"model": endpoint.model, "input": text, "encoding_format": "float"}
            found, _ = read_answer(client.post(url, cast_to=object, body=body), url)
            return found

        found = ask_all(vector, texts, config.concurrency, "served vectors")
    limit = max(MAX_DIFFERENCE[one] for one in {*formats, evaluation.manifest.metrics["dtype"]})
    return compare_with_trained(expected, found, limit), found


def recheck_trained_vectors(proof: Artifact, evaluation: Artifact) -> list[str]:
    """Return why the vectors of a proof are not those of the evaluation; empty if they are.

    Every figure is computed again from the recorded vectors, and the limit is one of the table.

    Raises:
        ArtifactError: The evaluation or the proof does not hold vectors.
    """
    path = proof.path / VECTORS_FILE
    try:
        stated: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        found = [[float(value) for value in vector] for vector in stated.pop("vectors")]
        limit = float(stated["limit"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise ArtifactError(f"{path}: does not hold the vectors of a served model") from None
    _, expected = _read_vectors(evaluation)
    if len(found) != len(expected):
        return [f"the server gave {len(found)} vectors; expected {len(expected)}"]
    problems = []
    if limit not in MAX_DIFFERENCE.values():
        problems.append(f"its limit is {limit:g}; expected one of the number formats")
    own = compare_with_trained(expected, found, limit)
    problems += own["problems"]
    if stated != own:
        problems.append("its figures contradict its vectors")
    return problems


def compare_with_trained(
    expected: Sequence[Sequence[float]], found: Sequence[Sequence[float]], limit: float
) -> dict[str, Any]:
    """Return the figures of two lists of vectors, text by text, the verdict, and why it is FAIL."""
    dimensions = len(expected[0])
    sizes = {len(vector) for vector in found} - {dimensions}
    problems, largest, least = [], None, None
    if sizes:
        problems.append(f"a vector has {min(sizes)} dimensions; expected {dimensions}")
    elif not all(math.isfinite(value) for vector in found for value in vector):
        problems.append("a vector has a value that is not a number")
    else:
        pairs = list(zip(expected, found, strict=True))
        largest = max(math.dist(own, served) / (math.hypot(*own) or 1.0) for own, served in pairs)
        least = min(cosine_of(own, served) for own, served in pairs)
        if largest > limit:
            problems.append(
                f"vectors differ by up to {largest:.2g} of their length; at most {limit:g} is "
                "allowed"
            )
    return {
        "num_texts": len(expected),
        "dimensions": dimensions,
        "min_cosine": least,
        "max_relative_difference": largest,
        "limit": limit,
        "problems": problems,
        "verdict": "FAIL" if problems else "PASS",
    }


def _read_vectors(evaluation: Artifact) -> tuple[list[str], list[list[float]]]:
    """Return the texts of an evaluation and the trained model's vectors."""
    path = evaluation.path / TRAINED_FILE
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
        vectors = [[float(value) for value in row["vector"]] for row in rows]
        texts = [str(row["text"]) for row in rows]
    except (OSError, ValueError, KeyError, TypeError):
        rows, vectors, texts = [], [], []
    if not rows or not vectors[0]:
        raise ArtifactError(f"{path}: has no vectors; expected an evaluation of an embedding model")
    return texts, vectors

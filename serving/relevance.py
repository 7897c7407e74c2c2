"""Does a server give the scores of the trained reranker? Through the network, by texts.

The evaluation of a reranker keeps lists of passages, the token ids of each pair, and the score that
the trained model, base and adapter apart, gives to each. The server is asked for the scores of the
same texts before the sigmoid, and for their order, as clients ask. The count of its tokens shows
whether it reads the pairs as training did.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from serving.config import ServedParityConfig
from serving.rewards import MAX_DIFFERENCE
from serving.vectors import ask_all, no_answer, route_url
from tuneline.core.artifact import Artifact, Input, new_artifact, open_artifact
from tuneline.core.endpoint import Endpoint
from tuneline.core.errors import ArtifactError
from tuneline.core.openai_client import openai_client
from tuneline.core.progress import logger

KIND = "relevance-parity"
RELEVANCE_FILE = "relevance.json"
TRAINED_FILE = "scores.jsonl"
"""The lists of passages, with their scores, in an evaluation."""
SLOPE = 0.25
"""By how much a sigmoid changes at most, as a share of the change of its argument."""
ROUNDING = 1e-6
"""The rounding of a sigmoid in float32, with room."""

Served = dict[str, Any]
"""A server's answers to a list: `num_tokens`, `scores` before the sigmoid, and `relevance`, the
scores of the route that reranks, in the order of the passages."""


def prove_relevance(
    config: ServedParityConfig,
    evaluation: Artifact,
    endpoint: Endpoint,
    out: Path,
    *,
    formats: Sequence[str],
    inputs: Sequence[Input] = (),
) -> Artifact:
    """Compare a server's scores of queries with passages with those of the trained reranker.

    Args:
        evaluation: The evaluation of the reranker.
        formats: The number formats of the served weights and of the server's arithmetic.
        inputs: The served artifacts, for the manifest.

    Returns:
        An artifact of kind `relevance-parity` with `relevance.json`; a failed verdict raises
        nothing.

    Raises:
        ArtifactError: The evaluation has no scores.
        MissingError: The openai package is not installed.
        ServerError: The server cannot be reached, or gives no scores.
    """
    report, found = compare_served_relevance(config, evaluation, endpoint, formats=formats)
    logger.info(
        "served scores: %s: they differ by at most %.2g standard deviations (limit %g)",
        report["verdict"], report["max_relative_difference"], report["limit"],
    )  # fmt: skip
    settings = {"model": endpoint.model, "concurrency": config.concurrency}
    inputs = [evaluation.as_input("evaluation"), *inputs]
    with new_artifact(out, KIND, config=settings, inputs=inputs) as draft:
        text = json.dumps({**report, "served": found}) + "\n"
        (draft.dir / RELEVANCE_FILE).write_text(text, encoding="utf-8")
        draft.metrics.update(report)
    return open_artifact(out, kind=KIND)


def compare_served_relevance(
    config: ServedParityConfig,
    evaluation: Artifact,
    endpoint: Endpoint,
    *,
    formats: Sequence[str],
    num: int | None = None,
) -> tuple[dict[str, Any], list[Served]]:
    """Return the figures of a server's scores, next to the trained model's, and its answers.

    Args:
        num: Ask for the first lists only; None asks for all.

    Raises:
        ArtifactError: The evaluation has no scores.
        MissingError: The openai package is not installed.
        ServerError: The server cannot be reached, or gives no scores.
    """
    lists = _read_lists(evaluation)
    spread = _spread(lists)
    lists = lists[:num]
    score_url, rerank_url = (route_url(endpoint, route) for route in ("score", "rerank"))
    with openai_client(endpoint, timeout_s=config.request_timeout_s) as client:

        def ask(one: dict[str, Any]) -> Served:
            about = {"model": endpoint.model, "documents": one["passages"]}
            body = {**about, "queries": one["query"], "use_activation": False}
            tokens, scores = _scores_of(client.post(score_url, cast_to=object, body=body),
                                        len(one["passages"]), score_url)  # fmt: skip
            body = {**about, "query": one["query"]}
            answer = client.post(rerank_url, cast_to=object, body=body)
            relevance = _relevance_of(answer, len(one["passages"]), rerank_url)
            return {"num_tokens": tokens, "scores": scores, "relevance": relevance}

        found = ask_all(ask, lists, config.concurrency, "served scores")
    limit = max(MAX_DIFFERENCE[one] for one in {*formats, evaluation.manifest.metrics["dtype"]})
    return compare_relevance(lists, found, limit, spread), found


def recheck_relevance(proof: Artifact, evaluation: Artifact) -> list[str]:
    """Return why the scores of a proof are not those of the evaluation; empty if they are.

    Every figure is computed again from the recorded answers, and the limit is one of the table.

    Raises:
        ArtifactError: The evaluation or the proof does not hold scores.
    """
    path = proof.path / RELEVANCE_FILE
    lists = _read_lists(evaluation)
    try:
        stated: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        found, limit = list(stated.pop("served")), float(stated["limit"])
        if len(found) != len(lists):
            return [f"the server scored {len(found)} lists; expected {len(lists)}"]
        own = compare_relevance(lists, found, limit)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise ArtifactError(f"{path}: does not hold the scores of a served reranker") from None
    problems = []
    if limit not in MAX_DIFFERENCE.values():
        problems.append(f"its limit is {limit:g}; expected one of the number formats")
    problems += own["problems"]
    if stated != own:
        problems.append("its figures contradict its scores")
    return problems


def compare_relevance(
    lists: Sequence[dict[str, Any]],
    found: Sequence[Served],
    limit: float,
    spread: float | None = None,
) -> dict[str, Any]:
    """Return the figures of a server's answers, list by list, the verdict, and why it is FAIL.

    Args:
        lists: The lists of an evaluation.
        spread: The standard deviation of all scores, if `lists` is a part of them.

    Raises:
        ValueError: An answer has another number of passages.
    """
    spread = spread or _spread(lists)
    problems, largest, shift, same = [], 0.0, 0.0, 0
    for one, served in zip(lists, found, strict=True):
        same += served["num_tokens"] == sum(map(len, one["token_ids"]))
        for own, score, relevance in zip(
            one["scores"], served["scores"], served["relevance"], strict=True
        ):
            largest = _worse(largest, abs(own - score))
            shift = _worse(shift, abs(_sigmoid(own) - relevance))
    relative = largest / spread
    if same != len(lists):
        problems.append(
            f"the server counts other tokens in {len(lists) - same} of {len(lists)} lists: it does "
            "not read the pairs as training did"
        )
    if not relative <= limit:
        problems.append(
            f"scores differ by up to {relative:.2g} standard deviations; at most {limit:g} is "
            "allowed"
        )
    if not shift <= limit * spread * SLOPE + ROUNDING:
        problems.append(
            f"the scores of /rerank differ by up to {shift:.2g} from the sigmoid of the trained "
            f"ones; at most {limit * spread * SLOPE + ROUNDING:.2g} is allowed"
        )
    return {
        "num_lists": len(lists),
        "num_pairs": sum(len(one["scores"]) for one in lists),
        "num_equal_token_counts": same,
        "standard_deviation": spread,
        "max_difference": largest,
        "max_relative_difference": relative,
        "limit": limit,
        "problems": problems,
        "verdict": "FAIL" if problems else "PASS",
    }


def _worse(largest: float, found: float) -> float:
    """Return the larger difference; no comparison with NaN is true, and a maximum would lose it."""
    return max(largest, found) if math.isfinite(found) else math.inf


def _sigmoid(value: float) -> float:
    positive = 1 / (1 + math.exp(-abs(value)))
    return positive if value >= 0 else 1 - positive


def _spread(lists: Sequence[dict[str, Any]]) -> float:
    return statistics.pstdev([score for one in lists for score in one["scores"]]) or 1.0


def _read_lists(evaluation: Artifact) -> list[dict[str, Any]]:
    """Return the lists of an evaluation: query, passages, token ids and scores."""
    path = evaluation.path / TRAINED_FILE
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
        lists: list[dict[str, Any]] = [json.loads(line) for line in lines if line]
        fits = all(
            len(one["passages"]) == len(one["token_ids"]) == len(one["scores"]) > 0
            and all(math.isfinite(score) for score in one["scores"])
            and isinstance(one["query"], str)
            for one in lists
        )
    except (OSError, ValueError, KeyError, TypeError):
        lists, fits = [], False
    if not lists or not fits:
        raise ArtifactError(f"{path}: has no scores; expected an evaluation of a reranker")
    return lists


def _scores_of(answer: Any, number: int, url: str) -> tuple[int, list[float]]:
    """Return the tokens and the scores in an answer of `/score`."""
    try:
        entries = sorted(answer["data"], key=lambda entry: int(entry["index"]))
        if [entry["index"] for entry in entries] != list(range(number)):
            raise ValueError("other passages")
        scores = [float(entry["score"]) for entry in entries]
        if not all(map(math.isfinite, scores)):
            raise ValueError("a score is not finite")
        return int(answer["usage"]["prompt_tokens"]), scores
    except (KeyError, TypeError, ValueError):
        raise no_answer("score of a reranker", answer, url) from None


def _relevance_of(answer: Any, number: int, url: str) -> list[float]:
    """Return the scores in an answer of `/rerank`, in the order of the passages.

    The answer names the best passage first.
    """
    try:
        entries = answer["results"]
        scores = {int(entry["index"]): float(entry["relevance_score"]) for entry in entries}
        ordered = [float(entry["relevance_score"]) for entry in entries]
        if sorted(scores) != list(range(number)) or ordered != sorted(ordered, reverse=True):
            raise ValueError("other passages, or another order")
        return [scores[at] for at in range(number)]
    except (KeyError, TypeError, ValueError):
        raise no_answer("order of a reranker", answer, url) from None

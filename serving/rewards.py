"""Does a server give the scores of the trained reward model? Through the network, by token ids.

The evaluation of a reward model keeps the token ids of each pair of held-out answers and the score
that the trained model, base and adapter apart, gives to each. The server is asked for the scores of
the same ids.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from serving.config import ServedParityConfig
from serving.vectors import ask_all, no_answer, route_url
from tuneline.core.artifact import Artifact, Input, new_artifact, open_artifact
from tuneline.core.endpoint import Endpoint
from tuneline.core.errors import ArtifactError
from tuneline.core.openai_client import openai_client
from tuneline.core.progress import logger

REWARDS_FILE = "rewards.json"
MAX_DIFFERENCE = {"float32": 2e-3, "float16": 2e-2, "bfloat16": 1e-1}
"""Largest difference of a score, in standard deviations of all scores, by the coarsest number
format on the way; docs/parity.md gives the measurements."""


def prove_rewards(
    config: ServedParityConfig,
    preferences: Artifact,
    endpoint: Endpoint,
    out: Path,
    *,
    route: str,
    formats: Sequence[str],
    inputs: Sequence[Input] = (),
) -> Artifact:
    """Compare a server's scores of held-out answers with those of the trained reward model.

    Args:
        preferences: The evaluation of the reward model.
        route: `pooling` or `classify`, which the server has open.
        formats: The number formats of the served weights and of the server's arithmetic.
        inputs: The served artifacts, for the manifest.

    Returns:
        An artifact of kind `reward-parity` with `rewards.json`; a failed verdict raises nothing.

    Raises:
        ArtifactError: The evaluation has no token ids.
        MissingError: The openai package is not installed.
        ServerError: The server cannot be reached, or gives no scores.
    """
    report, found = compare_served_rewards(
        config, preferences, endpoint, route=route, formats=formats
    )
    logger.info(
        "served rewards: %s: scores differ by at most %.2g, %.2g standard deviations (limit %g)",
        report["verdict"], report["max_difference"], report["max_relative_difference"],
        report["limit"],
    )  # fmt: skip
    settings = {"model": endpoint.model, "concurrency": config.concurrency}
    inputs = [preferences.as_input("preferences"), *inputs]
    with new_artifact(out, "reward-parity", config=settings, inputs=inputs) as draft:
        text = json.dumps({**report, "rewards": found}, indent=2) + "\n"
        (draft.dir / REWARDS_FILE).write_text(text, encoding="utf-8")
        draft.metrics.update(report)
    return open_artifact(out, kind="reward-parity")


def compare_served_rewards(
    config: ServedParityConfig,
    preferences: Artifact,
    endpoint: Endpoint,
    *,
    route: str,
    formats: Sequence[str],
    num: int | None = None,
) -> tuple[dict[str, Any], list[float]]:
    """Return the figures of a server's scores, next to the trained model's, and the scores.

    Args:
        num: Ask for the scores of the first answers only, in pairs; None asks for all.

    Raises:
        ArtifactError: The evaluation has no token ids.
        MissingError: The openai package is not installed.
        ServerError: The server cannot be reached, or gives no scores.
    """
    expected, sequences = _read_scores(preferences)
    spread = _spread(expected)
    expected, sequences = expected[:num], sequences[:num]
    url = route_url(endpoint, route)
    with openai_client(endpoint, timeout_s=config.request_timeout_s) as client:

        def score(token_ids: list[int]) -> float:
            body = {"model": endpoint.model, "input": [token_ids], "use_activation": False}
            return _score_of(client.post(url, cast_to=object, body=body), url)

        found = ask_all(score, sequences, config.concurrency, "served rewards")
    limit = max(MAX_DIFFERENCE[one] for one in {*formats, preferences.manifest.metrics["dtype"]})
    return compare_rewards(expected, found, limit, spread), found


def recheck_rewards(proof: Artifact, preferences: Artifact) -> list[str]:
    """Return why the scores of a proof are not those of the evaluation; empty if they are.

    Every figure is computed again from the recorded scores, and the limit is one of the table.

    Raises:
        ArtifactError: The evaluation has no token ids, or the proof does not hold scores.
    """
    path = proof.path / REWARDS_FILE
    try:
        stated: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        found, limit = [float(one) for one in stated.pop("rewards")], float(stated["limit"])
        if not all(map(math.isfinite, found)):
            raise ValueError("a score is not finite")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise ArtifactError(f"{path}: does not hold the scores of a served model") from None
    expected, _ = _read_scores(preferences)
    if len(found) != len(expected):
        return [f"the server scored {len(found)} answers; expected {len(expected)}"]
    problems = []
    if limit not in MAX_DIFFERENCE.values():
        problems.append(f"its limit is {limit:g}; expected one of the number formats")
    own = compare_rewards(expected, found, limit)
    if own["verdict"] != "PASS":
        problems.append(
            f"scores differ by {own['max_relative_difference']:.2g} standard deviations; at most "
            f"{limit:g} is allowed"
        )
    if stated != own:
        problems.append("its figures contradict its scores")
    return problems


def compare_rewards(
    expected: Sequence[float], found: Sequence[float], limit: float, spread: float | None = None
) -> dict[str, Any]:
    """Return the figures of two lists of scores, pair by pair, and the verdict.

    Args:
        spread: The standard deviation of all scores, if `expected` is a part of them.
    """
    spread = spread or _spread(expected)
    largest = max(abs(a - b) for a, b in zip(expected, found, strict=True))
    return {
        "num_pairs": len(expected) // 2,
        "num_equal_orders": sum(
            (expected[at] > expected[at + 1]) == (found[at] > found[at + 1])
            for at in range(0, len(expected), 2)
        ),
        "standard_deviation": spread,
        "max_difference": largest,
        "max_relative_difference": largest / spread,
        "limit": limit,
        "verdict": "PASS" if largest / spread <= limit else "FAIL",
    }


def _spread(scores: Sequence[float]) -> float:
    return statistics.pstdev(scores) or 1.0


def _read_scores(preferences: Artifact) -> tuple[list[float], list[list[int]]]:
    """Return the scores and the token ids of all answers, the better one of each pair first."""
    path = preferences.path / "preferences.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    if not rows or any("token_ids" not in row for row in rows):
        raise ArtifactError(f"{path}: has no token ids; expected an evaluation of a reward model")
    return (
        [reward for row in rows for reward in row["rewards"]],
        [ids for row in rows for ids in row["token_ids"]],
    )


def _score_of(answer: Any, url: str) -> float:
    try:
        (entry,) = answer["data"]
        (value,) = map(float, entry["data" if "data" in entry else "probs"])
    except (KeyError, TypeError, ValueError):
        raise no_answer("score of a reward model", answer, url) from None
    # No comparison with NaN is true, so it would be lost in a maximum.
    if not math.isfinite(value):
        raise no_answer("finite score", answer, url)
    return value

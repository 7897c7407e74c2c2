"""Negative log-likelihood of the expected answers, in nats per token, and perplexity."""

from __future__ import annotations

import math
from collections.abc import Sequence

from training.config import EvaluationConfig
from training.evaluation.metrics.metric import Scored
from training.evaluation.prediction import Prediction


def score_nats(predictions: Sequence[Prediction], _config: EvaluationConfig) -> Scored:
    """Return each expected answer's nats per token, the stop token included.

    The details have the mean over all tokens, `nats_per_token`, and its exponential, `perplexity`.
    """
    values: list[float | None] = [
        p.nats / p.num_answer_tokens if p.nats is not None and p.num_answer_tokens else None
        for p in predictions
    ]
    num_tokens = sum(p.num_answer_tokens or 0 for p in predictions if p.nats is not None)
    if not num_tokens:
        return Scored(values)
    mean = math.fsum(p.nats for p in predictions if p.nats is not None) / num_tokens
    perplexity = math.exp(mean) if mean < 700 else None  # beyond the largest float
    return Scored(
        values, {"nats_per_token": mean, "perplexity": perplexity, "num_tokens": num_tokens}
    )

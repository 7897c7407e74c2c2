"""How much a form may differ from the reference, by its weights and by a server's arithmetic.

docs/parity.md gives the measurements behind the numbers.
"""

from __future__ import annotations

from tuneline.core.config import StrictModel
from tuneline.core.errors import ArtifactError


class Tolerances(StrictModel):
    """Limits on the differences between a form and the reference.

    None leaves a figure unjudged; the report shows it all the same.
    """

    min_greedy_agreement: float | None = 1.0
    """Smallest share of prompts whose whole greedy answer equals the reference's."""
    min_token_agreement: float | None = 0.5
    """Smallest share of the reference's tokens that come before the answer's first divergence."""
    max_logprob_difference: float | None = 0.05
    """Largest difference of any compared token's log-probability, in nats."""
    mean_logprob_difference: float | None = 0.005
    """Largest mean absolute difference over all compared tokens, in nats."""
    mean_kl: float | None = None
    """Largest mean Kullback-Leibler divergence from the reference, in nats."""
    max_accuracy_drop: float | None = None
    """Largest drop of the share of right answers below the reference's; judged if the reference
    holds expected answers."""


MAX_NATS = 20.0
"""No difference of models comes near: a vocabulary of 256,000 tokens has a guess of 12 nats."""

_FLOAT32 = Tolerances(
    min_greedy_agreement=1.0,
    min_token_agreement=1.0,
    max_logprob_difference=1e-3,
    mean_logprob_difference=1e-4,
)

WEIGHT_TOLERANCES = {
    "float32": _FLOAT32,
    "float16": Tolerances(
        min_greedy_agreement=0.99,
        min_token_agreement=0.98,
        max_logprob_difference=0.01,
        mean_logprob_difference=0.001,
    ),
    "bfloat16": Tolerances(
        min_greedy_agreement=0.95,
        min_token_agreement=0.9,
        max_logprob_difference=0.05,
        mean_logprob_difference=0.005,
    ),
    "int8": Tolerances(
        min_greedy_agreement=0.95,
        min_token_agreement=0.9,
        max_logprob_difference=0.15,
        mean_logprob_difference=0.005,
        mean_kl=2e-4,
        max_accuracy_drop=0.05,
    ),
    "fp8": Tolerances(
        min_greedy_agreement=0.95,
        min_token_agreement=0.9,
        max_logprob_difference=0.45,
        mean_logprob_difference=0.005,
        mean_kl=2.5e-4,
        max_accuracy_drop=0.05,
    ),
    "int4": Tolerances(
        min_greedy_agreement=0.85,
        min_token_agreement=0.7,
        max_logprob_difference=1.5,
        mean_logprob_difference=0.02,
        mean_kl=5e-3,
        max_accuracy_drop=0.05,
    ),
    "pruned": Tolerances(
        min_greedy_agreement=None,
        min_token_agreement=0.7,
        max_logprob_difference=None,
        mean_logprob_difference=None,
        mean_kl=0.02,
        max_accuracy_drop=0.05,
    ),
}
"""By the number format of a form's weights; the form computes in float32."""

ARITHMETIC_TOLERANCES = {
    "float32": _FLOAT32,
    "float16": Tolerances(
        min_greedy_agreement=0.95,
        min_token_agreement=0.9,
        max_logprob_difference=0.03,
        mean_logprob_difference=8e-4,
        mean_kl=4e-6,
        max_accuracy_drop=0.05,
    ),
    "bfloat16": Tolerances(
        min_greedy_agreement=0.90,
        min_token_agreement=0.8,
        max_logprob_difference=0.5,
        mean_logprob_difference=0.008,
        mean_kl=7e-4,
        max_accuracy_drop=0.05,
    ),
}
"""By the number format that a server computes in."""


def tolerances_of_weights(weights: str) -> Tolerances:
    """Return the tolerances of a form by the number format of its weights.

    Raises:
        ArtifactError: The table has no such format.
    """
    if weights not in WEIGHT_TOLERANCES:
        raise ArtifactError(
            f"the weights are {weights}, which has no tolerances; expected "
            f"{', '.join(WEIGHT_TOLERANCES)}",
            hint="Try: prove the model that it was quantized from.",
        )
    return WEIGHT_TOLERANCES[weights]


def said_limits(tolerances: Tolerances) -> str:
    """Return the limits that a form can miss, in words; empty if there is none.

    A share of 0 and a difference of more than MAX_NATS exclude nothing.
    """
    found = []
    for name, what in (("min_greedy_agreement", "answers"), ("min_token_agreement", "tokens")):
        share = getattr(tolerances, name)
        if share is not None and share > 0:
            found.append(f"{'all' if share >= 1 else f'{share:.0%} of the'} {what} equal")
    for name, what in (
        ("max_logprob_difference", "log-probabilities within {} nats"),
        ("mean_logprob_difference", "within {} on average"),
        ("mean_kl", "KL divergence at most {}"),
    ):
        limit = getattr(tolerances, name)
        if limit is not None and limit <= MAX_NATS:
            found.append(what.format(f"{limit:g}"))
    drop = tolerances.max_accuracy_drop
    if drop is not None and drop < 1:
        found.append(f"right answers down by at most {100 * drop:g} points")
    return ", ".join(found)


def add_tolerances(weights: Tolerances, arithmetic: Tolerances) -> Tolerances:
    """Return the tolerances of rounded weights in a server's arithmetic.

    Differences add (the triangle inequality), and so do shortfalls of agreement. The divergence
    and the accuracy keep the limits of the weights.
    """

    def total(name: str) -> float | None:
        one: float | None = getattr(weights, name)
        other: float | None = getattr(arithmetic, name)
        if one is None or other is None:
            return None
        # Rounded, because 0.95 + 0.9 - 1 is not 0.85 in binary.
        return round(max(one + other - 1, 0.0) if name.startswith("min_") else one + other, 9)

    names = (
        "min_greedy_agreement", "min_token_agreement",
        "max_logprob_difference", "mean_logprob_difference",
    )  # fmt: skip
    return weights.model_copy(update={name: total(name) for name in names})

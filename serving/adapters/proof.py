"""The proof of an adapter under its hidden name: the reference's prompts, answered greedily.

The comparison is that of served parity. The base model answers the same prompts, so that an adapter
that vLLM has loaded and does not apply is told from an adapter that works.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from serving.parity import proof_fields, require_whole, room_of, served_continuation
from tuneline.core.artifact import Artifact
from tuneline.core.errors import InconclusiveError, VerdictError
from tuneline.core.parity import Parity, compare
from tuneline.core.reference import (
    Continuation,
    comparable_settings,
    read_reference,
    reference_noise,
)
from tuneline.core.tolerances import Tolerances

Ask = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]
"""`await ask(fields)`: the chat completion of the live server. Raises ServerError."""


async def prove_adapter(
    ask: Ask, model: str, base: str, reference: Artifact, tolerances: Tolerances
) -> Parity:
    """Return the comparison of an adapter's answers with its reference.

    Args:
        model: The hidden name of the adapter.
        base: The name of the base model.

    Raises:
        VerdictError: The answers differ, or they are the base model's.
        InconclusiveError: The reference answers as the base model does, so no answer tells whether
            the adapter is applied.
        ServerError: The server does not answer as vLLM does.
    """
    expected = read_reference(reference)
    if not expected:
        raise InconclusiveError(f"reference {reference.short_digest}: has 0 prompts")
    found = await _answers(ask, model, expected, reference)
    parity = compare(
        model, expected, found, tolerances, reference_noise=reference_noise(reference),
        template_date=reference.manifest.metrics.get("chat_template_date"),
    )  # fmt: skip
    of_base = await _answers(ask, base, expected, reference)
    problems = list(parity.problems)
    if problem := _answers_as_base(expected, found, of_base, tolerances):
        problems.insert(0, problem)
    if problems:
        lines = "\n".join(f"  {problem}" for problem in problems)
        raise VerdictError(f"the proof of {model} fails:\n{lines}")
    if not _tells_apart(expected, of_base, tolerances):
        raise InconclusiveError(
            f"{model}: its reference answers all {len(expected)} prompts as the base model does, "
            "so the proof cannot tell whether the adapter is applied",
            hint="Record a reference with prompts that the training changed.",
        )
    return parity


def _answers_as_base(
    expected: list[Continuation],
    found: list[Continuation],
    of_base: list[Continuation],
    tolerances: Tolerances,
) -> str | None:
    """Return the problem of an adapter that answers as its base does, if its reference differs.

    Rounding may make a few answers equal: as many as the tolerance lets differ from the reference.
    """
    changed = [
        (answer, base)
        for reference, answer, base in zip(expected, found, of_base, strict=True)
        if reference.token_ids != base.token_ids
    ]
    same = sum(answer.token_ids == base.token_ids for answer, base in changed)
    allowed = (1 - (tolerances.min_greedy_agreement or 0.5)) * len(changed)
    if same > allowed:
        return (
            f"{same} of {len(changed)} answers that the training changed are the base model's: the "
            "adapter is loaded and not applied"
        )
    return None


def _tells_apart(
    expected: list[Continuation], of_base: list[Continuation], tolerances: Tolerances
) -> bool:
    """Return whether a server without the adapter would have failed the comparison."""
    return bool(compare("base", expected, of_base, tolerances).problems)


async def _answers(
    ask: Ask, model: str, expected: list[Continuation], reference: Artifact
) -> list[Continuation]:
    settings = comparable_settings(reference)
    kwargs = reference.manifest.metrics.get("chat_template_date_variable") or {}
    found, most = [], settings["max_new_tokens"]
    for entry in expected:
        response = await ask({"model": model, **proof_fields(entry, kwargs, **settings)})
        found.append(served_continuation(response, entry.messages, model))
        require_whole(found[-1], most, room_of(expected, most))
    return found

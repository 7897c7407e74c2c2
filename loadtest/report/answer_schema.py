"""The parts of `report.json` on right answers, repeats and clients that leave."""

from __future__ import annotations

from typing import Literal

from loadtest.report.part import Distribution, Part


class WrongAnswer(Part):
    """The first place where an answer leaves the reference's."""

    request: int
    """Index of the request."""
    prompt: int
    """Line of the reference, from 0."""
    position: int
    """Token of the answer, from 0; character, if only texts are compared."""
    expected: str
    found: str


class AnswerFigures(Part):
    """The answers to the reference's prompts under load."""

    num_asked: int
    num_compared: int
    """Requests that succeeded."""
    compared: Literal["token ids", "text"]
    """The server sends no ids: the texts are compared."""
    num_equal: int
    token_agreement: float | None
    """Share of the reference's tokens before each answer's first divergence."""
    max_logprob_difference: float | None
    """In nats; null if the server sends none."""
    mean_logprob_difference: float | None
    length_drift: float | None
    """Tokens of the answers over tokens of the reference, minus 1."""
    first_divergences: list[WrongAnswer]
    """Up to five, by request."""
    problems: list[str]
    """Why the verdict is FAIL."""


class Endings(Part):
    """How the measured answers end, and which models they name."""

    finish_reasons: dict[str, int]
    """Answers by finish reason; an empty reason is none."""
    named: dict[str, dict[str, int]]
    """By the name that was asked, the answers by the model that they name."""
    num_validated: int | None
    """Measured answers whose form was checked: they succeeded or are `malformed_answer` or
    `malformed_call`. Null if the requests ask for any text."""


class RepeatFigures(Part):
    """Prompts that were sent more than once."""

    num_repeats: int
    ttft_share_p50: float | None
    """Median TTFT of a repeat as a share of the TTFT of its first sending."""
    ttft_share_ci95: tuple[float, float] | None
    declared: float | None


class CancellationFigures(Part):
    """Clients that left before the end of their answer."""

    num_left: int
    num_left_before_token: int
    ttft_s: Distribution
    """Of the clients that saw a token."""
    num_aborted: int | None
    """Requests that the server counts as aborted; null if it counts none."""
    num_running_after: int | None
    """Requests that the server still ran when the last answer had come."""
    num_tokens_after_leaving: int | None
    """Tokens that the server generated and no client received."""

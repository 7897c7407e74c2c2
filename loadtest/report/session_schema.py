"""The parts of `report.json` on conversations."""

from __future__ import annotations

from loadtest.report.part import Distribution, Part


class TurnFigures(Part):
    """The requests with one place in their sessions."""

    turn: int
    """1 for the first."""
    offered: int
    succeeded: int
    mean_prompt_tokens: float | None
    cached_share: float | None
    """Prompt tokens that the server says it found in its cache, as a share."""
    ttft_s: Distribution
    tpot_s: Distribution
    e2e_s: Distribution


class SessionFigures(Part):
    """Conversations: `offered = succeeded + failed + unfinished + cancelled`."""

    offered: int
    succeeded: int
    """Every turn succeeded."""
    failed: int
    """A turn failed; the later turns were not sent."""
    unfinished: int
    cancelled: int
    """The client left in some turn, as `cancellations` asks."""
    warmup: int
    error_rate: float
    """Failed and unfinished conversations as a share of the offered conversations."""
    error_rate_ci95: tuple[float, float]
    num_turns: int
    """Turns of the offered conversations."""
    num_turns_sent: int
    num_turns_not_reached: int
    """Turns after a turn that failed or did not end: they were never due."""
    num_model_changes: int
    """Answers that name another model than the first turn of their conversation."""
    mean_in_flight: float | None
    """Conversations in flight on average, by Little's law."""
    delay_s: Distribution
    """From the end of a turn to the time when the next one was due."""
    prefix_reuse: float | None
    """Share of the prompt tokens that an earlier turn of the conversation has sent; a prefix cache
    can answer no more than this and what conversations share."""
    turns: list[TurnFigures]
    """By place in the conversation, up to 32."""

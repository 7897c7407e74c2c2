"""Which rows of a batch start alike, and how many tokens a batch saves by it. Needs no torch."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from training.config import TrainingConfig
from training.config.method import SampledOptions

LEAST_TOKENS = 32
"""A shorter start saves less than a second pass through the layers costs."""
LEAST_SAVING = 0.15
"""Share of a batch's positions that are not computed."""
SHARE_LEAST, SHARE_MOST = 256, 1024
"""Tokens of a share of a batch's rows. With fewer, Python takes as long as the arithmetic, and
threads wait for it; with more, a layer's activations leave the processor's cache."""
NUM_DRAWN = 32
"""Batches that are drawn to estimate what a run saves."""
CLASS_DIFFERS = "networks of this class do not continue them"
MODEL_DIFFERS = "the loaded model does not continue them"
COMPUTED_AGAIN = "activations are computed again (gradient_checkpointing: auto)"
"""Reasons that are known only with the model."""


@dataclass(frozen=True)
class Starts:
    """The groups of a batch's rows that start alike.

    Attributes:
        groups: The group of each row.
        lengths: For each group, the tokens at the start that are computed once.
        num_computed: Positions of the two passes, padding included.
        num_whole: Positions of the batch of whole rows, padding included.
    """

    groups: list[int]
    lengths: list[int]
    num_computed: int
    num_whole: int

    @property
    def saved(self) -> float:
        """Share of the batch's positions that are not computed."""
        return 1 - self.num_computed / self.num_whole


@dataclass(frozen=True)
class Sharing:
    """The tokens that rows of a batch share, as far as a run's rows tell before it.

    Attributes:
        saved: Share of the tokens that are not computed, the mean over drawn batches.
        start: Tokens at the start of a row that are computed once in every batch; 0 if a batch may
            have rows without a shared start.
        num_sharing: Rows that share one start; None for all rows of a batch.
        num_drawn: Rows that were drawn for this; None if every row was read.
        whole_because: Why every row computes its start all the same; None if a batch computes it.
    """

    saved: float
    start: int = 0
    num_sharing: int | None = None
    num_drawn: int | None = None
    whole_because: str | None = None

    def __str__(self) -> str:
        sample = "" if self.num_drawn is None else f", in a sample of {self.num_drawn:,} rows"
        if self.whole_because:
            return (
                f"starts that rows share are computed for each row: {self.whole_because}; they are "
                f"about {self.saved:.0%} of the tokens{sample}"
            )
        if self.start and self.num_sharing is None:
            return (
                f"all rows start with the same {self.start:,} tokens, which a batch computes once: "
                f"about {self.saved:.0%} of the tokens are saved{sample}"
            )
        return (
            "a batch computes the prompts that its rows share once: about "
            f"{self.saved:.0%} of the tokens are saved{sample}"
        )


def shared_starts(rows: Sequence[list[int]], offsets: Sequence[int] = ()) -> Starts | None:
    """Return the groups of rows that save most; None if no groups save enough.

    The starts of all groups are one pass of (groups) x (longest start) positions, and what follows
    them is one of (rows) x (longest rest).

    Args:
        rows: Token ids of each row, without padding.
        offsets: Padding before each row. Rows share a start only at the same positions.
    """
    before = offsets or [0] * len(rows)
    order = sorted(range(len(rows)), key=lambda row: (before[row], rows[row]))
    alike = [
        _num_alike(rows[left], rows[right]) if before[left] == before[right] else 0
        for left, right in itertools.pairwise(order)
    ]
    whole = len(rows) * max(map(len, rows))
    best: Starts | None = None
    for least in {number for number in alike if number >= LEAST_TOKENS}:
        found = _grouped(rows, order, alike, least, whole)
        if best is None or found.num_computed < best.num_computed:
            best = found
    return best if best is not None and best.saved >= LEAST_SAVING else None


def _num_alike(left: list[int], right: list[int]) -> int:
    """Return how many tokens two rows start with; a token of each is left over."""
    pairs = enumerate(zip(left[:-1], right[:-1], strict=False))
    shorter = min(len(left), len(right)) - 1
    return next((index for index, (a, b) in pairs if a != b), shorter)


def _grouped(
    rows: Sequence[list[int]], order: list[int], alike: list[int], least: int, whole: int
) -> Starts:
    """Return the groups whose rows share at least `least` tokens."""
    groups, lengths, alone = [0] * len(rows), [0], [order[0]]
    for row, number in zip(order[1:], alike, strict=True):
        if number < least:
            lengths.append(0)
            alone.append(row)
        else:
            lengths[-1] = min(lengths[-1] or number, number)
        groups[row] = len(lengths) - 1
    longest = max(lengths)
    # A row that shares nothing computes a part of itself with the starts of the others.
    lengths = [
        length or min(longest, len(rows[row]) - 1)
        for length, row in zip(lengths, alone, strict=True)
    ]
    rest = max(len(row) - lengths[group] for row, group in zip(rows, groups, strict=True))
    return Starts(groups, lengths, len(lengths) * longest + len(rows) * rest, whole)


def count_shares(num_tokens: int, num_rows: int, num_threads: int) -> tuple[int, int]:
    """Return the number of shares of a batch, and how many are computed at once."""
    num_at_once = max(1, min(num_threads, num_rows, num_tokens // SHARE_LEAST))
    return num_at_once * math.ceil(num_tokens / (num_at_once * SHARE_MOST)), num_at_once


def expected_sharing(config: TrainingConfig, examples: Sequence[Any]) -> Sharing | None:
    """Return what batches of these examples share; None if they share too little.

    Settings with which rows are computed whole are in `whole_because`.

    Args:
        examples: The token ids of each training row's sequences; a preference pair has two, and a
            prompt that the model answers itself has one.
    """
    if not examples or config.per_device_train_batch_size * config.method.num_sequences < 2:
        return None
    draw = random.Random(0)
    batches = [_drawn(config, examples, draw) for _ in range(NUM_DRAWN)]
    found = [shared_starts(batch) for batch in batches]
    whole = sum(len(batch) * max(map(len, batch)) for batch in batches)
    saved = sum(starts.num_whole - starts.num_computed for starts in found if starts) / whole
    if not saved:
        return None
    start, num_sharing = _in_every_batch(config, examples)
    return Sharing(saved, start, num_sharing, whole_because=_setting_for_whole_rows(config))


def _setting_for_whole_rows(config: TrainingConfig) -> str | None:
    settings = {
        "packing: true": config.packing,
        f"lora_dropout: {config.lora_dropout:g}": config.lora_dropout,
        "gradient_checkpointing: true": config.gradient_checkpointing is True,
        f"router_aux_loss_coef: {config.router_aux_loss_coef:g}": config.router_aux_loss_coef,
        "launch.strategy: fsdp2": config.launch is not None and config.launch.strategy == "fsdp2",
    }
    return next((f"training.{setting}" for setting, is_set in settings.items() if is_set), None)


def _drawn(config: TrainingConfig, examples: Sequence[Any], draw: random.Random) -> list[list[int]]:
    """Return the rows of a batch of random examples."""
    size, method = config.per_device_train_batch_size, config.method
    if not isinstance(method, SampledOptions):
        chosen = draw.sample(examples, min(size, len(examples)))
        return [ids for example in chosen for ids in example]
    # The answers that are generated at once are shuffled before they are divided into batches.
    num_prompts = _rows_at_once(config, method) // method.answers_per_prompt
    prompts = draw.sample(examples, max(1, min(num_prompts, len(examples))))
    answers = [
        [*example[0], *[-1 - index] * method.max_completion_length]
        for example in prompts
        for index in range(method.answers_per_prompt)
    ]
    return draw.sample(answers, min(size, len(answers)))


def _rows_at_once(config: TrainingConfig, method: SampledOptions) -> int:
    return method.rows_at_once(
        config.per_device_train_batch_size, config.gradient_accumulation_steps
    )


def _in_every_batch(config: TrainingConfig, examples: Sequence[Any]) -> tuple[int, int | None]:
    """Return the start that rows share in every batch, and how many rows share one.

    The second element is None if all rows do. The start is 0 if a batch may share less than what
    is worth a pass of its own.
    """
    method, size = config.method, config.per_device_train_batch_size
    rows = [ids for example in examples for ids in example]
    length = max(map(len, rows))
    first, last = min(rows), max(rows)  # in the order of their tokens: these two differ soonest
    common = min(_num_alike(first, last), *(len(row) - 1 for row in rows))
    num_rows, own, num_sharing = min(size * method.num_sequences, len(rows)), 0, 2
    if isinstance(method, SampledOptions):
        own, length = length, length + method.max_completion_length
        num_sharing = max(1, method.answers_per_prompt * size // _rows_at_once(config, method))
    elif method.num_sequences == 2:
        own = 2 * length - _most_computed(examples, size)
    found = [(common, num_rows, None), (own, num_sharing, num_sharing)]
    start, sharing, named = max(found, key=lambda entry: entry[0] * (1 - 1 / entry[1]))
    worth = start >= LEAST_TOKENS and start * (1 - 1 / sharing) >= LEAST_SAVING * length
    return (min(start, length - 1), named) if worth else (0, None)


def _most_computed(pairs: Sequence[Any], size: int) -> int:
    """Return the most positions that are computed for a pair, in any batch of `size` pairs.

    A batch of several computes the longest start and the longest rest for each of its pairs.
    """
    starts = [_num_alike(*pair) for pair in pairs]
    longest = [max(map(len, pair)) for pair in pairs]
    rests = [length - start for length, start in zip(longest, starts, strict=True)]
    if size == 1:
        return max(start + 2 * rest for start, rest in zip(starts, rests, strict=True))
    most = max(starts) + 2 * max(rests)
    if most <= (1 - LEAST_SAVING) * 2 * min(longest):
        return most
    # A batch that would save less computes whole rows.
    return math.ceil(most / (1 - LEAST_SAVING))

"""From conversations to what the client sends turn by turn."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np

from loadtest.client.plan import SessionPlan
from loadtest.config import LoadTestConfig
from loadtest.routes.table import Route
from loadtest.workload.build import (
    Workload,
    draw_names,
    entries_of,
    options_of,
    permutation,
    require_chat,
    route_of,
    system_of,
)
from loadtest.workload.checks import Checks, with_checks
from loadtest.workload.checks import options_of as options_of_checks
from loadtest.workload.content import Wanted
from loadtest.workload.images import check_total, count_images, with_images, with_text_before
from loadtest.workload.lengths import draw_lengths
from loadtest.workload.sessions.conversation import (
    Conversation,
    Turn,
    cut_turns,
    follows_of,
    kept_shares,
)
from loadtest.workload.sessions.table import READERS
from loadtest.workload_config import Delay, ImagesConfig, SessionsConfig
from tuneline.core.artifact import canonical_digest
from tuneline.core.errors import ConfigError
from tuneline.core.messages import ChatPrompt, Messages, as_request

MIN_ROWS = 2000
"""Sessions whose delays are drawn if their number is not known; later sessions repeat them."""


def build_sessions(
    config: LoadTestConfig,
    model: str,
    given: Sequence[ChatPrompt],
    *,
    seed: int,
    num_sessions: int | None,
    permutation_seed: int | None = None,
    is_shard: bool = False,
    checks: Checks | None = None,
    trace_speed: float = 1.0,
) -> Workload:
    """Return the turns of a scenario of sessions; the other arguments are those of
    `build_workload`.

    Args:
        trace_speed: Divides the recorded delays.

    The body of a turn is `open + history + added + close`, which the client joins when the turn is
    due: the plan then has each message once, however long the conversation is.

    Raises:
        ConfigError: There are no conversations, or delays are asked that the file does not have.
        DataError: A workload file cannot be used.
    """
    workload, sessions = config.workload, config.workload.sessions
    assert sessions is not None  # noqa: S101 (the caller asks for sessions)
    rng = np.random.default_rng([seed, 1])
    wanted = Wanted(workload, given, rng, num_sessions)
    found, is_trace = _read(wanted, sessions)
    without_images = [turn.added for one in found for turn in one.turns]
    if isinstance(found[0].turns[0].added[0], dict):
        images_seed = None if workload.unique_prompts else seed
        found = _with_images(found, workload.images, images_seed)
    num_others = len(found)
    order = list(range(num_others))
    if checks is not None:
        require_chat(isinstance(found[0].turns[0].added[0], dict) and workload.route == "chat")
        order = with_checks(order, num_others, checks, num_sessions, seed)
        tokens = checks.settings["max_new_tokens"]
        found += [
            Conversation([Turn(as_request(one.messages), [], max_tokens=tokens)], tools=one.tools)
            for one in checks.expected
        ]
    turns = [turn for one in found for turn in one.turns]
    tools = [one.tools for one in found for _ in one.turns]
    num_unchecked = sum(len(one.turns) for one in found[:num_others])
    is_chat = isinstance(turns[0].added[0], dict)
    has_agents = any(turn.lane for turn in turns)
    if sessions.history == "own" and any(_has_tools(turn) for turn in turns):
        raise ConfigError(
            "workload.sessions.history is own; a conversation of the file has tools, whose results "
            "answer only the recorded calls",
            hint="Try: --set loadtest.workload.sessions.history=recorded",
        )
    id_of = permutation(workload.max_token_id, permutation_seed, is_shard)
    lengths = [turn.max_tokens or config.max_tokens for turn in turns]
    if workload.output_tokens is not None:
        lengths = draw_lengths(workload.output_tokens, rng, len(turns))
    names = draw_names(workload.models, model, rng, len(found))
    rows = num_sessions or len(order) * -(-MIN_ROWS // len(order))
    delays_s = _delays(
        [found[order[row % len(order)]] for row in range(rows)],
        sessions,
        np.random.default_rng([seed, 2]),
        trace_speed,
    )
    nonce = uuid.uuid4().hex[:12] if workload.unique_prompts else None
    route = route_of(config, is_chat)
    systems = [text for one in found for text in _systems(route, one)]
    if nonce is not None:
        systems = [f"[{nonce}] {text}" if text else "" for text in systems]
    # Over 60 lines: the plan and the workload list every field by name.
    plan = SessionPlan(
        offsets=[0, *(int(one) for one in np.cumsum([len(one.turns) for one in found]))],
        stride=max(len(one.turns) for one in found),
        opens=[f'{{"model": {json.dumps(name)}, "{route.key}": [' for name in names],
        closes=[
            "], " + json.dumps(options_of(config, route, length, systems[place], tools[place]))[1:]
            if checks is None or place < num_unchecked
            else "], " + json.dumps(options_of_checks(checks, tools[place]))[1:]
            for place, length in enumerate(lengths)
        ],
        answers=[_joined(route, turn.answers) for turn in turns],
        is_fresh=[turn.is_fresh for turn in turns],
        delays_s=delays_s,
        keeps_own=sessions.history == "own" and is_chat,
        order=order,
        nonce=nonce,
        kept=[share for one in found for share in kept_shares(one)],
        lanes=[turn.lane for turn in turns] if has_agents else [],
        waits_for=[row for one in found for row in follows_of(one.turns)] if has_agents else [],
    )
    added = [*without_images, *(turn.added for turn in turns[num_unchecked:])]
    contents = [
        [one, turn.answers, size, *([own] if own else [])]
        for one, turn, size, own in zip(added, turns, lengths, tools, strict=True)
    ]
    return Workload(
        path=route.path,
        bodies=_added(route, found, id_of, nonce, num_others),
        output_tokens=lengths,
        models=[name for name, one in zip(names, found, strict=True) for _ in one.turns],
        digest=canonical_digest(
            [
                contents,
                plan.offsets,
                order,
                sessions.history,
                config.extra_body,
                config.ignore_eos,
                *([workload.images.model_dump()] if workload.images else []),
            ]
        ),
        trace_s=[one.start_s or 0.0 for one in found[:num_others]] if is_trace else None,
        sessions=plan,
        num_unchecked=None if checks is None else num_unchecked,
        images=[counts for one in found for counts in _images(one)] if is_chat else [],
        left_out=dict(wanted.left_out.most_common()),
    )


def _read(wanted: Wanted, sessions: SessionsConfig) -> tuple[list[Conversation], bool]:
    """Return the conversations in the order of their sessions, and whether the file has times.

    Raises:
        ConfigError: There are no conversations.
        DataError: A workload file cannot be used.
    """
    found = READERS[wanted.workload.source](wanted)
    found = [cut_turns(one, sessions.max_turns) for one in found if one.turns]
    if not found:
        raise ConfigError("the load test has no conversations; expected at least one")
    is_trace = all(one.start_s is not None for one in found)
    if is_trace:
        return sorted(found, key=lambda one: one.start_s or 0.0), True
    return [found[place] for place in wanted.rng.permutation(len(found))], False


def _with_images(
    found: Sequence[Conversation], images: ImagesConfig | None, seed: int | None
) -> list[Conversation]:
    """Return conversations of messages whose first turns bring images, if any are asked.

    Raises:
        ConfigError: There are too many images, those of the file among them.
    """
    num_bytes = 0
    shown = []
    for one in found:
        first, *others = one.turns
        if images is not None:
            first = replace(first, added=with_images(cast("Messages", first.added), images, seed))
        turns = [first, *others]
        num_bytes += sum(count_images(cast("Messages", turn.added))[1] for turn in turns)
        check_total(num_bytes)
        shown.append(replace(one, turns=turns))
    return shown


def _images(conversation: Conversation) -> list[tuple[int, int]]:
    """Return of each turn the images that its request holds and the bytes of their URLs."""
    found: list[tuple[int, int]] = []
    for turn in conversation.turns:
        count, size = count_images(cast("Messages", turn.added))
        before = (0, 0) if turn.is_fresh or not found else found[-1]
        found.append((before[0] + count, before[1] + size))
    return found


def _added(
    route: Route, found: Sequence[Conversation], id_of: Any, nonce: str | None, num_others: int
) -> list[str]:
    """Return the JSON that each turn adds to the list of messages or token ids; the prompts of the
    reference, from `num_others` on, have no nonce."""
    texts = []
    for place, one in enumerate(found):
        for number, turn in enumerate(one.turns):
            added = turn.added
            if isinstance(added[0], dict):
                first = added[0]
                if nonce and number == 0 and place < num_others:
                    first = with_text_before(first, f"[{nonce}]")
                texts.append(_joined(route, [first, *added[1:]]))
            else:
                texts.append(", ".join(str(int(id_)) for id_ in id_of[added]))
    return texts


def _has_tools(turn: Turn) -> bool:
    messages = [one for one in [*turn.added, *turn.answers] if isinstance(one, dict)]
    return any(one["role"] == "tool" or one.get("tool_calls") for one in messages)


def _joined(route: Route, messages: Messages) -> str:
    entries = entries_of(route, messages)
    return ", ".join(json.dumps(entry, ensure_ascii=False) for entry in entries)


def _systems(route: Route, conversation: Conversation) -> list[str]:
    """Return the system's messages that each turn sends; empty if they are among the others."""
    found: list[str] = []
    history: list[Any] = []
    for turn in conversation.turns:
        history = [*([] if turn.is_fresh else history), *turn.added]
        found.append(system_of(route, history) if isinstance(history[0], dict) else "")
    return found


def _delays(
    found: Sequence[Conversation],
    sessions: SessionsConfig,
    rng: np.random.Generator,
    trace_speed: float,
) -> list[list[float]]:
    """Return the delay before each turn of each session; zero before the first turn.

    Raises:
        ConfigError: A recorded delay is asked that the file does not have.
    """
    return [
        [
            0.0
            if number == 0
            else min(_delay(turn, sessions, rng, trace_speed), sessions.max_delay_s)
            for number, turn in enumerate(one.turns)
        ]
        for one in found
    ]


def _delay(
    turn: Turn, sessions: SessionsConfig, rng: np.random.Generator, trace_speed: float
) -> float:
    asked = sessions.think_s
    key = "think_s"
    if turn.follows_tool and sessions.tool_delay_s is not None:
        asked, key = sessions.tool_delay_s, "tool_delay_s"
    if isinstance(asked, Delay):
        return _drawn(asked, rng)
    if turn.delay_s is None:
        raise ConfigError(
            f"workload.sessions.{key} is recorded; the file has no time for some turn",
            hint=f"Try: --set loadtest.workload.sessions.{key}.mean=1",
        )
    return turn.delay_s / trace_speed


def _drawn(delay: Delay, rng: np.random.Generator) -> float:
    if delay.distribution == "exponential":
        return float(rng.exponential(delay.mean))
    if delay.distribution == "lognormal":
        assert delay.stddev is not None  # noqa: S101 (the configuration requires it)
        variance = np.log1p((delay.stddev / delay.mean) ** 2)
        return float(rng.lognormal(np.log(delay.mean) - variance / 2, np.sqrt(variance)))
    return delay.mean

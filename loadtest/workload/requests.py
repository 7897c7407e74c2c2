"""What the requests hold: their bodies, their lengths and their order. Pure, but for two files."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np

from loadtest.config import Length, LoadTestConfig, WorkloadConfig
from tuneline.core.artifact import canonical_digest
from tuneline.core.errors import ConfigError, DataError
from tuneline.core.messages import Messages

FIRST_TOKEN_ID = 100
MOONCAKE_BLOCK_TOKENS = 512
NUM_SYNTHETIC_PROMPTS = 2000
CONVERSATIONS_AT_ONCE = 16
MAX_UNIQUE_PROMPTS = 50_000


@dataclass(frozen=True)
class Prompt:
    """One request's content: chat messages, or token ids for `/v1/completions`."""

    content: Messages | list[int]
    max_tokens: int | None = None
    """Where the trace or the distribution of lengths says; else the common one."""


@dataclass(frozen=True)
class Workload:
    """Requests in the order they are sent; request i has body i modulo their number."""

    path: str
    """Below the endpoint's URL."""
    bodies: list[str]
    output_tokens: list[int]
    """Of each body: its `max_tokens`."""
    models: list[str]
    """Of each body."""
    digest: str
    """Over the contents and their order, without model names, nonces and permutation: runs
    with the same digest ask the same."""
    trace_s: list[float] | None = field(default=None)


def build_workload(
    config: LoadTestConfig,
    model: str,
    prompts: Sequence[Messages],
    *,
    seed: int,
    num_requests: int | None,
    permutation_seed: int | None = None,
    is_shard: bool = False,
) -> Workload:
    """Bodies for a scenario.

    Token ids are exchanged by a permutation: what the requests share, they still share, and what a
    run with another permutation left in the server's prefix cache answers none of them.

    Args:
        config: Its `workload`, `max_tokens`, `ignore_eos` and `extra_body`.
        model: The served name, where `workload.models` gives no mix.
        prompts: For `source: prompts`.
        seed: Of the order and of the random lengths and tokens.
        num_requests: How many requests the scenario sends, where it is known.
        permutation_seed: Of the permutation, for runs that are to send the same ids; a run without
            one has a permutation of its own.
        is_shard: Others that know of no common seed send parts of the same test: no permutation.

    Raises:
        ConfigError: There are no prompts.
        DataError: A workload file cannot be used.
    """
    workload = config.workload
    rng = np.random.default_rng([seed, 1])
    trace_s = None
    if workload.source == "prompts":
        found = [Prompt(messages) for messages in conversations(prompts, workload.multi_turn)]
    elif workload.source == "synthetic":
        found = synthetic(workload, rng, min(num_requests or 2000, NUM_SYNTHETIC_PROMPTS))
    elif workload.source == "sharegpt":
        assert workload.path is not None  # noqa: S101 (the config requires it)
        found = [Prompt(m) for m in conversations(sharegpt(workload), workload.multi_turn)]
    else:
        assert workload.path is not None  # noqa: S101 (the config requires it)
        found, trace_s = mooncake(workload, workload.path)
    if not found:
        raise ConfigError("the load test has no prompts; expected at least one")
    if trace_s is None and not workload.multi_turn:
        found = [found[place] for place in rng.permutation(len(found))]
    count = len(found)
    if workload.unique_prompts or workload.models or workload.output_tokens:
        # What differs from request to request needs a body for each.
        count = max(count, min(num_requests or MAX_UNIQUE_PROMPTS, MAX_UNIQUE_PROMPTS))
    lengths = None
    if workload.output_tokens is not None:
        lengths = draw_lengths(workload.output_tokens, rng, count)
    names = [model] * count
    if workload.models:
        weights = np.array(list(workload.models.values()))
        names = [
            str(n) for n in rng.choice(list(workload.models), count, p=weights / weights.sum())
        ]
    run_id = uuid.uuid4().hex[:12]
    id_of = np.arange(workload.max_token_id)
    if not is_shard:
        ids_rng = np.random.default_rng(permutation_seed)
        id_of[FIRST_TOKEN_ID:] = ids_rng.permutation(id_of[FIRST_TOKEN_ID:])
    bodies, tokens, contents = [], [], []
    for number in range(count):
        prompt = found[number % len(found)]
        max_tokens = lengths[number] if lengths else prompt.max_tokens or config.max_tokens
        contents.append([prompt.content, max_tokens])
        content = prompt.content
        if workload.unique_prompts:
            content = with_nonce(content, f"{run_id}-{number}", rng, workload.max_token_id)
        if not isinstance(content[0], dict):
            content = [int(one) for one in id_of[content]]
        bodies.append(_body(config, names[number], content, max_tokens))
        tokens.append(max_tokens)
    is_chat = isinstance(found[0].content[0], dict)
    return Workload(
        path="chat/completions" if is_chat else "completions",
        bodies=bodies,
        output_tokens=tokens,
        models=names,
        digest=canonical_digest([contents, config.extra_body, config.ignore_eos]),
        trace_s=trace_s,
    )


def _body(
    config: LoadTestConfig, model: str, content: Messages | list[int], max_tokens: int
) -> str:
    is_chat = isinstance(content[0], dict)
    body: dict[str, Any] = {
        "model": model,
        "messages" if is_chat else "prompt": content,
        "max_tokens": max_tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
        **config.extra_body,
    }
    if config.ignore_eos:
        body |= {"ignore_eos": True, "min_tokens": max_tokens}
    return json.dumps(body, ensure_ascii=False)


def with_nonce(
    content: Messages | list[int], nonce: str, rng: np.random.Generator, max_token_id: int
) -> Messages | list[int]:
    """The same content, different from its first token on; as long as before for token ids."""
    first = content[0]
    if isinstance(first, dict):
        head = {**first, "content": f"[{nonce}] {first['content']}"}
        return [head, *content[1:]]
    num = min(8, len(content))
    ids = [int(one) for one in rng.integers(FIRST_TOKEN_ID, max_token_id, num)]
    return [*ids, *content[num:]]


def conversations(prompts: Sequence[Messages], multi_turn: bool) -> list[Messages]:
    """As they are, or each user turn as a request with its history.

    Turns of one conversation keep their order; a few conversations run beside each other.
    """
    if not multi_turn:
        return [list(messages) for messages in prompts]
    turns = []
    for number, messages in enumerate(prompts):
        ends = [place for place, one in enumerate(messages) if one["role"] == "user"]
        for turn, end in enumerate(ends):
            turns.append((number // CONVERSATIONS_AT_ONCE, turn, number, list(messages[: end + 1])))
    return [messages for _, _, _, messages in sorted(turns, key=lambda turn: turn[:3])]


def draw_lengths(length: Length, rng: np.random.Generator, count: int) -> list[int]:
    """Whole token counts within bounds."""
    if length.distribution == "fixed":
        return [round(length.mean)] * count
    assert length.stddev is not None  # noqa: S101 (the config requires it)
    high = length.max if length.max is not None else 2**31
    found: list[int] = []
    for _ in range(1000):
        if length.distribution == "normal":
            drawn = rng.normal(length.mean, length.stddev, count)
        else:
            variance = np.log1p((length.stddev / length.mean) ** 2)
            drawn = rng.lognormal(np.log(length.mean) - variance / 2, np.sqrt(variance), count)
        found += [int(one) for one in np.rint(drawn) if length.min <= one <= high]
        if len(found) >= count:
            return found[:count]
    raise ConfigError(
        f"lengths of mean {length.mean:g} and stddev {length.stddev:g} almost never lie between "
        f"{length.min} and {length.max}"
    )


def synthetic(workload: WorkloadConfig, rng: np.random.Generator, count: int) -> list[Prompt]:
    """Random token ids of exact lengths; with shared prefixes, each group's first tokens equal."""
    assert workload.input_tokens is not None  # noqa: S101 (the config requires it)
    lengths = draw_lengths(workload.input_tokens, rng, count)
    num_shared = workload.shared_prefix_tokens or 0
    prefixes = [
        _token_ids(rng, num_shared, workload) for _ in range(workload.num_prefix_groups or 1)
    ]
    return [
        Prompt((prefixes[number % len(prefixes)] + _token_ids(rng, size, workload))[:size])
        for number, size in enumerate(lengths)
    ]


def _token_ids(rng: np.random.Generator, count: int, workload: WorkloadConfig) -> list[int]:
    return [int(one) for one in rng.integers(FIRST_TOKEN_ID, workload.max_token_id, count)]


def sharegpt(workload: WorkloadConfig) -> list[Messages]:
    """Conversations of a ShareGPT file: a JSON list of `{"conversations": [{"from", "value"}]}`.

    Raises:
        DataError: It is no such file, or holds no human turn.
    """
    path = workload.path
    assert path is not None  # noqa: S101 (the config requires it)
    try:
        entries = json.loads(_text(path))
    except ValueError as error:
        raise DataError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(entries, list):
        raise DataError(f"{path}: expected a list of conversations")
    roles = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant",
             "system": "system"}  # fmt: skip
    found = []
    for number, entry in enumerate(entries):
        turns = entry.get("conversations") if isinstance(entry, dict) else None
        if not isinstance(turns, list):
            raise DataError(f"{path}: entry {number}: expected a list as conversations")
        messages: Messages = []
        for turn in turns:
            if not isinstance(turn, dict) or not is_text(turn.get("value")):
                raise DataError(f"{path}: entry {number}: expected turns with from and value")
            role = roles.get(str(turn.get("from")))
            if role is not None:
                messages.append({"role": role, "content": turn["value"]})
        while messages and messages[-1]["role"] != "user":
            messages.pop()
        if not workload.multi_turn and messages:
            first = next(place for place, one in enumerate(messages) if one["role"] == "user")
            messages = messages[: first + 1]
        if messages:
            found.append(messages)
    if not found:
        raise DataError(f"{path}: holds no human turn")
    return found


class _TraceLine(msgspec.Struct):
    """A request of a Mooncake trace."""

    timestamp: Annotated[float, msgspec.Meta(ge=0, le=1e12)]
    """Milliseconds."""
    input_length: Annotated[int, msgspec.Meta(ge=0, le=10**8)]
    output_length: Annotated[int, msgspec.Meta(ge=0, le=10**8)]
    hash_ids: list[Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]] | None = None


def mooncake(workload: WorkloadConfig, path: Path) -> tuple[list[Prompt], list[float]]:
    """Prompts and times of a Mooncake trace (Qin et al., FAST 2025): JSON Lines with `timestamp`
    in milliseconds, `input_length`, `output_length`, and `hash_ids` of its 512-token blocks.

    Equal hash ids become equal tokens, so prefixes are shared as they were.

    Raises:
        DataError: A line is no such record; all are named.
    """
    prompts, times_s, problems = [], [], []
    for number, line in enumerate(_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = msgspec.json.decode(line, type=_TraceLine)
        except (msgspec.DecodeError, RecursionError) as error:
            problems.append(f"{path}: line {number}: {error}")
            continue
        length, hashes = record.input_length, record.hash_ids or [number]
        ids: list[int] = []
        for place in range(-(-length // MOONCAKE_BLOCK_TOKENS)):
            # A block beyond the listed ones belongs to this request alone.
            key = [hashes[place]] if place < len(hashes) else [number, place, 1]
            rng = np.random.default_rng(key)
            ids += _token_ids(rng, MOONCAKE_BLOCK_TOKENS, workload)
        prompts.append(Prompt(ids[: max(length, 1)], max(record.output_length, 1)))
        times_s.append(record.timestamp / 1000)
    if problems:
        raise DataError(problems[:20])
    order = np.argsort(times_s, kind="stable")
    return [prompts[place] for place in order], [times_s[place] for place in order]


def read_prompts(path: Path | None) -> list[Messages]:
    """Prompts from JSON Lines: per line a list of chat messages, or an object that holds one as
    `prompt` or `messages`. Without a file, a few built-in questions.

    Raises:
        DataError: A line holds none; all such lines are named.
    """
    if path is None:
        return [[{"role": "user", "content": text}] for text in DEFAULT_PROMPTS]
    prompts, problems = [], []
    for number, line in enumerate(_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            problems.append(f"{path}: line {number}: not valid JSON: {error}")
            continue
        if isinstance(value, dict):
            value = value.get("prompt", value.get("messages"))
        if isinstance(value, str):
            value = [{"role": "user", "content": value}]
        if not _is_messages(value):
            problems.append(
                f"{path}: line {number}: expected a list of messages with role and content"
            )
            continue
        prompts.append([{"role": m["role"], "content": m["content"]} for m in value])
    if not prompts and not problems:
        problems = [f"{path}: holds no prompt"]
    if problems:
        raise DataError(problems[:20])
    return prompts


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: byte {error.start}: not UTF-8 text") from None


def is_text(value: Any) -> bool:
    """Whether it can be sent: JSON can name half of a surrogate pair, which UTF-8 cannot hold."""
    return isinstance(value, str) and not any("\ud800" <= one <= "\udfff" for one in value)


def _is_messages(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(
            isinstance(message, dict)
            and is_text(message.get("role"))
            and is_text(message.get("content"))
            for message in value
        )
    )


DEFAULT_PROMPTS: tuple[str, ...] = (
    "Write a short greeting.",
    "What should I check when a printer does not answer?",
    "Explain in two sentences what a load test is for.",
    "List three colours.",
    "Why does a cache make a program faster?",
    "Give a polite answer to a customer whose parcel is late.",
    "Summarise the water cycle.",
    "Name a river and the country it flows through.",
)

"""The limits of one key: requests and tokens per minute, and requests at once."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from serving.middleware.asgi import RETRY_AFTER_S, Scope
from serving.middleware.body import Refusal
from serving.middleware.exchange import Exchange
from serving.middleware.key_file import Key
from serving.middleware.keys import Use
from serving.middleware.metrics import KEY_TOKENS

CHARACTERS_PER_TOKEN = 4
"""For an answer whose tokens the server does not report, since the client left before its end."""
MEDIA = re.compile(rb'"(?:data:[^"]*|data"\s*:\s*"[^"]*)"')
"""Images and audio of a prompt in base64. A model does not read it as text."""


@contextmanager
def admitted(key: Key | None, use: Use | None) -> Iterator[None]:
    """Count one request of a key from its header to the end of its answer.

    Raises:
        Refusal: The key has asked for too much (429).
    """
    if key is None or use is None:
        yield
        return
    now_s = time.monotonic()
    if key.max_concurrency is not None and use.in_flight >= key.max_concurrency:
        raise _too_much(key, f"{key.max_concurrency} requests at once", 1.0)
    if use.requests is not None and (wait_s := use.requests.wait_s(1, now_s)) > 0:
        raise _too_much(key, f"{key.requests_per_minute:g} requests per minute", wait_s)
    # An answer's length is not known before: a request is admitted while the level is above zero,
    # and its tokens are taken afterwards.
    if use.tokens is not None and (wait_s := use.tokens.wait_s(1, now_s)) > 0:
        raise _too_much(key, f"{key.tokens_per_minute:g} tokens per minute", wait_s)
    if use.requests is not None:
        use.requests.take(1)
    use.in_flight += 1
    try:
        yield
    finally:
        use.in_flight -= 1


def num_prompts(fields: dict[str, Any], lists: Sequence[str]) -> int:
    """Return the prompts of a request: a list of texts or of lists of token ids has several.

    Args:
        lists: The fields that may hold one; the longest counts.
    """
    found = 1
    for name in lists:
        prompt = fields.get(name)
        if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int):
            found = max(found, len(prompt))
    return found


def require_room(running: int, number: int, most: int) -> None:
    """Check the limit of requests in progress, of which `running` are, for `number` more.

    Raises:
        Refusal: There is no room now (503), or there never is (400).
    """
    if number > most:
        raise Refusal(400, f"The request has {number} prompts; at most {most}.")
    if running + number > most:
        raise Refusal(
            503, f"{running} requests are in progress; at most {most}.",
            kind="ServiceUnavailableError", retry_after_s=RETRY_AFTER_S,
        )  # fmt: skip


@contextmanager
def admitted_prompts(key: Key | None, use: Use | None, number: int) -> Iterator[None]:
    """Count each further prompt of a request that is admitted like a request of its own.

    Raises:
        Refusal: The key may not ask for so many at once (429), or never may (400).
    """
    if key is None or use is None or number == 1:
        yield
        return
    more, most = number - 1, key.max_concurrency
    if most is not None and number > most:
        raise Refusal(
            400, f"The request has {number} prompts; the key {key.name!r} may ask {most} at once."
        )
    if most is not None and use.in_flight + more > most:
        raise _too_much(key, f"{most} requests at once", 1.0)
    if use.requests is not None:
        use.requests.take(more)
    use.in_flight += more
    try:
        yield
    finally:
        use.in_flight -= more


def take_tokens(exchange: Exchange, use: Use | None, body: bytes) -> None:
    """Take an answer's tokens from the level of its key."""
    # A client that leaves before its answer begins has made the engine compute its prompt.
    has_left = exchange.status == 0 and exchange.client_left
    if use is None or use.tokens is None or not (exchange.status == 200 or has_left):
        return
    tokens = _whole_usage(exchange.scope)
    if tokens is None:
        tokens = exchange.num_tokens
        if tokens is None or not exchange.is_done:  # a stream may report its prompt at first
            text = MEDIA.sub(b"", body)
            estimate = len(text) // CHARACTERS_PER_TOKEN + exchange.num_events
            tokens = max(tokens or 0, estimate)
    use.tokens.take(tokens)
    KEY_TOKENS.labels(key=exchange.key_name).inc(tokens)


def _whole_usage(scope: Scope) -> int | None:
    """Return the tokens of prompt and answer, if vLLM has left them for middlewares at the end.

    It does so for chats and completions, also for a stream that reports no usage to its client. To
    ask for a report would change the stream: vLLM moves `system_fingerprint` into it.
    """
    metadata = scope.get("state", {}).get("request_metadata")
    usage = getattr(metadata, "final_usage_info", None)
    return None if usage is None else int(usage.total_tokens)


def _too_much(key: Key, limit: str, wait_s: float) -> Refusal:
    return Refusal(
        429, f"The key {key.name!r} has reached its limit of {limit}.", kind="RateLimitError",
        code="rate_limit_exceeded", retry_after_s=wait_s,
    )  # fmt: skip

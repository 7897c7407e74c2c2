"""The body of a request: read once within its limits, checked, and given to vLLM again."""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from serving.middleware.asgi import RETRY_AFTER_S, Message, Receive, Scope, header
from serving.middleware.key_file import Key
from serving.middleware.settings import Settings

MAX_READING = 32
"""Bodies of the largest size that may be in memory before they are whole."""
MAX_LEVELS = 200
"""Levels of lists and objects in a body; parsers of JSON stop at a level that depends on the stack
around them."""
OPEN, CLOSE = b"[{", b"]}"
STEPS = bytes.maketrans(OPEN + CLOSE, b"\x01\x01\xff\xff")
OTHER_BYTES = bytes(set(range(256)) - set(OPEN + CLOSE))

WHOLE_NUMBER = re.compile(r"[+-]?[0-9]{1,18}")


class Refusal(Exception):
    """A request that is refused before vLLM sees it."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "BadRequestError",
        code: str | None = None,
        param: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.code = code
        self.param = param
        self.retry_after_s = retry_after_s


@dataclass
class Reading:
    """The bodies that are being read now. A request counts as in progress only when its body is
    whole, so `max_in_flight` does not limit them."""

    num_bodies: int = 0
    num_bytes: int = 0

    def has_room(self, size: int, most: int) -> bool:
        """Return whether a body may have `size` bytes now.

        A body that keeps to an equal share of `most` always may: large or slow bodies of others do
        not keep it out. So all bodies together have at most twice `most`.
        """
        return self.num_bytes <= most or size * self.num_bodies <= most


async def read_body(scope: Scope, receive: Receive, settings: Settings, reading: Reading) -> bytes:
    """Return the whole body.

    Raises:
        Refusal: The body is larger than `max_body_bytes` (413), has not come within
            `body_timeout_s` (408), or has no room next to the others that come now (503).
        ConnectionError: The client left.
    """
    limit = settings.max_body_bytes
    too_many = Refusal(
        503, "The server reads too many large bodies at once; ask again.",
        kind="ServiceUnavailableError", retry_after_s=RETRY_AFTER_S,
    )  # fmt: skip
    too_large = Refusal(
        413, f"The body is larger than {limit} bytes.", kind="RequestTooLargeError",
        code="request_too_large",
    )  # fmt: skip
    length = header(scope, b"content-length")
    if length is not None and length.isdecimal() and int(length) > limit:
        raise too_large
    parts, size = [], 0
    reading.num_bodies += 1
    try:
        async with asyncio.timeout(settings.body_timeout_s):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ConnectionError
                part = message.get("body", b"")
                size += len(part)
                reading.num_bytes += len(part)
                if size > limit:
                    raise too_large
                if not reading.has_room(size, MAX_READING * limit):
                    raise too_many
                parts.append(part)
                if not message.get("more_body", False):
                    return b"".join(parts)
    except TimeoutError:
        raise Refusal(
            408, f"The body has not come within {settings.body_timeout_s:g} s.",
            kind="RequestTimeoutError",
        ) from None  # fmt: skip
    finally:
        reading.num_bodies -= 1
        reading.num_bytes -= size


def replayed(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that gives `body` first, and then what the connection gives."""
    is_given = False

    async def again() -> Message:
        nonlocal is_given
        if is_given:
            return await receive()
        is_given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


def parse_body(body: bytes) -> dict[str, Any] | None:
    """Return the fields of a request; None if it is not a JSON object, which vLLM then refuses in
    its own words.

    Raises:
        Refusal: The body is nested too deeply, is not text, or has a number that Python does not
            read; vLLM's answer to that is not an OpenAI error.
    """
    if num_levels(body) > MAX_LEVELS:
        raise Refusal(400, f"The body is nested too deeply; at most {MAX_LEVELS} levels.")
    try:
        values = json.loads(body)
    except RecursionError:  # UTF-16, in which a character may hold the byte of a quotation mark
        raise Refusal(400, "The body is nested too deeply.") from None
    except UnicodeDecodeError:
        raise Refusal(400, "The body is not text in UTF-8.") from None
    except json.JSONDecodeError:
        return None
    except ValueError:
        raise Refusal(400, "The body has a number of too many digits.") from None
    return values if isinstance(values, dict) else None


def num_levels(body: bytes) -> int:
    """Return how deep lists and objects of a JSON document lie in one another; a number up to
    MAX_LEVELS may be too high."""
    num_open = sum(body.count(bracket) for bracket in OPEN)
    if num_open <= MAX_LEVELS:
        return num_open
    # Without escapes, every quotation mark begins or ends a string.
    parts = body.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')
    steps = b"".join(parts[::2]).translate(STEPS, OTHER_BYTES)
    return max(accumulate(memoryview(steps).cast("b")), default=0)


def check_fields(fields: dict[str, Any], settings: Settings, key: Key | None) -> None:
    """Check a request against the limits of the server and of its key.

    Raises:
        Refusal: A limit is passed or a priority would be lost (400), or the key may not use the
            model (403).
    """
    for name in ("chat_template", "mm_processor_kwargs"):
        if fields.get(name) is not None:
            raise Refusal(400, f"{name} in a request is not accepted.", param=name)
    for name in ("n", "best_of"):
        _require_at_most(settings.max_n, name, fields.get(name))
    if settings.max_tokens is not None:
        for name in ("max_tokens", "max_completion_tokens", "max_output_tokens"):
            _require_at_most(settings.max_tokens, name, fields.get(name))
    if key is not None and key.priority and fields.get("use_beam_search"):
        # vLLM 0.32 computes the requests of a beam search with priority 0.
        raise Refusal(
            400, f"The key {key.name!r} has a priority, which a beam search would not keep.",
            param="use_beam_search",
        )  # fmt: skip
    model = fields.get("model")
    # Who may use a name may use each version of it.
    names = {str(model), str(model).partition("@")[0]}
    if key is not None and key.models is not None and not names & set(key.models):
        raise Refusal(
            403, f"The key {key.name!r} may not use the model {model!r}.",
            kind="PermissionDeniedError", code="model_not_allowed", param="model",
        )  # fmt: skip


def _require_at_most(most: int, name: str, value: Any) -> None:
    """Check a whole number, in every form that vLLM would take for one: `5`, `5.0` or `"5"`."""
    if value is None:
        return
    is_number = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    if not is_number and not (isinstance(value, str) and WHOLE_NUMBER.fullmatch(value)):
        raise Refusal(400, f"{name} is {value!r:.40}; expected a whole number.", param=name)
    if int(value) > most:
        raise Refusal(400, f"{name} is {value!r:.40}; at most {most}.", param=name)

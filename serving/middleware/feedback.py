"""`POST /v1/feedback`: a client's verdict on an answer, and the answer that it wanted instead."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any

from serving.middleware.asgi import answer
from serving.middleware.body import Refusal, parse_body
from serving.middleware.exchange import Exchange
from serving.middleware.key_file import Key
from serving.middleware.keys import Keys
from serving.middleware.limits import admitted
from serving.middleware.recording import Recorder

FEEDBACK = "/v1/feedback"
MAX_ID_CHARACTERS = 256
FIELDS = ("id", "label", "answer", "comment")


async def answer_feedback(
    exchange: Exchange,
    recorder: Recorder,
    keys: Keys,
    key: Key | None,
    read_body: Callable[[Exchange], Awaitable[bytes]],
) -> None:
    """Record feedback, within the limits of a key.

    The request that it names may lie in the records of another process, so `tuneline data collect`
    joins the two.

    Raises:
        Refusal: A field is unknown or has another type, or there is neither a label nor an answer.
    """
    with admitted(key, None if key is None else keys.use(key)):
        body = await read_body(exchange)
    fields = _checked(parse_body(body))
    recorder.note({
        "feedback": fields["id"],
        "time": round(time.time(), 3),
        "key": exchange.key_name,
        **{name: fields[name] for name in FIELDS[1:] if fields.get(name) is not None},
    })  # fmt: skip
    await answer(exchange.send, 202, {"object": "feedback", "id": fields["id"]})


def _checked(fields: dict[str, Any] | None) -> dict[str, Any]:
    if fields is None:
        raise Refusal(400, "The body is not a JSON object.")
    if unknown := sorted(set(fields) - set(FIELDS)):
        raise Refusal(
            400, f"Unknown field {unknown[0]!r:.60}; expected id, and label or answer.",
            param=unknown[0][:60],
        )  # fmt: skip
    given = fields.get("id")
    if not isinstance(given, str) or not 0 < len(given) <= MAX_ID_CHARACTERS:
        raise Refusal(
            400, "id does not name a request; expected the answer's x-request-id or id.", param="id"
        )  # fmt: skip
    if not isinstance(fields.get("label"), bool | None):
        raise Refusal(400, "label is neither true (good) nor false.", param="label")
    for name in ("answer", "comment"):
        value = fields.get(name)
        if value is not None and (not isinstance(value, str) or not value.strip()):
            raise Refusal(400, f"{name} is not a text.", param=name)
    if fields.get("label") is None and fields.get("answer") is None:
        raise Refusal(400, "Neither label nor answer is given.", param="label")
    return fields

"""`/v1/models` and `/v1/models/NAME`. vLLM's own list names folders of the server."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from serving.middleware.asgi import App, Message, Receive, Scope, Send, answer
from serving.middleware.body import Refusal
from serving.middleware.routes import MODELS

Edit = Callable[[list[dict[str, Any]]], list[dict[str, Any]]]


async def answer_models(
    app: App, scope: Scope, receive: Receive, send: Send, edit: Edit | None = None
) -> None:
    """Answer with vLLM's list without paths, or with one entry of the list.

    Args:
        edit: Returns the entries that clients see, from vLLM's.

    Raises:
        Refusal: There is no such model (404).
    """
    sent: list[Message] = []

    async def keep(message: Message) -> None:
        sent.append(message)

    path = scope["path"]
    inner = {**scope, "method": "GET", "path": MODELS, "raw_path": MODELS.encode()}
    await app(inner, receive, keep)
    start = next(message for message in sent if message["type"] == "http.response.start")
    content = b"".join(message.get("body", b"") for message in sent)
    if start["status"] != 200:
        await send(start)
        await send({"type": "http.response.body", "body": content})
        return
    page: dict[str, Any] = json.loads(content)
    if edit is not None:
        page["data"] = edit(page["data"])
    for entry in page["data"]:
        entry["root"] = entry["id"]
    if path == MODELS:
        await answer(send, 200, page)
        return
    name = path.removeprefix(f"{MODELS}/")
    entry = next((entry for entry in page["data"] if entry["id"] == name), None)
    if entry is None:
        raise Refusal(
            404, f"The model {name!r} does not exist; GET {MODELS} lists the names.",
            kind="NotFoundError", code="model_not_found", param="model",
        )  # fmt: skip
    await answer(send, 200, entry)

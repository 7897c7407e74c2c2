"""The tokens and log-probabilities of a recorded answer, where the server sends them. Pure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from loadtest.client.http1 import Framer, ProtocolError
from loadtest.client.sse import DONE
from loadtest.client.sse_decoder import SseDecoder

TOKEN_ID = "token_id:"  # noqa: S105 (how vLLM writes an id in place of a text)


def greedy_answer(reads: Sequence[bytes]) -> dict[str, Any]:
    """Return an answer as JSON: `text`, `finish_reason`, and where the server says them
    `prompt_token_ids`, `token_ids`, `logprobs` and `top_logprobs`."""
    texts: list[str] = []
    token_ids: list[int] = []
    logprobs: list[float] = []
    tops: list[dict[str, float]] = []
    found: dict[str, Any] = {"finish_reason": None, "prompt_token_ids": None}
    for event in _events(reads):
        found["prompt_token_ids"] = event.get("prompt_token_ids") or found["prompt_token_ids"]
        choices = event.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices else {}
        texts.append(str((choice.get("delta") or {}).get("content") or ""))
        found["finish_reason"] = choice.get("finish_reason") or found["finish_reason"]
        token_ids += choice.get("token_ids") or []
        for step in (choice.get("logprobs") or {}).get("content") or []:
            logprobs.append(float(step["logprob"]))
            tops.append(
                {
                    one["token"].removeprefix(TOKEN_ID): float(one["logprob"])
                    for one in step.get("top_logprobs") or []
                    if str(one["token"]).startswith(TOKEN_ID)
                }
            )
    found["text"] = "".join(texts)
    if token_ids and len(logprobs) == len(token_ids):
        found |= {"token_ids": token_ids, "logprobs": logprobs, "top_logprobs": tops}
    elif token_ids:
        found["token_ids"] = token_ids
    return found


def _events(reads: Sequence[bytes]) -> list[dict[str, Any]]:
    framer, decoder = Framer(), SseDecoder()
    pieces: list[bytes] = []
    try:
        for read in reads:
            framer.feed(read, pieces)
    except ProtocolError:
        return []
    found = []
    for payload in decoder.feed(b"".join(pieces)):
        if payload.strip() == DONE:
            break
        try:
            event = json.loads(payload)
        except (ValueError, RecursionError):
            break
        if isinstance(event, dict):
            found.append(event)
    return found

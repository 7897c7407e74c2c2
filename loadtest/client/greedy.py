"""The tokens and log-probabilities of a recorded answer, if the server sends them. Pure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from operator import index
from typing import Any

from loadtest.client.answer import DONE
from loadtest.client.http1 import Framer, ProtocolError
from loadtest.client.sse_decoder import SseDecoder

TOKEN_ID = "token_id:"  # noqa: S105 (how vLLM writes an id in place of a text)


def greedy_answer(reads: Sequence[bytes]) -> dict[str, Any]:
    """Return an answer as JSON: `text`, `finish_reason`, and if the server says them
    `prompt_token_ids`, `token_ids`, `logprobs` and `top_logprobs`. An answer with a broken value
    among these has only its text."""
    texts: list[str] = []
    token_ids: list[int] = []
    logprobs: list[float] = []
    tops: list[dict[str, float]] = []
    is_exact = True
    found: dict[str, Any] = {"finish_reason": None, "prompt_token_ids": None}
    for event in _events(reads):
        found["prompt_token_ids"] = event.get("prompt_token_ids") or found["prompt_token_ids"]
        choices = event.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices else {}
        texts.append(str((choice.get("delta") or {}).get("content") or ""))
        found["finish_reason"] = choice.get("finish_reason") or found["finish_reason"]
        try:
            token_ids += [index(one) for one in choice.get("token_ids") or []]
            for step in (choice.get("logprobs") or {}).get("content") or []:
                logprobs.append(float(step["logprob"]))
                tops.append(_top(step.get("top_logprobs") or []))
        except (AttributeError, KeyError, TypeError, ValueError):
            is_exact = False  # such as a log-probability that is null
    found["text"] = "".join(texts)
    if not is_exact:
        return found
    if token_ids and len(logprobs) == len(token_ids):
        found |= {"token_ids": token_ids, "logprobs": logprobs, "top_logprobs": tops}
    elif token_ids:
        found["token_ids"] = token_ids
    return found


def _top(steps: list[Any]) -> dict[str, float]:
    """Return the log-probabilities of a step's likeliest tokens, by id."""
    named = [(str(one["token"]), one["logprob"]) for one in steps]
    return {
        str(int(token.removeprefix(TOKEN_ID))): float(value)
        for token, value in named
        if token.startswith(TOKEN_ID)
    }


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

"""Bytes that servers in use send, as their code or documents have them (docs/servers.md)."""

from __future__ import annotations

import json
from dataclasses import dataclass


def event(document: object) -> bytes:
    return b"data: " + json.dumps(document).encode() + b"\n\n"


def delta(finish: str | None = None, **fields: object) -> bytes:
    return event({**BASE, "choices": [{"index": 0, "delta": fields, "finish_reason": finish}]})


def used(**more: object) -> bytes:
    return event({**BASE, "choices": [], "usage": {**USED, **more}})


def chunk(text: str | None = None, finish: str | None = None, **more: object) -> bytes:
    choice = {"index": 0, "delta": {} if text is None else {"content": text}}
    return event({**BASE, "choices": [{**choice, "finish_reason": finish}], **more})


BASE = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
ROLE = event({**BASE, "choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
WORDS = chunk("one ") + chunk("two")
FINISH = chunk(finish="stop")
USED = {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}
USAGE = event({**BASE, "choices": [], "usage": USED})
DONE = b"data: [DONE]\n\n"
WHOLE = ROLE + WORDS + FINISH + USAGE + DONE
KEEP_ALIVE = b": keep-alive\n\n"


@dataclass(frozen=True)
class Quirk:
    """A server's answer to a streamed chat request."""

    body: bytes
    error: str | None = None
    """The class of failure; None for a whole answer of three tokens."""
    says: str = ""
    """A part of the message."""
    status: int = 200
    kind: str = "text/event-stream"
    is_cut: bool = False
    """The connection ends without the last chunk."""
    num_events: int = 2
    """Events with text."""
    without_done: bool = False
    num_cached: int | None = None
    """Prompt tokens from a cache, by the usage."""


def refusal(status: int, document: object, error: str, says: str) -> Quirk:
    body = json.dumps(document).encode()
    return Quirk(body, error, says, status, "application/json", num_events=0)


TGI_LIMIT = "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096"
LLAMA_LIMIT = "request (9412 tokens) exceeds the available context size (8192 tokens)"
VLLM_LIMIT = "This model's maximum context length is 64 tokens. However, your prompt contains 90"
UNEXPECTED = "Unexpected endpoint or method. (POST /chat/completions)"

QUIRKS = {
    "vllm-error-event": Quirk(
        ROLE
        + WORDS
        + event({"error": {"message": "Internal server error", "type": "x", "code": 500}})
        + DONE,
        "error_event",
        "Internal server error",
    ),
    "vllm-context": refusal(
        400,
        {"error": {"message": VLLM_LIMIT, "type": "BadRequestError", "param": None, "code": 400}},
        "context_exceeded",
        "maximum context length",
    ),
    "vllm-reasoning": Quirk(
        delta(role="assistant", content="")
        + delta(reasoning="hm")
        + chunk("two")
        + FINISH
        + USAGE
        + DONE
    ),
    "vllm-keep-alive": Quirk(KEEP_ALIVE + ROLE + KEEP_ALIVE * 2 + WORDS + FINISH + USAGE + DONE),
    "vllm-repetition": Quirk(
        ROLE
        + WORDS
        + chunk(finish="repetition")
        + event({**BASE, "choices": [], "usage": USED, "metrics": {"time_to_first_token": 0.1}})
        + DONE
    ),
    "sglang-null-fields": Quirk(
        b"".join(
            delta(role=None, content=content, reasoning_content=thought, tool_calls=None)
            for content, thought in (("", None), (None, "hm"), ("two", None))
        )
        + FINISH
        + used(prompt_tokens_details=None, reasoning_tokens=1)
        + DONE
    ),
    "vllm-abort": Quirk(
        ROLE + WORDS + chunk(finish="abort") + USAGE + DONE, "aborted", "gave the answer up"
    ),
    "sglang-extension-event": Quirk(
        ROLE
        + WORDS
        + FINISH
        + event({**BASE, "choices": [], "sglext": {"cached_tokens_details": {"device": 4}}})
        + USAGE
        + DONE
    ),
    "sglang-error-event": Quirk(
        ROLE + event({"error": {"object": "error", "message": "too long", "code": 400}}) + DONE,
        "error_event",
        "too long",
        num_events=0,
    ),
    "tgi-no-done": Quirk(ROLE + WORDS + FINISH + USAGE, without_done=True),
    "tgi-text-error": Quirk(
        event({"error": TGI_LIMIT, "error_type": "validation"}),
        "error_event",
        "must be <= 4096",
        num_events=0,
    ),
    "tgi-keep-alive": Quirk(
        b":\n\n"
        + chunk("one ", usage=None)
        + b":\n\n"
        + chunk("two", usage=None)
        + FINISH
        + USAGE
        + DONE
    ),
    "llamacpp-ping": Quirk(
        b":\n\n" * 3
        + delta(role="assistant", content=None)
        + WORDS
        + FINISH
        + used(prompt_tokens_details={"cached_tokens": 4})
        + DONE,
        num_cached=4,
    ),
    "llamacpp-progress": Quirk(
        b"".join(
            event(
                {
                    **BASE,
                    "choices": [{"index": 0, "delta": {"role": "assistant", "content": None}}],
                    "prompt_progress": {"total": 5, "cache": 0, "processed": done, "time_ms": 9},
                }
            )
            for done in (2, 5)
        )
        + WHOLE
    ),
    "llamacpp-context": refusal(
        400,
        {"error": {"code": 400, "message": LLAMA_LIMIT, "type": "exceed_context_size_error"}},
        "context_exceeded",
        "available context size",
    ),
    "llamacpp-timings": Quirk(
        ROLE
        + WORDS
        + chunk(finish="stop", timings={"prompt_n": 5, "predicted_n": 3, "predicted_ms": 12.5})
        + USAGE
        + DONE
    ),
    "ollama-lost-error": Quirk(
        chunk("one ")
        + event({**BASE, "model": "", "choices": [{"index": 0, "delta": {"content": ""}}]}),
        "truncated_stream",
        "no [DONE] after 1 token events",
        num_events=1,
    ),
    "ollama-reasoning": Quirk(
        delta(role="assistant", content="", reasoning="hm")
        + delta(content="two")
        + FINISH
        + USAGE
        + DONE
    ),
    "ollama-split-token": Quirk(
        b"".join(
            delta(reasoning=thought) + delta(content=text)
            for thought, text in (("a", "b"), ("c", "d"))
        )
        + FINISH
        + USAGE
        + DONE,
        num_events=4,
    ),
    "lmstudio-twofold-error": Quirk(
        ROLE + event({"error": {"message": "Compute error."}, "message": "Compute error."}),
        "error_event",
        "Compute error.",
        num_events=0,
    ),
    "lmstudio-error-200": refusal(
        200, {"error": UNEXPECTED}, "not_a_stream", "Unexpected endpoint"
    ),
    "trtllm-cut": Quirk(ROLE + WORDS, "truncated_stream", "after 2 token events", is_cut=True),
    "trtllm-empty-token": Quirk(
        (ROLE + chunk("one ") + chunk("") + chunk("two") + FINISH).replace(b"}\n\n", b"} \n\n")
        + used(prompt_tokens_details={"cached_tokens": 0})
        + DONE,
        num_cached=0,
    ),
    "litellm-keep-alive": Quirk(b": ping\n\n" * 3 + WHOLE),
    "litellm-ping": Quirk(
        b'event: ping\ndata: {"type": "ping"}\n\n'
        + ROLE
        + b'event: ping\ndata: {"type": "ping"}\n\n'
        + WORDS
        + FINISH
        + USAGE
        + DONE
    ),
    "litellm-empty-stream": Quirk(b"", "not_a_stream", num_events=0),
    "triton-detail": refusal(
        500, {"detail": "No attached inference engine"}, "http_500", "No attached inference engine"
    ),
    "triton-role-first": Quirk(WHOLE),
    "openrouter-comments": Quirk(b": OPENROUTER PROCESSING\n\n" * 3 + WHOLE),
    "openrouter-finish-error": Quirk(
        WORDS
        + event(
            {
                **BASE,
                "error": {"code": 502, "message": "Provider disconnected"},
                "choices": [{"index": 0, "delta": {"content": ""}, "finish_reason": "error"}],
            }
        ),
        "error_event",
        "Provider disconnected",
    ),
    "azure-filter-event": Quirk(
        event({"choices": [], "id": "", "model": "", "object": "", "prompt_filter_results": [{}]})
        + WHOLE
    ),
    "deepseek-cache": Quirk(
        ROLE + WORDS + FINISH + used(prompt_cache_hit_tokens=4, prompt_cache_miss_tokens=1) + DONE,
        num_cached=4,
    ),
    "moonshot-usage": Quirk(
        ROLE
        + WORDS
        + event(
            {
                **BASE,
                "choices": [
                    {
                        "index": 0,
                        "delta": {},
                        "finish_reason": "stop",
                        "usage": {**USED, "cached_tokens": 4},
                    }
                ],
            }
        )
        + DONE,
        num_cached=4,
    ),
    "gateway-float-counts": Quirk(
        ROLE
        + WORDS
        + FINISH
        + event({"choices": [], "usage": {"prompt_tokens": 5.0, "completion_tokens": 3.0}})
        + b"data: [DONE] \n\n"
    ),
}

"""Fields of OpenAI's API that vLLM drops, or reads as something else, without a word.

A client that sends one of them would take the answer for another: a conversation without its
history, a text in place of speech, the vector of other tokens. Fields that only save money or time
have no row.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from serving.middleware.body import Refusal

HOSTED = frozenset({
    "apply_patch", "computer", "computer_use_preview", "file_search", "image_generation",
    "local_shell", "programmatic_tool_calling", "shell", "tool_search", "web_search",
})  # fmt: skip
"""Types of tools that run at OpenAI. vLLM shows the model none of them."""
NO_SPEECH = "The server answers with text only."
NO_MODERATION = "The server moderates nothing."
ONLY_TEXTS = (
    "Expected texts. Clients send ids of OpenAI's tokenizer here, which are other tokens of this "
    "model; set check_embedding_ctx_length=False in LangChain. /pooling takes ids of this model."
)


def _is_given(value: Any) -> bool:
    return value not in (None, False, [], "")


def _has_audio(value: Any) -> bool:
    return isinstance(value, list) and "audio" in value


def _is_hosted(value: Any) -> bool:
    tools = value if isinstance(value, list) else []
    kinds = [tool.get("type") for tool in tools if isinstance(tool, dict)]
    return any(isinstance(kind, str) and _plain(kind) in HOSTED for kind in kinds)


def _is_token_ids(value: Any) -> bool:
    """Return whether an input is a list of ids, or a list of such lists."""
    return isinstance(value, list) and any(isinstance(one, int | list) for one in value)


def _plain(kind: str) -> str:
    """Return a type of tool without a date: `web_search_2025_08_26` is `web_search`."""
    return kind.rstrip("0123456789_")


LOST: dict[str, dict[str, tuple[Callable[[Any], bool], str]]] = {
    "/v1/chat/completions": {
        "audio": (_is_given, NO_SPEECH),
        "modalities": (_has_audio, NO_SPEECH),
        "functions": (_is_given, "Use tools: functions is the older form."),
        "function_call": (_is_given, "Use tool_choice: function_call is the older form."),
        "web_search_options": (_is_given, "The server does not search the web."),
        "moderation": (_is_given, NO_MODERATION),
    },
    "/v1/responses": {
        "background": (_is_given, "The server keeps no responses: ask without background."),
        "conversation": (
            _is_given, "The server keeps no conversations: send the earlier turns in input.",
        ),
        "moderation": (_is_given, NO_MODERATION),
        "tools": (_is_hosted, "A tool of this type runs at OpenAI; expected function tools."),
    },
    "/v1/embeddings": {"input": (_is_token_ids, ONLY_TEXTS)},
    "/v1/messages": {"mcp_servers": (_is_given, "The server calls no MCP servers.")},
}  # fmt: skip
"""By route and field: when the value's meaning is lost, and what to tell the client."""


def refuse_lost_fields(path: str, fields: dict[str, Any]) -> None:
    """Check that vLLM would not drop or misread a field that the answer needs.

    Raises:
        Refusal: It would (400).
    """
    for name, (is_lost, message) in LOST.get(path, {}).items():
        if is_lost(fields.get(name)):
            raise Refusal(400, f"{name}: {message}", code="unsupported_value", param=name)

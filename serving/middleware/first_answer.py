"""The first request, which the server asks itself before it opens its port.

vLLM says that it is ready when the weights are loaded. A model whose kernel the installed vLLM
lacks ends it at the first request.
"""

from __future__ import annotations

from typing import Any

from serving.middleware.access_log import say
from serving.middleware.asgi import App, Scope
from serving.middleware.inner import call_inner, words_of

FAILS = "the model cannot be served: its first request fails"
PROMPT = "a a a"
"""Several tokens: some models compute a prompt of one like a token of an answer."""
NUM_TOKENS = 2


async def why_no_answer(app: App, model: str, given: Scope, *, pools: bool) -> str | None:
    """Return why vLLM cannot answer a request, or None if it answers.

    A refusal (400 to 499) is an answer: vLLM does not know this request, and says so.

    Args:
        given: The parts of the scope that the server sets, and vLLM's key as `headers`.
        pools: The model gives vectors or scores in place of text.
    """
    fields: dict[str, Any] = {"model": model}
    if pools:
        path, fields["input"] = "/pooling", PROMPT
    else:
        path = "/v1/completions"
        fields |= {"prompt": PROMPT, "max_tokens": NUM_TOKENS, "ignore_eos": True}
    try:
        status, body = await call_inner(app, given, path, fields)
    except Exception as error:  # noqa: BLE001 (a boundary: vLLM's routes may raise anything)
        return f"{type(error).__name__}: {error}"
    if status == 200:
        return None
    said = words_of(body)
    if status >= 500:
        return f"status {status}: {said}"
    say(f"the first request, of the server itself, is refused with {status}: {said}")
    return None

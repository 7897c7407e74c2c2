"""Does the server answer as the trained model does? Through the network, with the openai client.

vLLM is asked for what it computed, not only for text: the token ids that it rendered the prompt to,
the ids of its greedy answer, and the log-probabilities of each and of its most likely rivals.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serving.config import ServedParityConfig
from tuneline.core.artifact import Artifact, Input
from tuneline.core.endpoint import Endpoint
from tuneline.core.errors import ServerError
from tuneline.core.messages import Messages, as_request
from tuneline.core.openai_client import first_choice, openai_client
from tuneline.core.parity import Parity, compare
from tuneline.core.parity_report import write_parity
from tuneline.core.progress import progress
from tuneline.core.reference import (
    Continuation,
    comparable_settings,
    read_reference,
    reference_noise,
)
from tuneline.core.server_words import text_of
from tuneline.core.tolerances import ARITHMETIC_TOLERANCES, Tolerances, add_tolerances

if TYPE_CHECKING:
    from openai import OpenAI

ROUNDING = 0.01
"""How far above 0 a log-probability may be by rounding, in nats; logits are far above."""
TOKEN_ID = "token_id:"  # noqa: S105 (how vLLM writes an id in place of a text)


def prove_served(
    config: ServedParityConfig,
    reference: Artifact,
    endpoint: Endpoint,
    out: Path,
    *,
    inputs: Sequence[Input] = (),
    dtype: str = "float32",
    weights: Tolerances | None = None,
    stated_weights: str | None = None,
) -> Artifact:
    """Send every prompt of the reference to a server and compare prompt ids, greedy answers and
    log-probabilities.

    Args:
        inputs: The served artifacts, for the manifest.
        dtype: The number format that the server computes in: float32, float16 or bfloat16. It
            sets the tolerances if `config` has none.
        weights: Tolerances for the rounding of the served weights, added to the arithmetic's.
        stated_weights: The number format of the served weights as the caller states it, because
            the server does not report it.

    Returns:
        An artifact of kind `parity` with `parity.json`; a failed verdict raises nothing.

    Raises:
        MissingError: The openai package is not installed.
        ServerError: The server cannot be reached, or does not report token ids as vLLM does.
    """
    parity = compare_served(config, reference, endpoint, dtype=dtype, weights=weights)
    return write_parity(
        out,
        parity.model_copy(update={"stated_weights": stated_weights}),
        _tolerances(config, dtype, weights),
        config={"form": "served", "model": endpoint.model, "concurrency": config.concurrency},
        inputs=[reference.as_input("reference"), *inputs],
    )


def compare_served(
    config: ServedParityConfig,
    reference: Artifact,
    endpoint: Endpoint,
    *,
    dtype: str = "float32",
    weights: Tolerances | None = None,
    num_prompts: int | None = None,
) -> Parity:
    """Return the comparison of a server's answers with the reference, without an artifact.

    Args:
        num_prompts: Send only so many, the first ones.
    """
    expected = read_reference(reference)[:num_prompts]
    settings = comparable_settings(reference)
    most = settings["max_new_tokens"]
    metrics = reference.manifest.metrics
    kwargs = metrics.get("chat_template_date_variable") or {}
    found: list[Continuation] = []
    with openai_client(endpoint, timeout_s=config.request_timeout_s) as client:

        def answer(continuation: Continuation) -> Continuation:
            return _answer(client, endpoint, continuation, kwargs, **settings)

        pool = ThreadPoolExecutor(config.concurrency)
        try:
            with progress("served parity", len(expected), "prompts") as advance:
                for continuation in pool.map(answer, expected):
                    require_whole(continuation, most, room_of(expected, most))
                    found.append(continuation)
                    advance(len(found))
        finally:
            pool.shutdown(cancel_futures=True)  # after an error, ask no further prompts
    return compare(
        "served", expected, found, _tolerances(config, dtype, weights),
        reference_noise=reference_noise(reference),
        template_date=metrics.get("chat_template_date"),
    )  # fmt: skip


def _tolerances(config: ServedParityConfig, dtype: str, weights: Tolerances | None) -> Tolerances:
    default = ARITHMETIC_TOLERANCES[dtype]
    return config.tolerances or (default if weights is None else add_tolerances(weights, default))


def _answer(
    client: OpenAI,
    endpoint: Endpoint,
    expected: Continuation,
    template_kwargs: dict[str, str],
    *,
    max_new_tokens: int,
    top_logprobs: int,
) -> Continuation:
    fields = proof_fields(
        expected, template_kwargs, max_new_tokens=max_new_tokens, top_logprobs=top_logprobs
    )
    response: Any = client.chat.completions.create(
        model=endpoint.model,
        messages=fields.pop("messages"),
        extra_body=fields,
    )
    first_choice(response, endpoint)
    return served_continuation(response.model_dump(), expected.messages, endpoint.url)


def proof_fields(
    expected: Continuation,
    template_kwargs: dict[str, str],
    *,
    max_new_tokens: int,
    top_logprobs: int,
) -> dict[str, Any]:
    """Return the fields of a chat request for a plain greedy answer with its log-probabilities."""
    return {
        "messages": as_request(expected.messages),
        # With the choice "none", the prompt shows the tools and the answer stays one text.
        **({"tools": expected.tools, "tool_choice": "none"} if expected.tools else {}),
        "temperature": 0,
        "max_tokens": max_new_tokens,
        "logprobs": True,
        "top_logprobs": top_logprobs,
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
        # The folder's generation_config may set one; the reference is plain greedy.
        "repetition_penalty": 1.0,
        # The recorded date, if the template takes one from the request.
        **({"chat_template_kwargs": template_kwargs} if template_kwargs else {}),
    }


def require_whole(found: Continuation, max_new_tokens: int, room: int) -> None:
    """Check that the server has not ended an answer before its limit.

    vLLM cuts an answer in silence where its context ends; the first tokens may still be right.

    Args:
        room: The tokens of the reference's longest prompt with the longest answer.

    Raises:
        ServerError: It has.
    """
    if found.finish_reason == "length" and len(found.token_ids) < max_new_tokens:
        end = len(found.prompt_token_ids) + len(found.token_ids)
        raise ServerError(
            f"the server cuts an answer off: its context ends at {end} tokens; expected room for "
            f"{room}, the reference's longest prompt and an answer",
            hint=f"Start the server with max_model_len={room} or more.",
        )


def room_of(reference: Sequence[Continuation], max_new_tokens: int) -> int:
    """Return the tokens of a reference's longest prompt with the longest answer."""
    return max(len(one.prompt_token_ids) for one in reference) + max_new_tokens


def served_continuation(response: dict[str, Any], messages: Messages, url: str) -> Continuation:
    """Return a chat completion of vLLM's, with token ids, as a Continuation.

    vLLM counts the stop token among an answer's tokens, as the reference does: with finish_reason
    `stop` and no `stop_reason` it was the tokenizer's own end token, else `stop_reason` is its id.

    Raises:
        ServerError: The server left out a field that the comparison needs.
    """
    choice = response["choices"][0]
    prompt_token_ids, token_ids = response.get("prompt_token_ids"), choice.get("token_ids")
    steps = (choice.get("logprobs") or {}).get("content")
    if prompt_token_ids is None or token_ids is None or steps is None:
        raise ServerError(
            f"{url}: the answer holds no token ids or no log-probabilities; expected those that "
            "vLLM gives for return_token_ids and logprobs",
            hint="Served parity needs vLLM behind the endpoint, with nothing in between that drops "
            "fields.",
        )
    if [step["token"] for step in steps] != [f"{TOKEN_ID}{token}" for token in token_ids]:
        raise ServerError(
            f"{url}: the log-probabilities are not those of the answer's tokens "
            f"({len(steps)} log-probabilities, {len(token_ids)} tokens)"
        )
    if any(step["logprob"] > ROUNDING for step in steps):
        raise ServerError(
            f"{url}: a log-probability is above 0; expected the model's own log-probabilities",
            hint="Start vLLM with --logprobs-mode raw_logprobs, its default.",
        )
    if choice["finish_reason"] not in ("stop", "length"):
        raise ServerError(
            f"{url}: an answer ended with {choice['finish_reason']!r}; expected stop or length"
        )
    return Continuation(
        messages=messages,
        prompt_token_ids=prompt_token_ids,
        token_ids=token_ids,
        logprobs=[step["logprob"] for step in steps],
        top_logprobs=[
            {
                int(entry["token"].removeprefix(TOKEN_ID)): entry["logprob"]
                for entry in step["top_logprobs"]
            }
            for step in steps
        ],
        text=text_of(choice["message"]["content"]),
        finish_reason=choice["finish_reason"],
    )

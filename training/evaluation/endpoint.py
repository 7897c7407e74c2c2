"""A model behind an OpenAI-compatible endpoint: greedy answers, and losses of expected answers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from training.data.row import Row
from training.evaluation.answerer import (
    Answerer,
    AnswerLoss,
    LossesAbsentError,
    OnReply,
    Question,
    Reply,
    ignore_reply,
)
from training.evaluation.local import DEFAULT_SETTINGS
from training.evaluation.tool_calls import parse_tool_calls, read_call
from tuneline.core.endpoint import Endpoint
from tuneline.core.environment import require
from tuneline.core.errors import ServerError
from tuneline.core.messages import as_request
from tuneline.core.openai_client import first_choice, openai_client, server_error, wait_for_turn
from tuneline.core.progress import logger, progress
from tuneline.core.server_words import names_context, text_of
from tuneline.models.template import TemplateSettings

REQUEST_TIMEOUT_S = 120.0
DEFAULT_CONCURRENCY = 16
"""Requests in flight without `batch_size`."""
PENALTY = "repetition_penalty"
"""vLLM takes a penalty from the model's generation_config.json, at temperature 0 too. Servers that
do not know the field and refuse it are asked without it."""
TEMPLATE_KWARGS = "chat_template_kwargs"
"""vLLM's field for variables of the chat template, left out if a server refuses it."""
AUTO = "tool_choice auto"
"""vLLM without a parser of tool calls refuses the choice "auto"; with "none" it shows the tools to
the model and returns the calls as text."""

Asked = TypeVar("Asked")
Found = TypeVar("Found")


def endpoint_answerer(
    endpoint: Endpoint,
    *,
    batch_size: int | None = None,
    tokenizer_folder: Path | None = None,
    settings: TemplateSettings = DEFAULT_SETTINGS,
    template_kwargs: Mapping[str, Any] = MappingProxyType({}),
) -> Answerer:
    """Return a model behind an endpoint, asked at temperature 0.

    After the first request that fails permanently no further request is sent.

    Args:
        batch_size: Requests in flight at once.
        tokenizer_folder: The served model's tokenizer, which the losses of expected answers need.
        settings: The settings of that tokenizer's chat template.
        template_kwargs: Variables of the server's chat template that requests set.
    """
    concurrency = batch_size or DEFAULT_CONCURRENCY

    def answer(
        questions: Sequence[Question], max_new_tokens: int, on_reply: OnReply = ignore_reply
    ) -> list[Reply]:
        return _answers(endpoint, concurrency, questions, max_new_tokens, template_kwargs, on_reply)

    def losses(rows: Sequence[Row]) -> list[AnswerLoss]:
        if tokenizer_folder is None:
            raise LossesAbsentError("the served model's tokenizer is not known; give --tokenizer")
        return _losses(endpoint, concurrency, rows, tokenizer_folder, settings)

    identity = [endpoint.url, endpoint.model, dict(template_kwargs)]
    return Answerer(answer, losses, identity, {"served_model": endpoint.model})


def _answers(
    endpoint: Endpoint,
    concurrency: int,
    questions: Sequence[Question],
    max_new_tokens: int,
    template_kwargs: Mapping[str, Any],
    on_reply: OnReply,
) -> list[Reply]:
    openai = require("openai", "train")
    fields: dict[str, Any] = {PENALTY: 1.0}
    if template_kwargs:
        fields[TEMPLATE_KWARGS] = dict(template_kwargs)
    refused: set[str] = set()

    def create(client: Any, question: Question, left_out: Set[str]) -> Any:
        options: dict[str, Any] = {"tools": list(question.tools)} if question.tools else {}
        if question.tools and AUTO in left_out:
            options["tool_choice"] = "none"
        options["extra_body"] = {name: fields[name] for name in fields if name not in left_out}
        return client.chat.completions.create(
            model=endpoint.model,
            messages=as_request(question.messages),
            temperature=0,
            max_tokens=max_new_tokens,
            **options,
        )

    def respond(client: Any, question: Question) -> Any:
        # Another thread may learn meanwhile what the server refuses; this request is judged by what
        # it was sent with.
        left_out = frozenset(refused)
        try:
            return create(client, question, left_out)
        except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
            named = [name for name in fields if name in str(error) and name not in left_out]
            if named:
                refused.update(named)
            elif question.tools and AUTO not in left_out:
                refused.add(AUTO)
            else:
                raise
        return respond(client, question)

    def ask(client: Any, question: Question) -> Reply:
        return _reply(first_choice(respond(client, question), endpoint), question)

    replies = ask_all(endpoint, concurrency, questions, ask, "evaluating", on_reply)
    if TEMPLATE_KWARGS in refused:
        logger.warning(
            "  %s refuses %s; its chat template had no %s",
            endpoint.url, TEMPLATE_KWARGS, ", ".join(template_kwargs),
        )  # fmt: skip
    return replies


def _reply(choice: Any, question: Question) -> Reply:
    # OpenAI's models decline in a field of their own, and then have no content.
    text = text_of(choice.message.content) or text_of(getattr(choice.message, "refusal", None))
    calls = tuple(
        read_call(call.function.name, call.function.arguments)
        for call in choice.message.tool_calls or ()
    )
    ended = choice.finish_reason in ("stop", "tool_calls")
    calls = calls or parse_tool_calls(text, question.tools)
    return Reply(text, "stop" if ended else "length", calls)


def _losses(
    endpoint: Endpoint,
    concurrency: int,
    rows: Sequence[Row],
    tokenizer_folder: Path,
    settings: TemplateSettings,
) -> list[AnswerLoss]:
    """Return losses by the log-probabilities of prompt tokens, which `echo` asks for."""
    from training.evaluation.local import rendered_rows
    from tuneline.models.chat import set_template
    from tuneline.models.stop_tokens import served_stop_ids
    from tuneline.models.tokenizer import load_tokenizer

    openai = require("openai", "train")
    tokenizer = load_tokenizer(tokenizer_folder)
    set_template(tokenizer, str(tokenizer_folder), settings)
    stop_ids = frozenset(served_stop_ids(tokenizer_folder, tokenizer))
    rendered = rendered_rows(tokenizer, rows, stop_ids)

    def ask(client: Any, row: tuple[list[int], int]) -> AnswerLoss:
        ids, num_prompt = row
        response = client.completions.create(
            model=endpoint.model, prompt=ids, echo=True, logprobs=1, max_tokens=1, temperature=0
        )
        logprobs = response.choices[0].logprobs.token_logprobs[num_prompt : len(ids)]
        if len(logprobs) != len(ids) - num_prompt:
            raise ValueError(f"{len(logprobs)} log-probabilities for {len(ids)} prompt tokens")
        return AnswerLoss(-sum(float(value) for value in logprobs), len(logprobs))

    # One request first: a server that cannot do it is not asked again.
    with openai_client(endpoint, timeout_s=REQUEST_TIMEOUT_S, extra="train") as client:
        try:
            ask(client, rendered[0])
        except (openai.BadRequestError, openai.NotFoundError, *_OTHER_SHAPE) as error:
            reason = getattr(error, "message", str(error))
            raise LossesAbsentError(
                f"the server gives no log-probabilities of prompt tokens ({reason})"
            ) from None
    return ask_all(endpoint, concurrency, rendered, ask, "scoring")


_OTHER_SHAPE = (ValueError, AttributeError, IndexError, TypeError)
"""Errors of reading a body of another shape, which the client passes on."""


def ask_all(
    endpoint: Endpoint,
    concurrency: int,
    asked: Sequence[Asked],
    ask: Callable[[Any, Asked], Found],
    doing: str,
    on_found: Callable[[int, Found], None] = lambda _index, _found: None,
    *,
    unit: str = "prompts",
) -> list[Found]:
    """Return the answer of an endpoint to each question; after the first failure none is sent.

    Args:
        concurrency: Requests in flight at once.
        ask: Sends one question by the openai client.
        doing: The work as its progress names it.
        on_found: Called with the index and the answer of each question.
        unit: The questions as messages name them.

    Raises:
        ServerError: Requests failed; the message counts them.
    """
    openai = require("openai", "train")
    failed = threading.Event()
    errors: list[ServerError] = []
    found: dict[int, Found] = {}

    def one(index: int) -> None:
        if failed.is_set():
            return
        try:
            found[index] = wait_for_turn(lambda: ask(client, asked[index]), failed)
            on_found(index, found[index])
        except (openai.OpenAIError, *_OTHER_SHAPE) as error:
            failed.set()
            errors.append(server_error(error, endpoint, REQUEST_TIMEOUT_S))
        except ServerError as error:
            failed.set()
            errors.append(error)

    with (
        openai_client(endpoint, timeout_s=REQUEST_TIMEOUT_S, extra="train") as client,
        ThreadPoolExecutor(concurrency, thread_name_prefix="evaluate") as pool,
        progress(doing, len(asked), unit) as advance,
    ):
        try:
            for done, _ in enumerate(pool.map(one, range(len(asked))), start=1):
                advance(done)
        finally:
            failed.set()  # on an interrupt, what still waits in the pool is not sent
    if errors:
        hint = errors[0].hint or f"Try: curl {endpoint.url}/models"
        if names_context(errors[0].message.encode()):
            hint = (
                "Try: a smaller evaluation.max_new_tokens, or leave out the longest rows. The "
                "context of the server holds prompt and answer."
            )
        raise ServerError(
            f"{endpoint.url}: {len(errors)} requests to model {endpoint.model!r} failed, "
            f"{len(found)} of {len(asked)} {unit} were answered; the first failure: "
            f"{errors[0].message.removeprefix(f'{endpoint.url}: ')}",
            hint=hint,
        )
    return [found[index] for index in range(len(asked))]

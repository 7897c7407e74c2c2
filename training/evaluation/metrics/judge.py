"""A judge: another model says which of two answers is better, in both orders."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

from training.config import EvaluationConfig, JudgeConfig
from training.evaluation.kept import Kept, ask_rest
from training.evaluation.metrics.metric import Scored
from training.evaluation.prediction import Prediction
from training.evaluation.tool_calls import answer_shown
from tuneline.core.artifact import canonical_digest
from tuneline.core.endpoint import Endpoint, read_key, split_url
from tuneline.core.environment import require
from tuneline.core.errors import ConfigError, ServerError
from tuneline.core.messages import Messages, bare_answer, calls_of, content_of
from tuneline.core.openai_client import (
    complete,
    first_choice,
    openai_client,
    server_error,
    wait_for_turn,
)
from tuneline.core.progress import logger, progress
from tuneline.core.server_words import text_of
from tuneline.core.statistics import mcnemar_p, mean_interval

MAX_CHARACTERS = 8000
"""Of each text in a question to the judge: the beginning of an answer; of a conversation, a quarter
from the beginning and the rest from the end."""

Choice = Literal["A", "B", "tie"]
Pair = tuple[Messages, str, str]
"""A prompt, the first answer and the second answer."""

INSTRUCTION = """Two assistants answered the same conversation. {criteria}
The order of the answers has no meaning, and neither has their length.

[Conversation]
{prompt}

[Answer A]
{first}

[Answer B]
{second}

Compare them in at most three sentences. End with a line that holds only your verdict:
[[A]] if A is better, [[B]] if B is better, [[C]] if neither is better."""

_VERDICT = re.compile(r"\[\[\s*([ABC])\s*\]\]")
_CHOICES: dict[str, Choice] = {"A": "A", "B": "B", "C": "tie"}


def score_judge(
    predictions: Sequence[Prediction], config: EvaluationConfig, kept: Kept | None = None
) -> Scored:
    """Return, for the first `judge.num_rows` rows, whether the answer beats the expected one.

    A row has 1 if the judge prefers the answer in both orders, 0 if it prefers the expected answer
    in both, and 0.5 for a tie. Two orders with different verdicts are a tie, counted as `swapped`.
    An answer equal to the expected one is a tie without a request. Judgements that are in `kept`
    are not asked for again.

    Raises:
        ConfigError: There is no judge in the configuration, or its URL or key cannot be used.
        ServerError: A request failed.
    """
    judge = chosen_judge(config)
    judged = predictions[: judge.num_rows]
    pairs: list[Pair] = [
        (
            p.prompt,
            answer_shown(p.answer, p.tool_calls),
            answer_shown(p.expected, p.expected_tool_calls),
        )
        for p in judged
    ]
    values, details = judge_pairs(judge, pairs, kept)
    return Scored([*values, *[None] * (len(predictions) - len(judged))], details)


def chosen_judge(config: EvaluationConfig) -> JudgeConfig:
    """Return the judge of the metric `judge`.

    Raises:
        ConfigError: None is chosen, or its URL or key cannot be used.
    """
    if config.judge is None:
        raise ConfigError(
            "evaluation.metrics: judge needs evaluation.judge; found none",
            hint="Try: --set evaluation.judge.url=http://127.0.0.1:8000/v1 "
            "--set evaluation.judge.model=NAME",
        )
    _endpoint(config.judge)
    return config.judge


def ask_judge_once(config: EvaluationConfig) -> None:
    """Send one request to the judge, so that a wrong key, name or address is found at once.

    Raises:
        ConfigError: The judge's URL or key cannot be used.
        ServerError: The request failed.
    """
    judge = chosen_judge(config)
    _ask(judge, _endpoint(judge), ["Reply with [[C]]."])


def _endpoint(judge: JudgeConfig) -> Endpoint:
    try:
        split_url(judge.url)
    except ConfigError as error:
        said = error.message.replace("--url ", "evaluation.judge.url: ", 1)
        raise ConfigError(said, hint="Put a key into the variable of api_key_env.") from None
    return Endpoint(judge.url.rstrip("/"), judge.model, read_key(os.environ, judge.api_key_env))


def judge_pairs(
    config: JudgeConfig, pairs: Sequence[Pair], kept: Kept | None = None
) -> tuple[list[float | None], dict[str, int]]:
    """Return 1, 0.5 or 0 for a first answer that wins, ties or loses, and the counts.

    None is a pair of which the judge gave no readable verdict.
    """
    endpoint = _endpoint(config)
    different = [index for index, (_, first, second) in enumerate(pairs) if first != second]
    questions = [
        judge_question(config, pairs[i], swap) for i in different for swap in (False, True)
    ]
    replies = _replies(config, endpoint, questions, kept)
    values: list[float | None] = [0.5] * len(pairs)
    counts = {"wins": 0, "losses": 0, "ties": len(pairs) - len(different), "swapped": 0}
    counts["unreadable"] = 0
    for number, index in enumerate(different):
        straight, swapped = map(read_choice, replies[2 * number : 2 * number + 2])
        if straight is None or swapped is None:
            values[index], kind = None, "unreadable"
        elif straight == "A" and swapped == "B":
            values[index], kind = 1.0, "wins"
        elif straight == "B" and swapped == "A":
            values[index], kind = 0.0, "losses"
        else:
            kind = "ties" if straight == swapped == "tie" else "swapped"
        counts[kind] += 1
    if counts["unreadable"]:
        logger.warning(
            "  the judge gave no readable verdict on %d of %d pairs; try a larger "
            "evaluation.judge.max_new_tokens, or a better judge", counts["unreadable"], len(pairs),
        )  # fmt: skip
    if 2 * counts["swapped"] > len(different):
        logger.warning(
            "  the judge gave another verdict in the other order on %d of %d pairs, which count as "
            "ties; try a better judge", counts["swapped"], len(different),
        )  # fmt: skip
    return values, {**counts, "num_requests": len(questions)}


def win_rate(values: Sequence[float | None], counts: dict[str, int]) -> dict[str, Any]:
    """Return the win rate of first answers with its interval, and the sign test of wins and losses.

    A pair of which the judge gave no readable verdict counts in `unreadable` only; without a
    readable verdict the rate is None.
    """
    read = [value for value in values if value is not None]
    return {
        "win_rate": sum(read) / len(read) if read else None,
        "interval": mean_interval(read) if read else None,
        "sign_test_p": mcnemar_p(counts["losses"], counts["wins"]),
        **counts,
    }


def read_choice(reply: str) -> Choice | None:
    """Return the last verdict of a judgement; None without one."""
    text = bare_answer(reply)
    if text.startswith("<think>"):
        return None  # cut off while it thinks
    found = _VERDICT.findall(text)
    return _CHOICES[found[-1]] if found else None


def judge_question(config: JudgeConfig, pair: Pair, swap: bool) -> str:
    """Return the question to the judge about a pair; `swap` puts the second answer first."""
    messages, first, second = pair
    prompt = "\n".join(
        f"{message['role']}: {answer_shown(content_of(message), calls_of(message))}"
        for message in messages
    )
    first, second = (second, first) if swap else (first, second)
    first, second = first[:MAX_CHARACTERS], second[:MAX_CHARACTERS]
    if len(prompt) > MAX_CHARACTERS:
        # The question is at the end of a conversation, behind long documents.
        prompt = prompt[: MAX_CHARACTERS // 4] + "\n[…]\n" + prompt[-MAX_CHARACTERS * 3 // 4 :]
    return INSTRUCTION.format(criteria=config.criteria, prompt=prompt, first=first, second=second)


def _replies(
    config: JudgeConfig, endpoint: Endpoint, questions: Sequence[str], kept: Kept | None
) -> list[str]:
    """Return the judge's replies, and ask only for those that are not kept."""
    if kept is None:
        return _ask(config, endpoint, questions)
    identity = ["judge", config.url, config.model, config.max_new_tokens]
    keys = [canonical_digest([*identity, question]) for question in questions]

    def ask(rest: Sequence[int], on_answer: Callable[[int, Any], None]) -> None:
        _ask(
            config, endpoint, [questions[index] for index in rest],
            lambda place, reply: on_answer(rest[place], reply),
        )  # fmt: skip

    return ask_rest(kept, keys, ask, "judgements")


def _ask(
    config: JudgeConfig,
    endpoint: Endpoint,
    questions: Sequence[str],
    on_reply: Callable[[int, str], None] = lambda _index, _reply: None,
) -> list[str]:
    openai = require("openai", "train")
    options = {"model": endpoint.model, "temperature": 0, "max_tokens": config.max_new_tokens}

    def ask(index: int) -> str:
        try:
            message = {"role": "user", "content": questions[index]}
            response = wait_for_turn(lambda: complete(client, options, [message]), is_over)
            reply = text_of(first_choice(response, endpoint).message.content)
        except openai.AuthenticationError as error:
            raise ServerError(
                server_error(error, endpoint, config.timeout_s).message,
                hint=f"Try: export {config.api_key_env}=KEY",
            ) from None
        except (ValueError, AttributeError, IndexError, TypeError) as error:
            # The client passes a body of another shape on; reading the body then fails.
            raise server_error(error, endpoint, config.timeout_s) from None
        on_reply(index, reply)
        return reply

    replies: list[str] = []
    is_over = threading.Event()
    try:
        with (
            openai_client(endpoint, timeout_s=config.timeout_s, extra="train") as client,
            ThreadPoolExecutor(config.concurrency, thread_name_prefix="judge") as pool,
            progress("judging", len(questions), "judgements") as advance,
        ):
            waiting = [pool.submit(ask, index) for index in range(len(questions))]
            try:
                for done, future in enumerate(waiting, start=1):
                    replies.append(future.result())
                    advance(done)
            finally:
                is_over.set()
                pool.shutdown(wait=False, cancel_futures=True)
    except ServerError as error:
        raise ServerError(f"evaluation.judge: {error.message}", hint=error.hint) from None
    return replies

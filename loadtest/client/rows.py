"""From ended requests to records: one row per request."""

from __future__ import annotations

import itertools
import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from loadtest.client.answer import Answer
from loadtest.client.connection import Request
from loadtest.client.form import form_problem, is_whole, schemas_of
from loadtest.client.greedy import greedy_answer
from loadtest.client.plan import Plan
from loadtest.client.records import CANCELLED, FAILED, LEFT, SUCCEEDED, UNFINISHED, Records
from loadtest.client.session_client import find_model_changes
from loadtest.client.sse import parse_response
from loadtest.routes.pooled import num_asked
from tuneline.core.server_words import printable

NEVER = np.iinfo(np.int64).min
"""Nanoseconds of an event that never happened."""
MAX_EXAMPLES = 3
MAX_NAME, MAX_NAMES = 80, 20
"""Characters of a finish reason or a model's name, and how many of them are counted apart."""
MAX_CHECKED = 2000
"""Answers to the reference's prompts that a process keeps; of more, a random sample."""


@dataclass(frozen=True)
class Row:
    """One request with its answer."""

    request: Request
    answer: Answer
    first_byte_ns: int | None


@dataclass
class Seen:
    """Examples, texts and checked answers of single requests, for the report."""

    examples: dict[str, list[str]] = field(default_factory=dict)
    """Up to three messages per class of failure."""
    texts: list[str] = field(default_factory=list)
    """The first answers, shortened."""
    checked: list[tuple[int, int, dict[str, Any]]] = field(default_factory=list)
    """Index, prompt of the reference and answer of the checks that succeeded."""
    num_checked: int = 0
    """All of them; `checked` may be a sample."""
    finishes: Counter[str] = field(default_factory=Counter)
    """Finish reasons of the measured answers; empty for an answer without one."""
    named: dict[str, Counter[str]] = field(default_factory=dict)
    """By the name that was asked: the names in the answers, of the measured answers with a name."""
    num_validated: int = 0
    """Measured answers whose form was checked."""
    tools: dict[int, dict[str, Any]] = field(default_factory=dict)
    """By the place of a body: the schemas of its own tools."""
    asked: dict[int, int] = field(default_factory=dict)
    """By the place of a body: how many vectors or scores it asks for."""
    draw: random.Random = field(default_factory=lambda: random.Random(0))

    def wants_text(self, plan: Plan) -> bool:
        return plan.form is not None or len(self.texts) < MAX_EXAMPLES

    def validate(self, plan: Plan, request: Request, answer: Answer) -> None:
        """Give a whole answer without the form that was asked its class of failure. The prompts of
        the reference ask for no form."""
        if answer.num_values is not None:
            self._compare_number(plan, request, answer)
        if plan.form is None or request.end_ns is None or plan.check_of(request.index) is not None:
            return
        if is_whole(answer):
            self.num_validated += not plan.is_warmup(request.index)
            form = plan.form
            if form.get("has_own_tools"):
                form = {**form, "tools": self._tools(plan, request.index)}
            if (problem := form_problem(form, answer)) is not None:
                answer.error, answer.message = problem

    def _compare_number(self, plan: Plan, request: Request, answer: Answer) -> None:
        """Give an answer with more or fewer vectors or scores than were asked its class."""
        place = plan.body_place(request.index)
        if place not in self.asked:
            self.asked[place] = num_asked(json.loads(plan.bodies[place]))
        if answer.num_values != self.asked[place] and answer.error is None:
            answer.error = "malformed_answer"
            answer.message = f"{answer.num_values} values; expected {self.asked[place]}"

    def _tools(self, plan: Plan, index: int) -> dict[str, Any]:
        """Return the schemas of a request's own tools, by their names."""
        place = plan.body_place(index)
        if place not in self.tools:
            self.tools[place] = schemas_of(plan.tools_asked(index))
        return self.tools[place]

    def note(self, plan: Plan, request: Request, answer: Answer) -> None:
        """Take note of one request, in the order in which requests are parsed."""
        if request.end_ns is None:
            return
        if answer.error is None:
            if len(self.texts) < MAX_EXAMPLES:
                self.texts.append(answer.text[:400])
            self._check(plan, request)
            if not plan.is_warmup(request.index):
                if answer.num_values is None:
                    _tally(self.finishes, answer.finish_reason or "")
                if answer.model:
                    asked = plan.name_asked(request.index)
                    _tally(self.named.setdefault(asked, Counter()), answer.model)
        elif answer.error != LEFT:
            seen = self.examples.setdefault(answer.error, [])
            if len(seen) < MAX_EXAMPLES and answer.message not in seen:
                seen.append(answer.message)

    def _check(self, plan: Plan, request: Request) -> None:
        number = plan.check_of(request.index)
        if number is None:
            return
        self.num_checked += 1
        place = len(self.checked)
        if place >= MAX_CHECKED:
            # Reservoir sampling (Vitter's algorithm R, 1985).
            place = self.draw.randrange(self.num_checked)
            if place >= MAX_CHECKED:
                return
            self.checked.pop(place)
        reads = [data for _, _, data in request.reads]
        self.checked.insert(place, (request.index, number, greedy_answer(reads)))


def _tally(counts: Counter[str], name: str) -> None:
    """Count a name that the server says, which may be another one each time."""
    name = printable(name)[:MAX_NAME]
    counts[name if name in counts or len(counts) < MAX_NAMES else "others"] += 1


def to_records(
    plan: Plan, requests: list[Request], read_times: list[int], start_ns: int
) -> tuple[Records, Seen]:
    """Parse the recorded reads into answers.

    Args:
        plan: The orders of this process.
        requests: With their reads.
        read_times: When each read's bytes had arrived, over all requests; monotonic nanoseconds.
        start_ns: The start of the schedule.
    """
    answers = []
    seen = Seen()
    num_texts = end = 0
    for request in requests:
        begin, end = end, end + len(request.reads)
        answer = parse_response(
            read_times[begin:end],
            [data for _, _, data in request.reads],
            closed=request.closed,
            keep_text=plan.form is not None or num_texts < MAX_EXAMPLES,
            route=plan.route,
        )
        give_reason(request, answer)
        seen.validate(plan, request, answer)
        num_texts += answer.error is None and request.end_ns is not None
        answers.append(answer)
    if plan.sessions is not None:
        find_model_changes(plan, requests, answers)
    rows = []
    end = 0
    for request, answer in zip(requests, answers, strict=True):
        begin, end = end, end + len(request.reads)
        seen.note(plan, request, answer)
        rows.append(Row(request, answer, read_times[begin] if end > begin else None))
    return records_of(plan, rows, start_ns), seen


def give_reason(request: Request, answer: Answer) -> None:
    """Give the answer the connection's error, which has priority over the parser's, unless the
    server itself named a more exact error before."""
    if request.error is not None and not _says_more(answer):
        answer.error, answer.message = request.error, request.message


def _says_more(answer: Answer) -> bool:
    error = answer.error or ""
    return error in ("error_event", "invalid_sse", "aborted") or error.startswith("http_")


def records_of(plan: Plan, rows: Sequence[Row], start_ns: int) -> Records:
    """Return the records of parsed requests."""

    def seconds(times_ns: list[int | None]) -> np.ndarray[Any, np.dtype[np.float64]]:
        known = np.array([NEVER if time is None else time for time in times_ns], np.int64)
        found = (known - start_ns) / 1e9
        found[known == NEVER] = np.nan
        return found

    def counts(values: list[int | float | None]) -> np.ndarray[Any, np.dtype[np.float64]]:
        return np.array([np.nan if value is None else value for value in values], np.float64)

    answers = [row.answer for row in rows]
    requests = [row.request for row in rows]
    states = []
    for row in rows:
        if row.request.end_ns is None:
            states.append(UNFINISHED)
        elif row.answer.error == LEFT:
            states.append(CANCELLED)
        else:
            states.append(SUCCEEDED if row.answer.error is None else FAILED)
    index = np.array([request.index for request in requests], np.int64)
    session, turn = plan.split_all(index)
    num_events = np.array([len(answer.token_times) for answer in answers], np.int64)
    event_ns = itertools.chain.from_iterable(answer.token_times for answer in answers)
    event_tokens = itertools.chain.from_iterable(map(_event_tokens, answers))
    return Records(
        index=index,
        session=session,
        turn=turn,
        warmup=session < plan.num_warmup_requests,
        state=np.array(states, np.uint8),
        error=np.array(
            [a.error or "" if s == FAILED else "" for a, s in zip(answers, states, strict=True)],
            np.dtype("U32"),
        ),
        intended_s=seconds([request.intended_ns for request in requests]),
        sent_s=seconds([request.sent_ns for request in requests]),
        connect_s=np.array([request.connect_ns for request in requests], np.float64) / 1e9,
        first_byte_s=seconds([row.first_byte_ns for row in rows]),
        first_token_s=seconds([_first_token_time(answer) for answer in answers]),
        last_token_s=seconds([_last_token_time(answer) for answer in answers]),
        end_s=seconds([request.end_ns for request in requests]),
        tokens=counts([answer.completion_tokens for answer in answers]),
        first_tokens=counts([_first_tokens(answer) for answer in answers]),
        prompt_tokens=counts([answer.prompt_tokens for answer in answers]),
        cached_tokens=counts([answer.cached_tokens for answer in answers]),
        retry_after_s=counts([answer.retry_after_s for answer in answers]),
        resent=np.array([request.resent for request in requests], np.bool_),
        without_done=np.array([answer.without_done for answer in answers], np.bool_),
        merged_events=np.array([answer.num_merged_events for answer in answers], np.int64),
        num_events=num_events,
        event_s=(np.fromiter(event_ns, np.int64, num_events.sum()) - start_ns) / 1e9,
        event_tokens=np.fromiter(event_tokens, np.float64, num_events.sum()),
    )


def _first_token_time(answer: Answer) -> int | None:
    """Return the time of the first token: of the stop token if it is the only one."""
    return answer.token_times[0] if answer.token_times else answer.finish_time


def _last_token_time(answer: Answer) -> int | None:
    """Return the time of the last token. A stop token is the event with the finish reason."""
    times = answer.token_times[-1:]
    if answer.finish_time is not None:
        times = [*times, answer.finish_time]
    return max(times, default=None)


def _first_tokens(answer: Answer) -> int | None:
    if answer.token_counts:
        return answer.token_counts[0]
    if answer.completion_tokens is None or not answer.token_times:
        return answer.completion_tokens
    extra = answer.completion_tokens - len(answer.token_times)
    return 1 if extra in (0, 1) else None


def _event_tokens(answer: Answer) -> list[float]:
    num_events = len(answer.token_times)
    if answer.token_counts:
        counts = [0, *answer.token_counts]
        return [float(after - before) for before, after in itertools.pairwise(counts)]
    if answer.completion_tokens is None:
        return [float("nan")] * num_events
    return [answer.completion_tokens / num_events] * num_events if num_events else []

"""`tuneline data collect`: rows of training data from the requests that a server recorded."""

from __future__ import annotations

import contextlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

from training.data.convert import write_row
from training.data.formats import row_place
from training.data.problem import RowProblem
from training.data.recorded.conversation import Unfit, columns_of
from training.data.recorded.feedback import Feedback, count_ids, ids_of, read_feedback
from training.data.rows import NUM_PROBLEMS_SHOWN, UNREADABLE, Counts
from training.data.shapes import read_shape
from tuneline.core.disk import cannot_write
from tuneline.core.errors import ConfigError, DataError
from tuneline.core.messages import Message
from tuneline.core.progress import logger
from tuneline.core.recorded import Line, read_lines, recorded_files

Target = Literal["messages", "preference", "label", "prompt"]
BROKEN = "the line is not whole"
BAD = "rated bad, without a better answer"
UNRATED = "not rated"
NO_BETTER = "no better answer"
EARLIER = "earlier than --since"
OTHER_MODEL = "another model"
OTHER_METADATA = "other metadata"


@dataclass(frozen=True)
class WantedRequests:
    """Which requests are wanted.

    Attributes:
        since_s: Unix time.
        model: The name that a client asked for, or the start of the digest that answered.
        metadata: Values of the request's own `metadata`.
        is_rated: Only answers that a client called good or replaced.
    """

    since_s: float | None = None
    model: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    is_rated: bool = False


@dataclass
class Collected:
    """The counts of a collection.

    Attributes:
        counts: Requests that were read, and those that were dropped, by reason.
        num_feedback: Ids that feedback names.
        num_used: Requests whose feedback changed or rated them, kept or not.
        template_kwargs: Variables of the chat template that requests brought, as JSON, and how many
            kept requests brought them.
    """

    counts: Counts = field(default_factory=Counts)
    num_feedback: int = 0
    num_used: int = 0
    template_kwargs: Counter[str] = field(default_factory=Counter)


def collect_recorded(
    folder: Path, out: Path, *, to: Target = "messages", wanted: WantedRequests | None = None
) -> Collected:
    """Write the requests of a folder as rows of JSON Lines, each recorded answer once.

    Of the assistant's turns only the recorded answer is trained: earlier turns of a conversation
    have lines of their own. Feedback counts if its key is the request's and its id names one
    request.

    Args:
        folder: The folder to which a server recorded, or one of its files.
        out: The new file, which only its owner may read; it appears when every row is written.
        to: `messages`: the answer, or the one that feedback gave in its place. `preference`: that
            one against the answer. `label`: the answer with its rating. `prompt`: no answer.

    Raises:
        ConfigError: `out` exists, or the filters fit no form.
        DataError: The folder has no records, or no request makes a row.
    """
    if out.exists():
        raise ConfigError(f"{out}: exists; expected a new file", hint="Give another --out.")
    files = recorded_files(folder)
    wanted = wanted or WantedRequests()
    feedback = read_feedback(files)
    found = Collected(num_feedback=len(feedback))
    ids = count_ids(files, set(feedback))
    partial = out.with_name(f".{out.name}.partial")
    try:
        # Like the records, the rows hold what clients wrote.
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        with os.fdopen(os.open(partial, flags, 0o600), "w", encoding="utf-8") as file:
            for row in _rows(
                read_lines(files), feedback, ids, to, wanted or WantedRequests(), found
            ):
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        if found.counts.num_kept == 0:
            reasons = "; ".join(f"{count:,} {why}" for why, count in found.counts.dropped.items())
            raise DataError(
                f"{folder}: none of {found.counts.num_read:,} requests makes a row: {reasons}"
            )
        partial.replace(out)
    except OSError as error:
        raise cannot_write(out, error) from None
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()
    return found


def _rows(
    lines: Iterator[Line], feedback: Mapping[str, Sequence[Feedback]],
    ids: Mapping[tuple[str, str], int], to: Target, wanted: WantedRequests, found: Collected,
) -> Iterator[dict[str, Any]]:  # fmt: skip
    num_shown = 0
    for line in lines:
        if line.is_feedback:
            continue
        found.counts.num_read += 1
        record = line.record
        try:
            if record is None:
                raise Unfit(BROKEN)
            _require_wanted(record, wanted)
            given = _feedback_on(record, feedback, ids)
            found.num_used += given is not None
            row = _row(record, given, to, wanted)
        except Unfit as unfit:
            found.counts.drop(str(unfit))
        except RowProblem as problem:
            found.counts.drop(UNREADABLE)
            num_shown += 1
            if num_shown <= NUM_PROBLEMS_SHOWN:
                logger.warning("  dropped: %s: %s", row_place(line.path.name, line.number), problem)
        else:
            assert record is not None  # noqa: S101 (a record that is None has raised)
            if kwargs := record["request"].get("chat_template_kwargs"):
                found.template_kwargs[json.dumps(kwargs, sort_keys=True)] += 1
            yield row


def _require_wanted(record: Mapping[str, Any], wanted: WantedRequests) -> None:
    """Raise Unfit if the filters leave a request out."""
    time_s, request = record.get("time"), record.get("request")
    if wanted.since_s is not None and not (
        isinstance(time_s, int | float) and time_s >= wanted.since_s
    ):
        raise Unfit(EARLIER)
    fields = request if isinstance(request, dict) else {}
    if wanted.model is not None:
        digest = str(record.get("digest")).removeprefix("sha256:")
        name = str(fields.get("model"))
        asked = wanted.model.removeprefix("sha256:")
        is_model = name == asked or name.partition("@")[0] == asked
        if not is_model and not (len(asked) >= 8 and digest.startswith(asked)):
            raise Unfit(OTHER_MODEL)
    metadata = fields.get("metadata")
    given = metadata if isinstance(metadata, dict) else {}
    if any(given.get(name) != value for name, value in wanted.metadata.items()):
        raise Unfit(OTHER_METADATA)


def _feedback_on(
    record: Mapping[str, Any], feedback: Mapping[str, Sequence[Feedback]],
    ids: Mapping[tuple[str, str], int],
) -> Feedback | None:  # fmt: skip
    """Return what the request's own client said of the answer."""
    key = str(record.get("key"))
    for one in sorted(ids_of(record)):
        if ids.get((key, one)) == 1:
            for given in feedback.get(one, ()):
                if given.key == key:
                    return given
    return None


def _row(
    record: Mapping[str, Any], given: Feedback | None, to: Target, wanted: WantedRequests
) -> dict[str, Any]:
    """Return the row of a request in the form that is asked for."""
    columns = columns_of(record)
    *before, answer = columns["messages"]
    better = None if given is None else given.answer
    is_better = better is not None and better != answer.get("content")
    label = None if given is None else given.label
    if label is None and better is not None:
        label = not is_better  # the client wanted another answer, or wrote the same one
    if wanted.is_rated and label is None:
        raise Unfit(UNRATED)
    prompt = [
        {**message, "weight": 0} if message.get("role") == "assistant" else message
        for message in before
    ]
    wished: Message = {"role": "assistant", "content": better} if is_better else answer
    own: dict[str, Any]
    if to == "messages":
        if label is False and not is_better:
            raise Unfit(BAD)
        own = {"messages": [*prompt, wished]}
    elif to == "preference":
        if not is_better:
            raise Unfit(NO_BETTER)
        own = {"prompt": prompt, "chosen": [wished], "rejected": [answer]}
    elif to == "label":
        if label is None:
            raise Unfit(UNRATED)
        own = {"prompt": prompt, "completion": [answer], "label": label}
    else:
        own = {"prompt": prompt}
    tools = {"tools": columns["tools"]} if "tools" in columns else {}
    row = read_shape({**own, **tools, **_facts(record, before)})
    return write_row(row, to)


def _facts(record: Mapping[str, Any], before: Sequence[Message]) -> dict[str, Any]:
    """Return the columns that say where a row comes from.

    `thread` is equal for the turns of one conversation: a split by it holds whole ones out.
    """
    first = next((place for place, one in enumerate(before) if one.get("role") == "user"), 0)
    beginning = json.dumps(before[: first + 1], sort_keys=True).encode()
    moment = datetime.fromtimestamp(float(record.get("time") or 0.0), UTC)
    metadata = record["request"].get("metadata")
    return {
        "request_id": str(record.get("id")),
        "recorded_at": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "served_model": str(record["request"].get("model")),
        "key": str(record.get("key")),
        "thread": sha256(beginning).hexdigest()[:16],
        **({"metadata": metadata} if isinstance(metadata, dict) and metadata else {}),
    }

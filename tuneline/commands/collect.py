"""`tuneline data collect`."""

from __future__ import annotations

import shlex
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from tuneline.commands.options import AsJson
from tuneline.commands.printing import emit
from tuneline.core.errors import ConfigError

TARGETS = ("messages", "preference", "label", "prompt")


def data_collect(
    folder: Annotated[
        Path,
        typer.Argument(metavar="DIR", help="A folder to which a server recorded, or one file."),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The new JSON Lines file.")],
    to: Annotated[str, typer.Option(help="messages, preference, label or prompt.")] = "messages",
    rated: Annotated[
        bool, typer.Option("--rated", help="Only answers that a client rated or replaced.")
    ] = False,
    since: Annotated[
        str | None, typer.Option(metavar="DATE", help="2026-11-30, or with a time: 2026-11-30T14.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The name asked for, or a digest."),
    ] = None,
    metadata: Annotated[
        list[str] | None,
        typer.Option("--metadata", metavar="KEY=VALUE", help="Of the request's own metadata."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make rows of training data from the requests and the feedback that a server recorded."""
    from training import WantedRequests, collect_recorded

    if to not in TARGETS:
        raise ConfigError(f"--to {to}: is not a form; expected one of: {', '.join(TARGETS)}")
    wanted = WantedRequests(
        since_s=None if since is None else _unix_time(since),
        model=model,
        metadata=dict(_pair(one) for one in metadata or ()),
        is_rated=rated,
    )
    found = collect_recorded(folder, out, to=to, wanted=wanted)  # type: ignore[arg-type]
    counts = found.counts
    lines = [
        f"written: {out}",
        f"{counts.num_read:,} requests read, {counts.num_kept:,} rows written",
        *(f"{number:,} dropped: {reason}" for reason, number in counts.dropped.items()),
    ]
    if found.num_feedback:
        lines.append(f"feedback on {found.num_feedback:,} requests, {found.num_used:,} found here")
    for kwargs, number in found.template_kwargs.most_common(3):
        lines.append(
            f"{number:,} requests brought chat_template_kwargs {kwargs}: set "
            "data.chat_template_kwargs to train their answers as they were served"
        )
    lines.append(f"Next: tuneline data check {shlex.quote(str(out))}")
    document = {
        "path": str(out), "num_read": counts.num_read, "num_written": counts.num_kept,
        "dropped": counts.dropped, "num_feedback": found.num_feedback, "num_used": found.num_used,
        "chat_template_kwargs": dict(found.template_kwargs),
    }  # fmt: skip
    emit(document, lines, as_json)


def _unix_time(text: str) -> float:
    """Return a date or a moment of ISO 8601; without a zone it is UTC."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(
            f"--since {text}: is not a date; expected such as 2026-11-30 or 2026-11-30T14:00Z"
        ) from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise ConfigError(
            f"--metadata {text}: expected KEY=VALUE", hint="Try: --metadata task=summary"
        )
    return name, value

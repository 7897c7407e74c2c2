"""A load report as CSV: a row per request."""

from __future__ import annotations

import csv
import io
from typing import Any

import numpy as np

from loadtest.client.records import STATES
from loadtest.report.files import records_of, report_of
from tuneline.core.artifact import Artifact


def csv_text(report: Artifact) -> str:
    """Return a line per request of every scenario; times in seconds from the scenario's start."""
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    columns = (
        "index", "session", "turn", "warmup", "state", "error", "intended_s", "sent_s",
        "connect_s", "first_byte_s", "first_token_s", "last_token_s", "end_s", "tokens",
        "prompt_tokens",
    )  # fmt: skip
    writer.writerow(("scenario", *columns))
    for name, records in records_of(report, report_of(report)):
        by_name = vars(records)
        values = [by_name[column] for column in columns]
        for row in range(len(records)):
            cells = [
                _cell(column, value[row]) for column, value in zip(columns, values, strict=True)
            ]
            writer.writerow((name, *cells))
    return buffer.getvalue()


def _cell(column: str, value: Any) -> str:
    if column == "state":
        return STATES[int(value)]
    if column == "warmup":
        return "true" if value else "false"
    if isinstance(value, float):
        if np.isnan(value):
            return ""
        return f"{value:.0f}" if column.endswith("tokens") else f"{value:.9f}"
    return str(value)

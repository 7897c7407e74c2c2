"""The loads that a search has measured so far, and the outcome of each."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from loadtest.config import LoadTestConfig
from loadtest.studies.bracket import Outcome
from loadtest.studies.load import Axis, Load, arrivals_of
from loadtest.studies.measure_load import measure_load, summarize_load
from loadtest.studies.schema import Probe
from tuneline.core.artifact import canonical_digest
from tuneline.core.disk import replace_file
from tuneline.core.endpoint import Endpoint
from tuneline.core.files import file_sha256
from tuneline.core.messages import ChatPrompt
from tuneline.core.progress import logger
from tuneline.core.recorded import recorded_files
from tuneline.core.verdict import Verdict

MOST_REQUESTS = 10
"""A probe that too few requests leave undecided runs again with the number that it needs, up to
this many times the given number."""
REQUESTS_PER_STREAM = 12
"""Fewest requests of a closed loop, per stream: an interval takes five blocks of two requests per
stream."""


class CannotTell(Exception):
    """The search stops: the reason is not the endpoint's load."""


class OutOfTime(Exception):
    """The search stops: its time is over."""


@dataclass
class Tries:
    """The loads measured so far.

    Attributes:
        num_requests: Measured requests of a probe, at least.
        journal: A file of finished probes, which a search that was killed takes over.
        deadline_s: On the monotonic clock; no probe starts after it.
    """

    config: LoadTestConfig
    endpoint: Endpoint
    prompts: Sequence[ChatPrompt]
    axis: Axis
    num_requests: int
    journal: Path | None = None
    deadline_s: float | None = None
    probes: list[Probe] = field(default_factory=list)
    undecided: dict[float | None, int] = field(default_factory=dict)
    """Loads that too few requests leave open, with the number that they need."""

    def __post_init__(self) -> None:
        self._earlier = [] if self.journal is None else _read_journal(self.journal)
        self._kept: list[dict[str, Any]] = []

    def outcome(self, value: float, *, num: int, seed: int) -> Outcome:
        """Measure a load, with more requests if only their number leaves it open.

        Raises:
            CannotTell: The measurement says nothing about the endpoint.
            OutOfTime: The deadline has passed.
        """
        load = Load(self.axis, value, arrivals_of(self.config))
        most = MOST_REQUESTS * self.num_requests
        if load.concurrency is not None:
            num = max(num, min(REQUESTS_PER_STREAM * load.concurrency, most))
        probe = self._measure(load, num, seed)
        if probe.num_needed is not None and num < probe.num_needed <= most:
            # Twice the number: a short run has fewer requests in flight than a long run.
            more = min(2 * probe.num_needed, most)
            logger.info("  %s: again, with %d requests", load, more)
            probe = self._measure(load, more, seed + 20_000)
        if probe.num_needed is not None:
            logger.info(
                "  %s: undecided: it needs %d requests; at most %d (%d times the given number) are "
                "sent",
                load, probe.num_needed, most, MOST_REQUESTS,
            )  # fmt: skip
            self.undecided[value] = probe.num_needed
        if probe.verdict == Verdict.PASS:
            return "holds"
        return "too low" if probe.is_too_low else "fails"

    def _measure(self, load: Load, num: int, seed: int) -> Probe:
        """Measure a load, and once more if it is INVALID.

        Raises:
            CannotTell: It is INVALID twice, or no request succeeded.
            OutOfTime: The deadline has passed.
        """
        for attempt in range(2):
            probe = self._probe(load, num, seed + 10_000 * attempt)
            logger.info(
                "  %s: %s%s", load, probe.verdict,
                f" ({probe.problems[0]})" if probe.problems else "",
            )  # fmt: skip
            if probe.verdict != Verdict.INVALID:
                return probe
        raise CannotTell(f"at {load} the measurement is invalid: {probe.problems[0]}")

    def _probe(self, load: Load, num: int, seed: int) -> Probe:
        """Return a probe of an earlier process, or measure it."""
        note = {"axis": load.axis, "value": load.value, "num": num, "seed": seed}
        if self._earlier and self._earlier[0][0] == note:
            _, probe = self._earlier.pop(0)
            self._kept.append({"note": note, "probe": probe.model_dump(mode="json")})
            self.probes.append(probe)
            return probe
        self._earlier = []
        if self.deadline_s is not None and time.monotonic() > self.deadline_s:
            raise OutOfTime
        result, stopped = measure_load(self.config, self.endpoint, self.prompts, load, num, seed)
        probe = summarize_load(load, result, stopped)
        self.probes.append(probe)
        if probe.error_rate == 1.0:
            kinds = ", ".join(result.stats.errors) or "unfinished"
            raise CannotTell(f"no request succeeded at {load}: {kinds}")
        if self.journal is not None:
            self._kept.append({"note": note, "probe": probe.model_dump(mode="json")})
            _write_journal(self.journal, self._kept)
        return probe


def prompts_digest(config: LoadTestConfig, prompts: Sequence[ChatPrompt]) -> str:
    """Return a digest of what a study asks: of the workload's files, or of the prompts."""
    path = config.workload.path
    if path is None or not path.exists():
        return canonical_digest(list(prompts))
    files = recorded_files(path) if path.is_dir() else [path]
    return canonical_digest([file_sha256(one) for one in files])


def _read_journal(path: Path) -> list[tuple[dict[str, Any], Probe]]:
    """Return the probes of an earlier process; a line that a kill cut off ends the list."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines()[1:]:
        try:
            entry = json.loads(line)
            found.append((entry["note"], Probe.model_validate_json(json.dumps(entry["probe"]))))
        except (ValueError, KeyError, TypeError, ValidationError):
            break
    return found


def _write_journal(path: Path, entries: Sequence[dict[str, Any]]) -> None:
    """Replace the probes below the journal's first line: none of another search stays between."""
    first, _, _ = path.read_text(encoding="utf-8").partition("\n")
    lines = [first, *(json.dumps(entry) for entry in entries)]
    replace_file(path, "\n".join(lines) + "\n")

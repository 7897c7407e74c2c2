"""Trials on real servers: start one, search its rate, prove its answers."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from loadtest.config import LoadTestConfig, Scenario
from tuneline.core.artifact import Artifact, Input, open_artifact
from tuneline.core.config import validate_config
from tuneline.core.endpoint import Endpoint
from tuneline.core.errors import ConfigError, MissingError, ServerError, TunelineError
from tuneline.core.messages import ChatPrompt
from tuneline.core.progress import logger
from tuneline.core.verdict import Verdict, read_verdict
from tuneline.pipeline.tune.race import rate_to_beat, requests_of_trial
from tuneline.pipeline.tune.schema import Comparison, Trial
from tuneline.pipeline.tune.table import Settings

COMPARED = "compared"
"""The name of the comparison's scenario."""
NUM_ROUNDS = 2
WITHOUT_RATE = {"time_limit": "cut off", "num_requests": "undecided"}
"""The state of a trial that has no rate, by the limit of its search."""
LOADED_TOO_LONG = "the budget ended while the server started"


@dataclass(frozen=True)
class Bench:
    """How settings become a server.

    Attributes:
        config: Objectives, workload and client options; its scenarios are not used.
        check: Raises ConfigError if vLLM does not take the settings.
        open: Serves with the settings for as long as the block lasts. A server that is not ready
            after the given seconds raises ServerError.
        prove: Writes the comparison of a server's answers with the reference.
        inputs: Returns the artifacts that the server loads.
        folder: Where the evidence of each trial goes.
    """

    config: LoadTestConfig
    prompts: Sequence[ChatPrompt]
    check: Callable[[Settings], None]
    open: Callable[[Settings, float], AbstractContextManager[Endpoint]]
    prove: Callable[[Settings, Endpoint, Path], Artifact]
    inputs: Callable[[Settings], Sequence[Input]]
    folder: Path
    num_requests: int
    start_rps: float
    max_rps: float
    precision: float


def run_trial(
    bench: Bench, earlier: Sequence[Trial], knob: str, settings: dict[str, Any], limit_s: float
) -> Trial:
    """Serve with the settings, and search the highest rate that keeps the objectives.

    The search begins at the rate to beat. Where that does not hold, the trial ends. Where a higher
    rate holds twice, the same server proves its answers.

    Args:
        earlier: The trials so far; none for the run's own settings.
        limit_s: No probe starts after so long, and no server loads longer.

    Raises:
        TunelineError: The server does not start or dies with the run's own settings. With others,
            that is the trial's result.
    """
    began_s = time.monotonic()
    number = len(earlier)
    ready: dict[str, float] = {}
    logger.info("trial %d (%s): %s", number, knob or "own settings", describe_settings(settings))
    values: dict[str, Any]
    try:
        bench.check(settings)
        start_s = time.monotonic()
        with bench.open(settings, limit_s) as endpoint:
            ready["start_s"] = round(time.monotonic() - start_s, 2)
            left_s = limit_s - (time.monotonic() - began_s)
            values = _measured(bench, earlier, number, settings, endpoint, left_s)
    except ConfigError as error:
        if not settings:
            raise
        values = {"state": "refused", "problem": error.message.replace("\n", "; ")}
    except MissingError:
        raise  # vLLM, or a library of the proof: no other trial would have it
    except TunelineError as error:
        if not ready and time.monotonic() - began_s >= limit_s:
            values = {"state": "cut off", "problem": LOADED_TOO_LONG}
        elif not settings:
            raise
        else:
            values = {"state": "failed", "problem": error.message.partition("\n")[0]}
    total_s = round(time.monotonic() - began_s, 2)
    fields = {"number": number, "knob": knob, "settings": settings, **ready, "total_s": total_s}
    trial = Trial.model_validate({**fields, **values})
    logger.info("trial %d: %s", number, describe_trial(trial))
    return trial


def _measured(
    bench: Bench, earlier: Sequence[Trial], number: int, settings: Settings, endpoint: Endpoint,
    limit_s: float,
) -> dict[str, Any]:  # fmt: skip
    """Return the fields of a trial whose server runs."""
    from loadtest import read_search, search_rate

    to_beat = rate_to_beat(earlier)
    if limit_s <= 0:
        return {"state": "cut off", "problem": LOADED_TOO_LONG}
    if to_beat is not None and to_beat > bench.max_rps:
        return {"state": "beaten", "to_beat_rps": to_beat, "problem": "no higher rate is tried"}
    with TemporaryDirectory(prefix="tuneline-tune-") as partial:
        found = search_rate(
            bench.config, endpoint, Path(partial) / "search",
            prompts=bench.prompts, inputs=bench.inputs(settings),
            start_rps=to_beat or bench.start_rps, max_rps=bench.max_rps,
            num_requests=requests_of_trial(bench.num_requests, earlier),
            precision=bench.precision,
            goes_down=to_beat is None, time_limit_s=limit_s,
        )  # fmt: skip
        report = read_search(found.path)
        keep = bench.folder / f"{number:02d}-search.json"
        shutil.copyfile(found.path / "report.json", keep)
        values: dict[str, Any] = {
            "rate_rps": report.max_rate_rps,
            "failing_rps": report.lowest_failing_rate_rps,
            "to_beat_rps": to_beat,
            "problem": "; ".join(report.problems) or None,
        }
        if report.max_rate_rps is None:
            state = "no rate" if to_beat is None else "beaten"
            state = WITHOUT_RATE.get(report.limited_by or "", state)
            return {**values, "state": "invalid" if report.verdict is Verdict.INVALID else state}
        values["num_requests"] = report.probes[-1].num_requests
        if not settings:
            return {**values, "state": "held"}
        proof = bench.prove(settings, endpoint, Path(partial) / "parity")
        verdict = read_verdict(proof)
        shutil.copyfile(proof.path / "parity.json", bench.folder / f"{number:02d}-parity.json")
    if verdict is not Verdict.PASS:
        problem = f"its answers are not the reference's: parity {verdict}"
        return {**values, "state": "wrong", "parity": verdict, "problem": problem}
    return {**values, "state": "held", "parity": verdict}


def compare_with_own(
    bench: Bench, best: Trial, rate_rps: float, *, num_requests: int
) -> Comparison:
    """Measure the run's own settings and the best ones in turns, at one rate.

    A measurement that cannot be made does not raise: the comparison is then not won.
    """
    from loadtest import compare_servers, read_comparison

    values = {"name": COMPARED, "rate_rps": rate_rps, "num_requests": num_requests}
    scenario = validate_config(Scenario, values, "options")
    config = bench.config.model_copy(update={"scenarios": [scenario]})
    out = bench.folder / "comparison"
    shutil.rmtree(out, ignore_errors=True)
    logger.info(
        "the run's own settings and those of trial %d in turns, at %.4g requests/s",
        best.number, rate_rps,
    )  # fmt: skip
    inputs = {entry.digest: entry for entry in (*bench.inputs({}), *bench.inputs(best.settings))}
    try:
        compare_servers(
            config, lambda: bench.open({}, math.inf),
            lambda: bench.open(best.settings, math.inf), out, prompts=bench.prompts,
            num_rounds=NUM_ROUNDS, inputs=list(inputs.values()),
        )  # fmt: skip
    except ServerError as error:
        return _comparison(best, rate_rps, [], [], error.message.partition("\n")[0])
    report = read_comparison(open_artifact(out).path)
    (compared,) = report.scenarios
    own, tuned = ([run.verdict for run in compared.runs[side]] for side in ("a", "b"))
    e2e = next((one for one in compared.differences if one.metric == "e2e_s"), None)
    return _comparison(
        best, rate_rps, own, tuned, None,
        e2e_difference_s=None if e2e is None else e2e.difference,
        e2e_ci95=None if e2e is None else (e2e.ci95_low, e2e.ci95_high),
    )  # fmt: skip


def _comparison(
    best: Trial, rate_rps: float, own: list[Verdict], tuned: list[Verdict], problem: str | None,
    *, e2e_difference_s: float | None = None, e2e_ci95: tuple[float, float] | None = None,
) -> Comparison:  # fmt: skip
    is_won = bool(own and tuned)
    if not is_won:
        problem = problem or "nothing was measured"
    elif Verdict.INVALID in (*own, *tuned):
        is_won, problem = False, "a run is INVALID"
    elif set(tuned) != {Verdict.PASS}:
        is_won, problem = False, f"the tuned settings do not hold {rate_rps:.4g} requests/s again"
    elif Verdict.PASS in own:
        is_won, problem = False, f"the run's own settings hold {rate_rps:.4g} requests/s too"
    return Comparison(
        settings=best.settings,
        rate_rps=rate_rps,
        own_verdicts=own,
        tuned_verdicts=tuned,
        e2e_difference_s=e2e_difference_s,
        e2e_ci95=e2e_ci95,
        is_won=is_won,
        problem=problem,
    )


def describe_trial(trial: Trial) -> str:
    """Return one line for people."""
    rate = f" {trial.rate_rps:.4g} requests/s" if trial.rate_rps is not None else ""
    if trial.state == "beaten" and trial.to_beat_rps is not None:
        rate = f" at {trial.to_beat_rps:.4g} requests/s"
    problem = f" ({trial.problem})" if trial.problem and trial.state != "beaten" else ""
    again = f" in {trial.attempts} attempts" if trial.attempts > 1 else ""
    return f"{describe_settings(trial.settings)}: {trial.state}{again}{rate}{problem}"


def describe_settings(settings: Settings) -> str:
    """Return the changes of run.yaml in a few words."""
    words = [f"{key.removeprefix('serving.')}={value}" for key, value in settings.items()]
    return ", ".join(words) or "the run's own settings"

"""A tuning of servers whose capacity is set by construction."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from serving.config import ServingConfig
from tests.integration.loadtest.conftest import known_server
from tests.integration.loadtest.small import PROMPTS, config
from tests.timing import on_a_shared_host
from tuneline.core.artifact import Artifact, new_artifact, open_artifact
from tuneline.core.endpoint import Endpoint
from tuneline.core.errors import ConfigError, ServerError
from tuneline.pipeline.tune.bench import Bench
from tuneline.pipeline.tune.journal import read_trials, write_trials
from tuneline.pipeline.tune.schema import Offer, Trial
from tuneline.pipeline.tune.tune import tune_servers

SLOW, SAME, FAST, WRONG, DEAD, REFUSED, NEVER_READY = 0.08, 0.02, 0.008, 0.006, 0.0, -1.0, -2.0
"""Seconds of service: the server answers one request at a time, so it holds less than 1 / s."""
OWN = {"serving.max_num_seqs": SAME}


@pytest.fixture(autouse=True)
def shared_host() -> Iterator[None]:
    with on_a_shared_host():
        yield


@dataclass
class Servers:
    """Known servers by the settings' service time; notes which were started."""

    folder: Path
    limit_s: float = 0.25
    started: list[float] = field(default_factory=list)

    def bench(self, **options: Any) -> Bench:
        values: dict[str, Any] = {
            "config": config(slo={"e2e_s": {"p90": self.limit_s}}, timeout_s=10.0, max_tokens=1),
            "prompts": PROMPTS,
            "check": self.check,
            "open": self.open,
            "prove": self.prove,
            "inputs": lambda _: [],
            "folder": self.folder,
            "num_requests": 80,
            "start_rps": 30.0,
            "max_rps": 400.0,
            "precision": 0.4,
        }
        return Bench(**(values | options))

    def check(self, settings: Any) -> None:
        if REFUSED in settings.values():
            raise ConfigError("serving.max_num_seqs: vLLM refuses it")

    @contextlib.contextmanager
    def open(self, settings: Any, limit_s: float) -> Iterator[Endpoint]:
        service_s = settings.get("serving.max_num_seqs", SAME)
        self.started.append(service_s)
        if service_s == NEVER_READY:
            time.sleep(limit_s)
            raise ServerError(f"vLLM was not ready after {limit_s:g} s")
        if service_s == DEAD:
            raise ServerError("vLLM died while loading\n  | the log")
        options = ("--ttft-s", str(service_s), "--itl-s", "0", "--one-at-a-time")
        with known_server(*options) as server:
            yield server.endpoint

    def prove(self, settings: Any, _endpoint: Endpoint, out: Path) -> Artifact:
        verdict = "FAIL" if WRONG in settings.values() else "PASS"
        with new_artifact(out, "parity", config={}) as draft:
            (draft.dir / "parity.json").write_text(json.dumps({"verdict": verdict}))
        return open_artifact(out)


def offers(*services: float) -> list[Offer]:
    settings = [{"serving.max_num_seqs": service_s} for service_s in services]
    return [Offer(knob="sequences", reason="known", settings=settings, unsuited=None)]


def trials_on_disk(folder: Path, *trials: Trial) -> None:
    folder.mkdir()
    write_trials(folder, trials)


def own_trial() -> Trial:
    return Trial(
        number=0, knob="", settings={}, state="held", rate_rps=30.0, failing_rps=45.0,
        num_requests=160, start_s=0.5, total_s=5.0,
    )  # fmt: skip


def states(trials: Sequence[Trial]) -> list[str]:
    return [trial.state for trial in trials]


def test_the_fastest_server_with_right_answers_wins(tmp_path: Path) -> None:
    servers = Servers(tmp_path / "t")
    report = tune_servers(
        servers.bench(), offers(SLOW, DEAD, REFUSED, FAST, WRONG), ServingConfig(), 300.0
    )
    assert states(report.trials) == ["held", "beaten", "failed", "refused", "held", "wrong"]
    assert report.trials[2].problem == "vLLM died while loading"
    assert "vLLM refuses it" in (report.trials[3].problem or "")
    assert report.is_changed and report.is_complete
    assert report.settings == {"serving.max_num_seqs": FAST}
    # 20 ms hold less than 50/s, and 8 ms less than 125/s.
    own, tuned = report.own_rate_rps, report.rate_rps
    assert own is not None and 15 <= own < 50
    assert tuned is not None and own < tuned < 125
    assert report.gain == pytest.approx(tuned / own)
    assert report.comparison is not None and report.comparison.is_won
    assert set(report.comparison.tuned_verdicts) == {"PASS"}
    assert "PASS" not in report.comparison.own_verdicts
    # The comparison starts own, tuned, own; the slow server was measured at one rate only.
    assert servers.started[-3:] == [SAME, FAST, SAME]
    slow = json.loads((tmp_path / "t" / "01-search.json").read_text())
    assert slow["probes"]
    assert [one["rate_rps"] for one in slow["probes"]] == pytest.approx(
        [own * 1.05] * len(slow["probes"])
    )
    # The same tuning again tries the failed trial once more, and measures nothing else.
    num_started = len(servers.started)
    for _ in range(2):
        again = tune_servers(
            servers.bench(), offers(SLOW, DEAD, REFUSED, FAST, WRONG), ServingConfig(), 300.0
        )
        assert servers.started[num_started:] == [DEAD]
        assert (again.trials[2].state, again.trials[2].attempts) == ("failed", 2)
        assert again.trials[3:] == report.trials[3:] and again.comparison == report.comparison


def test_a_killed_tuning_goes_on_after_its_last_trial(tmp_path: Path) -> None:
    servers = Servers(tmp_path / "t")
    beaten = Trial(
        number=1, knob="sequences", settings={"serving.max_num_seqs": SLOW}, state="beaten",
        to_beat_rps=31.5,
    )  # fmt: skip
    trials_on_disk(servers.folder, own_trial(), beaten)
    report = tune_servers(servers.bench(), offers(SLOW, DEAD), ServingConfig(), 300.0)
    assert servers.started == [DEAD]
    assert states(report.trials) == ["held", "beaten", "failed"]
    assert report.spent_s >= 5.0
    assert read_trials(servers.folder) == report.trials


def test_a_trial_that_failed_is_tried_again_and_may_win(tmp_path: Path) -> None:
    servers = Servers(tmp_path / "t")
    failed = Trial(
        number=1, knob="sequences", settings={"serving.max_num_seqs": FAST}, state="failed",
        problem="vLLM died while loading", total_s=4.0,
    )  # fmt: skip
    beaten = Trial(
        number=2, knob="sequences", settings={"serving.max_num_seqs": SLOW}, state="beaten",
        to_beat_rps=31.5,
    )  # fmt: skip
    trials_on_disk(servers.folder, own_trial(), failed, beaten)
    report = tune_servers(servers.bench(), offers(FAST, SLOW), ServingConfig(), 300.0)
    assert states(report.trials) == ["held", "held", "beaten"]
    assert servers.started[0] == FAST and SLOW not in servers.started
    assert report.trials[1].attempts == 2 and report.trials[1].total_s > 4.0
    assert report.settings == {"serving.max_num_seqs": FAST}


def test_a_failed_trial_without_time_stays_failed(tmp_path: Path) -> None:
    servers = Servers(tmp_path / "t")
    failed = Trial(
        number=1, knob="sequences", settings={"serving.max_num_seqs": FAST}, state="failed",
        problem="vLLM died while loading", total_s=293.0,
    )  # fmt: skip
    beaten = Trial(
        number=2, knob="sequences", settings={"serving.max_num_seqs": SLOW}, state="beaten",
        to_beat_rps=31.5,
    )  # fmt: skip
    trials_on_disk(servers.folder, own_trial(), failed, beaten)
    report = tune_servers(servers.bench(), offers(FAST, SLOW), ServingConfig(), 300.0)
    assert servers.started == []
    assert report.trials == [own_trial(), failed, beaten]
    assert report.is_complete


def test_where_nothing_is_better_the_own_settings_stay(tmp_path: Path) -> None:
    servers = Servers(tmp_path / "t")
    trials_on_disk(servers.folder, own_trial().model_copy(update={"rate_rps": 40.0}))
    report = tune_servers(servers.bench(), offers(SLOW), ServingConfig(), 300.0)
    assert states(report.trials) == ["held", "beaten"]
    assert (report.verdict, report.is_changed, report.settings) == ("PASS", False, {})
    assert (report.rate_rps, report.gain, report.comparison) == (40.0, None, None)
    assert servers.started == [SLOW]


def test_a_gain_that_the_comparison_does_not_confirm_is_not_taken(tmp_path: Path) -> None:
    servers = Servers(tmp_path / "t")
    # The trials say 10 and 20 requests/s, and both servers hold 20.
    own = own_trial().model_copy(update={"rate_rps": 10.0, "failing_rps": 11.0})
    other = Trial(
        number=1, knob="sequences", settings={"serving.max_num_seqs": FAST}, state="held",
        rate_rps=20.0, failing_rps=22.0, num_requests=80, start_s=0.5,
    )  # fmt: skip
    trials_on_disk(servers.folder, own, other)
    report = tune_servers(servers.bench(), offers(FAST), ServingConfig(), 300.0)
    assert (report.verdict, report.is_changed, report.rate_rps) == ("PASS", False, 10.0)
    assert report.comparison is not None
    assert "the run's own settings hold 14.83 requests/s too" in (report.comparison.problem or "")
    assert report.problems == [
        f"the comparison does not confirm the trials: {report.comparison.problem}"
    ]


def test_objectives_that_nothing_meets_fail(tmp_path: Path) -> None:
    servers = Servers(tmp_path / "t", limit_s=0.001)
    bench = servers.bench(start_rps=160.0, num_requests=40)
    report = tune_servers(bench, offers(FAST), ServingConfig(), 300.0)
    assert states(report.trials) == ["no rate", "no rate"]
    assert report.verdict == "FAIL"
    assert "no settings meet the objectives" in report.problems[0]


def test_a_tuning_with_too_few_requests_is_inconclusive(tmp_path: Path) -> None:
    servers = Servers(tmp_path / "t")
    problem = "too few requests to judge a load: 1755 are needed"
    open_one = {"state": "undecided", "rate_rps": None, "num_requests": None, "problem": problem}
    trials_on_disk(servers.folder, own_trial().model_copy(update=open_one))
    report = tune_servers(servers.bench(), [], ServingConfig(), 300.0)
    assert states(report.trials) == ["undecided"]
    assert (report.verdict, report.is_changed) == ("INCONCLUSIVE", False)
    assert report.problems == [f"trial 0: {problem}"]
    assert servers.started == []


def test_the_budget_ends_a_tuning_between_trials(tmp_path: Path) -> None:
    servers = Servers(tmp_path / "t")
    trials_on_disk(servers.folder, own_trial().model_copy(update={"total_s": 298.0}))
    report = tune_servers(servers.bench(), offers(FAST), ServingConfig(), 300.0)
    assert servers.started == []
    assert (report.is_complete, report.is_changed, report.verdict) == (False, False, "PASS")


def test_a_budget_that_ends_in_the_first_trial_is_inconclusive(tmp_path: Path) -> None:
    servers = Servers(tmp_path / "t")
    report = tune_servers(servers.bench(), offers(FAST), ServingConfig(), 8.5)
    assert states(report.trials) == ["cut off"]
    assert report.verdict == "INCONCLUSIVE"
    assert "the budget of 8.5 s ended before" in report.problems[0]
    assert read_trials(servers.folder) == [], "it is measured again next time"


def test_a_server_that_is_never_ready_ends_with_the_budget(tmp_path: Path) -> None:
    servers = Servers(tmp_path / "t")
    # 14 s are left. A trial takes 0.5 s of start, 80 requests at 31.5 requests/s and 6 s.
    trials_on_disk(servers.folder, own_trial().model_copy(update={"total_s": 286.0}))
    began_s = time.monotonic()
    report = tune_servers(servers.bench(), offers(NEVER_READY, FAST), ServingConfig(), 300.0)
    assert time.monotonic() - began_s < 20
    assert servers.started == [NEVER_READY]
    assert states(report.trials) == ["held", "cut off"]
    assert report.trials[1].problem == "the budget ended while the server started"
    assert (report.is_complete, report.is_changed, report.verdict) == (False, False, "PASS")
    assert len(read_trials(servers.folder)) == 1, "a larger budget starts it again"


def test_a_budget_too_small_for_one_trial_is_refused(tmp_path: Path) -> None:
    servers = Servers(tmp_path / "t")
    with pytest.raises(ConfigError, match="too small for one trial") as caught:
        tune_servers(servers.bench(), offers(FAST), ServingConfig(), 7.0)
    assert caught.value.exit_code == 2
    assert servers.started == []


def test_a_run_whose_own_server_does_not_start_is_an_error(tmp_path: Path) -> None:
    servers = Servers(tmp_path / "t")

    @contextlib.contextmanager
    def dead(_: Any, _limit_s: float) -> Iterator[Endpoint]:
        raise ServerError("vLLM died while loading")
        yield

    with pytest.raises(ServerError, match="vLLM died"):
        tune_servers(servers.bench(open=dead), offers(FAST), ServingConfig(), 300.0)

"""Load tests in several processes and pods, on the known server."""

import shutil
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loadtest.client.prepare import make_plan
from loadtest.client.processes import Measured, run_workers
from loadtest.client.records import Records
from loadtest.client.server_check import Served
from loadtest.config import LoadTestConfig
from loadtest.measure import judged
from loadtest.run import run_loadtest
from loadtest.shards.join import join_shards
from loadtest.shards.shard import run_shard, write_shard
from tests.integration.loadtest.client.talk_server import talk_server
from tests.integration.loadtest.client.test_answers import EXACT, reference
from tests.integration.loadtest.small import PROMPTS, config, report_of
from tuneline.core.artifact import new_artifact
from tuneline.core.endpoint import Endpoint
from tuneline.core.errors import ArtifactError, ConfigError

pytestmark = pytest.mark.usefixtures("shared_host")


def run_two_shards(settings: LoadTestConfig, endpoint: Endpoint, folder: Path) -> None:
    """Write the shards of two pods to `s0` and `s1`; they begin when both have come up."""
    agreed: list[float] = []
    barrier = threading.Barrier(2, action=lambda: agreed.append(time.time() + 2))

    def start() -> float:
        barrier.wait(120)
        return agreed[0]

    def run(shard: int) -> None:
        run_shard(
            settings, endpoint, folder / f"s{shard}", prompts=PROMPTS, shard=shard, num_shards=2,
            start=start,
        )  # fmt: skip

    threads = [threading.Thread(target=run, args=(shard,)) for shard in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_shards_of_different_runs_are_not_joined(known: Any, tmp_path: Path) -> None:
    def shard(name: str, number: int, *, start_s: float, port: int) -> Path:
        settings = config()
        plan, workload = make_plan(
            settings, settings.scenarios[0], known.endpoint, PROMPTS, seed=settings.seed
        )
        measured = run_workers(plan, None)
        rows = measured.records.index % 2 == number
        endpoint = replace(known.endpoint, url=f"http://127.0.0.1:{port}/v1")
        part = Measured(measured.records.select(rows), measured.workers, start_s)
        resolved = settings.model_dump(mode="json")
        with new_artifact(tmp_path / name, "load-shard", config=resolved) as draft:
            served = Served(["known"], None, None, None)
            write_shard(draft.dir, plan, workload, endpoint, served, part, number, 2)
        return tmp_path / name

    first = shard("a", 0, start_s=1000.0, port=1)
    other = shard("b", 1, start_s=1007.0, port=2)
    with pytest.raises(ArtifactError, match="began at another time") as caught:
        join_shards([first, other], tmp_path / "merged")
    assert "asked another endpoint" in str(caught.value)
    assert not (tmp_path / "merged").exists()


def test_a_shard_is_calibrated_and_reads_the_server(known: Any, tmp_path: Path) -> None:
    settings = config(calibrate=True)
    run_shard(
        settings, known.endpoint, tmp_path / "s", prompts=PROMPTS, shard=0, num_shards=1,
        start=lambda: time.time() + 2,
    )  # fmt: skip
    merged = join_shards([tmp_path / "s"], tmp_path / "merged")
    (scenario,) = report_of(merged)["scenarios"]
    assert scenario["calibration"]["num_requests"] > 0
    tokens = scenario["server"]["figures"]["generation_tokens"]
    assert tokens == 65 * 8


def test_merged_shards_equal_the_single_run(known: Any, tmp_path: Path) -> None:
    settings = config(num_workers=3)
    (scenario,) = settings.scenarios
    plan, workload = make_plan(settings, scenario, known.endpoint, PROMPTS, seed=settings.seed)
    whole = run_workers(plan, None)
    single = judged(settings, scenario, plan, workload, whole)
    paths = []
    for shard in range(3):
        rows = whole.records.index % 3 == shard
        part = Measured(whole.records.select(rows), [whole.workers[shard]], whole.start_unix_s)
        path = tmp_path / f"shard{shard}"
        resolved = config(num_workers=1).model_dump(mode="json")
        with new_artifact(path, "load-shard", config=resolved) as draft:
            write_shard(
                draft.dir, plan, workload, known.endpoint, Served(["known"], None, None, None),
                part, shard, 3,
            )  # fmt: skip
        paths.append(path)
    merged = join_shards(list(reversed(paths)), tmp_path / "merged")
    stored = Records.load(merged.path / "records-open.npz")
    for name in vars(stored):
        np.testing.assert_array_equal(
            getattr(stored, name), getattr(single.records, name), err_msg=name
        )
    (found,) = report_of(merged)["scenarios"]
    assert found["plan_digest"] == single.plan_digest
    assert found["requests"]["offered"] == 60
    for name, figure in single.stats.latencies.items():
        assert found["latency"][name]["percentiles"] == figure.percentiles
        assert found["latency"][name]["n"] == figure.n
    with pytest.raises(ArtifactError, match="shard 1 of 3 is missing"):
        join_shards([paths[0], paths[2]], tmp_path / "broken")
    with pytest.raises(ArtifactError, match="shard 0 is there twice"):
        join_shards([paths[0], paths[0], paths[1], paths[2]], tmp_path / "broken")


def test_pods_share_one_schedule(known: Any, tmp_path: Path) -> None:
    run_two_shards(config(), known.endpoint, tmp_path)
    merged = join_shards([tmp_path / "s0", tmp_path / "s1"], tmp_path / "merged")
    records = Records.load(merged.path / "records-open.npz")
    assert records.index.tolist() == list(range(65))
    plan, _ = make_plan(config(), config().scenarios[0], known.endpoint, PROMPTS, seed=0)
    assert plan.arrivals_s is not None
    np.testing.assert_allclose(records.intended_s, plan.arrivals_s, atol=1e-6)
    with pytest.raises(ConfigError, match="in the past"):
        run_shard(
            config(), known.endpoint, tmp_path / "late", prompts=PROMPTS, shard=0, num_shards=1,
            start=lambda: time.time() - 1,
        )  # fmt: skip


@pytest.mark.parametrize("length", [{"num_requests": 12}, {"duration_s": 0.5}])
def test_more_processes_than_streams_lose_no_request(
    known: Any, tmp_path: Path, length: dict[str, Any]
) -> None:
    scenario = {"name": "closed", "concurrency": 2, **length}
    settings = config(scenarios=[scenario], num_workers=3, timeout_s=5.0, num_warmup_requests=0)
    artifact = run_loadtest(settings, known.endpoint, tmp_path / "a", prompts=PROMPTS)
    requests = report_of(artifact)["scenarios"][0]["requests"]
    assert requests["succeeded"] == requests["offered"] >= 6
    # And as pods: of two with two processes each, the second has no stream.
    run_two_shards(settings.model_copy(update={"num_workers": 2}), known.endpoint, tmp_path)
    assert len(Records.load(tmp_path / "s1" / "records.npz")) == 0
    merged = join_shards([tmp_path / "s0", tmp_path / "s1"], tmp_path / "merged")
    requests = report_of(merged)["scenarios"][0]["requests"]
    assert requests["succeeded"] == requests["offered"] >= 6


@pytest.mark.parametrize("wrong_after", [None, 30])
def test_pods_compare_answers_and_let_clients_leave(
    tmp_path: Path, wrong_after: int | None
) -> None:
    folder = reference(tmp_path / "reference").path
    settings = config(
        scenarios=[{"name": "x", "rate_rps": 40.0, "num_requests": 80}],
        num_workers=2,
        answers={"share": 0.25, "tolerances": EXACT, "reference": str(folder)},
        cancellations={"share": 0.1, "after_tokens": 1},
    )
    with talk_server(wrong_after=wrong_after) as server:
        run_two_shards(settings, server.endpoint, tmp_path)
    # The pod that joins needs no reference.
    shutil.rmtree(folder)
    merged = join_shards([tmp_path / "s0", tmp_path / "s1"], tmp_path / "merged")
    (scenario,) = report_of(merged)["scenarios"]
    found = scenario["answers"]
    assert found["num_compared"] >= 10
    assert (found["num_equal"] == found["num_compared"]) == (wrong_after is None)
    is_wrong = any(one.startswith("answers under load: ") for one in scenario["problems"])
    assert is_wrong == (wrong_after is not None), scenario["problems"]
    # Clients of the warm-up leave, too.
    assert scenario["cancellations"]["num_left"] >= scenario["requests"]["cancelled"] > 0

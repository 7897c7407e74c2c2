"""A rendered pod under a kubelet: a cold start, then a rolling update under streams."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import openai
import pytest

from benchmarks.kubelet import Pod, ended_at_last, wait_until_ready
from benchmarks.rollout import KEY, Load, node_with, rendered, rollout, served_name
from k8s.rules.objects import of_kind
from tuneline.core.files import file_sha256, payload_files
from tuneline.models.source import resolve_model

NUM_STREAMS = 4
LEAST_REQUESTS = 60


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short path: vLLM's sockets are in the pod's `/tmp`, and the kernel allows 107
    characters for the path of a socket. pytest's own folders are longer."""
    with tempfile.TemporaryDirectory(prefix="node-") as name:
        yield Path(name)


@pytest.mark.timeout(1500)  # two starts of three processes each, next to other tests
def test_a_rolling_update_under_load_loses_no_request(
    folder: Path, record_property: Callable[[str, object], None]
) -> None:
    model = resolve_model("tiny-base")
    objects = rendered(model, folder)
    (deployment,) = of_kind(objects, "Deployment")
    assert deployment["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    node = node_with(model, objects, folder)
    cold = Pod.of(objects, node, folder / "cold.log")
    new = Pod.of(objects, node, folder / "new.log")
    assert cold.command()[:2] == ["vllm", "serve"]
    cache = node.mounts["/cache"]

    async def scene() -> tuple[Load, float, dict[str, str]]:
        run = asyncio.create_task(cold.run())
        await wait_until_ready(cold, run)
        kernels = digests(cache)
        before = await answer(cold)
        load, end_s = await rollout(
            cold, run, new, NUM_STREAMS, LEAST_REQUESTS, is_idle_while_loading=True
        )
        assert await answer(new) == before, "the stored model answers otherwise"
        return load, end_s, kernels

    with ended_at_last([cold, new]):
        load, end_s, kernels = asyncio.run(scene())
    assert load.outcomes.total() >= LEAST_REQUESTS
    assert load.lost == 0, load.outcomes
    assert (cold.exit_code, cold.was_killed) == (0, False)
    for pod in (cold, new):
        assert pod.restarts == 0
        assert list(pod.start_s) == ["imports", "engine", "routes"]
    grace_s = cold.spec["terminationGracePeriodSeconds"]
    assert end_s < grace_s - 15, "the old pod needs its whole grace period"
    # The claim outlives the pod. The two differ in port, process ids and time, so none of these is
    # in the key of the cache.
    assert "saved AOT compiled function" in cold.log_path.read_text()
    assert "Directly load AOT compilation" in new.log_path.read_text()
    assert any(name.endswith("rank_0_0/model") for name in kernels)
    assert digests(cache) == kernels, "the new pod has compiled a part of the model"
    record_property("cold_ready_s", cold.ready_s)
    record_property("warm_ready_s", new.ready_s)


async def answer(pod: Pod) -> str:
    """Return a pod's greedy answer, asked by itself."""
    async with openai.AsyncOpenAI(base_url=f"{pod.url}/v1", api_key=KEY) as client:
        completion = await client.completions.create(
            model=served_name(pod), prompt="The printer", max_tokens=32, temperature=0
        )
    return completion.choices[0].text


def digests(cache: Path) -> dict[str, str]:
    """Return the digest of every file below the folder of vLLM's compiled models."""
    (compiled,) = cache.glob("*/vllm/torch_compile_cache")
    files = payload_files(compiled)
    return {str(file.relative_to(compiled)): file_sha256(file) for file in files}

"""A rendered pod under a kubelet: a cold start, then a canary and its roll-out under streams."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import openai
import pytest

from benchmarks.kubelet import Pod, ended_at_last, wait_until_ready
from benchmarks.rollout import KEY, Load, canary, node_with, rendered, rollout, run_name
from k8s.rules.objects import of_kind
from tuneline.core.files import file_sha256, payload_files
from tuneline.models.source import resolve_model

NUM_STREAMS = 4
LEAST_REQUESTS = 30
"""Of the canary, and of the roll-out."""


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short path: vLLM's sockets are in the pod's `/tmp`, and the kernel allows 107
    characters for the path of a socket. pytest's own folders are longer."""
    with tempfile.TemporaryDirectory(prefix="node-") as name:
        yield Path(name)


@pytest.mark.timeout(1500)  # two starts of three processes each, next to other tests
def test_a_canary_and_its_roll_out_under_load_lose_no_request(
    folder: Path, record_property: Callable[[str, object], None]
) -> None:
    model = resolve_model("tiny-base")
    objects = rendered(model, folder)
    (deployment,) = of_kind(objects, "Deployment")
    assert deployment["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    # A run of another name would compile anew: vLLM's kernels are those of one model folder.
    node = node_with(model, folder, objects)
    cold = Pod.of(objects, node, folder / "cold.log")
    new = Pod.of(objects, node, folder / "new.log")
    assert cold.command()[:2] == ["vllm", "serve"]
    cache = node.mounts["/cache"]

    async def scene() -> tuple[Load, dict[int, float], Load, float, dict[str, str]]:
        run = asyncio.create_task(cold.run())
        await wait_until_ready(cold, run)
        kernels = digests(cache)
        before = await answer(cold)
        # Nothing else is asked while the new pod loads, so that both times can be compared.
        new_run = asyncio.create_task(new.run())
        await wait_until_ready(new, new_run)
        moved, shares = await canary(cold, new, NUM_STREAMS, LEAST_REQUESTS)
        load, end_s = await rollout(cold, run, new, new_run, NUM_STREAMS, LEAST_REQUESTS)
        assert await answer(new) == before, "the stored model answers otherwise"
        return moved, shares, load, end_s, kernels

    with ended_at_last([cold, new]):
        moved, shares, load, end_s, kernels = asyncio.run(scene())
    for found in (moved, load):
        assert found.outcomes.total() >= LEAST_REQUESTS
        assert found.lost == 0, found.outcomes
    # A step has six requests or more, so half a request is at most 0.09 of them.
    assert list(shares) == [10, 50, 100]
    assert all(abs(share - weight / 100) < 0.1 for weight, share in shares.items()), shares
    assert shares[100] == 1
    assert (cold.exit_code, cold.was_killed) == (0, False)
    for pod in (cold, new):
        assert pod.restarts == 0
        assert list(pod.start_s) == ["imports", "engine", "routes", "answer"]
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
            model=run_name(pod), prompt="The printer", max_tokens=32, temperature=0
        )
    return completion.choices[0].text


def digests(cache: Path) -> dict[str, str]:
    """Return the digest of every file below the folder of vLLM's compiled models."""
    (compiled,) = cache.glob("*/vllm/torch_compile_cache")
    files = payload_files(compiled)
    return {str(file.relative_to(compiled)): file_sha256(file) for file in files}

# ruff: noqa: E402
"""A rolling update under load, and a restart on a warm cache: `python benchmarks/rollout.py`.

Renders the manifests of the tiny base, as `tuneline deploy render` does, and acts as the kubelet
(benchmarks/kubelet.py): starts a pod with an empty cache, ends it, starts it again on the cache
that it has left, and replaces it by another pod under streams, with maxSurge 1 and maxUnavailable
0. Then a canary, a run of another name, gets 10, 50 and 100 percent of the requests from a gateway.
Every request must have a whole answer; the openai client may try again, as it does by default.

    python benchmarks/rollout.py [--requests 1000] [--streams 8] [--eager] [--model DIR]

Prints one JSON document: requests, lost requests, the canary's share at each weight, the times to
ready with their parts, and the load of the machine. Exits with 1 if a request is lost.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import os
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# The scripts of this folder would hide the packages of the same names.
sys.path[:] = [path for path in sys.path if Path(path or ".").resolve() != Path(__file__).parent]
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import openai

from benchmarks.kubelet import Gateway, Node, Pod, Service, ended_at_last, make_image, roll_over
from benchmarks.kubelet import wait_until_ready as until_ready
from k8s import Facts, render_manifests
from k8s.config import HOST, MODEL_DIR, PORT, DeployConfig, Resources
from k8s.render.kustomize import build
from k8s.rules.objects import flags
from serving import plan_container
from serving.config import ServingConfig
from tuneline.core.environment import hardware_facts
from tuneline.models.source import ModelSource, resolve_model

KEY = "key-of-the-secret"
QUESTION = {"role": "user", "content": "The printer is jammed."}
MAX_TOKENS = 48
WEIGHTS = (10, 50, 100)
"""Percent of the requests that the canary gets, one after the other."""


@dataclass
class Load:
    """Requests of several streams until there are enough and nobody wants more."""

    least: int
    is_over: bool = False
    outcomes: Counter[str] = field(default_factory=Counter)

    @property
    def lost(self) -> int:
        return self.outcomes.total() - self.outcomes["whole"]

    async def stream(self, url: str, model: str) -> None:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=KEY, timeout=120) as client:
            while not (self.is_over and self.outcomes.total() >= self.least):
                self.outcomes[await self._ask(client, model)] += 1

    async def _ask(self, client: openai.AsyncOpenAI, model: str) -> str:
        reason, text = None, ""
        try:
            answer: Any = await client.chat.completions.create(
                model=model, messages=[QUESTION], max_tokens=MAX_TOKENS, stream=True,  # type: ignore[list-item]
                extra_body={"ignore_eos": True},
            )  # fmt: skip
            async for chunk in answer:
                for choice in chunk.choices:
                    text += choice.delta.content or ""
                    reason = choice.finish_reason or reason
        except openai.OpenAIError as error:
            return type(error).__name__
        return "whole" if reason == "length" and text else f"ended by {reason}"


def rendered(
    model: ModelSource, folder: Path, *, name: str = "tickets", **serving: Any
) -> list[Any]:
    """Return the objects of the manifests of a run, on claims for the model and the kernels."""
    model = dataclasses.replace(model, name=name)
    values = {"dtype": "float32", "max_model_len": 512, "cpu_kvcache_space_gib": 1, **serving}
    args, env = plan_container(
        ServingConfig(**values), model, model_dir=MODEL_DIR, host=HOST, port=PORT
    )
    config = DeployConfig(
        overlay="cpu", image="server:1", model_claim="models", cache_claim="kernels", surge=True,
        resources=Resources(cpu="1", memory="4Gi"),
    )  # fmt: skip
    facts = Facts(config, name, model.digest)
    tree = render_manifests(facts, folder / name, served_args=args, served_env=env)
    return list(build(tree) or [])


def node_with(model: ModelSource, folder: Path, *runs: list[Any]) -> Node:
    """Return a node whose claim has the model where the manifests of each run expect it."""
    paths = ("/model", "/cache", "/tmp")  # noqa: S108 (in the container)
    mounts = {path: folder / path.strip("/") for path in paths}
    for path in mounts.values():
        path.mkdir()
    for objects in runs:
        pod = Pod.of(objects, Node(mounts, {}, folder), folder / "log")
        (mounts["/model"] / Path(pod.container["args"][0]).name).symlink_to(model.path.resolve())
    return Node(mounts, {"api-key": KEY}, make_image(folder / "image"))


def run_name(pod: Pod) -> str:
    """Return the name by which clients ask for the run's model."""
    return flags(pod.container["args"])["--served-model-name"][0]


async def rollout(
    old: Pod,
    old_run: asyncio.Task[None],
    new: Pod,
    new_run: asyncio.Task[None],
    streams: int,
    requests: int,
) -> tuple[Load, float]:
    """Replace a pod by a new pod under load, as soon as the new pod is ready.

    Returns:
        What became of the requests, and the seconds that the old pod took to end.
    """
    service, load = Service(), Load(requests)
    service.endpoints.append(old)
    url = await service.open()
    clients = [asyncio.create_task(load.stream(url, run_name(old))) for _ in range(streams)]
    try:
        end_s = await roll_over(service, old, old_run, new, new_run)
    finally:
        load.is_over = True
    await asyncio.gather(*clients)
    service.close()
    return load, end_s


async def canary(
    stable: Pod, new: Pod, streams: int, requests: int
) -> tuple[Load, dict[int, float]]:
    """Give a pod that is ready a growing share of another pod's requests.

    Returns:
        What became of the requests, and the share that the new pod got at each weight.
    """
    gateway, load = Gateway(), Load(requests)
    gateway.weigh((stable, 100))
    url = await gateway.open()
    clients = [asyncio.create_task(load.stream(url, run_name(stable))) for _ in range(streams)]
    shares: dict[int, float] = {}
    try:
        for step, weight in enumerate(WEIGHTS, start=1):
            gateway.weigh((stable, 100 - weight), (new, weight))
            while load.outcomes.total() < requests * step / len(WEIGHTS):
                assert not any(client.done() for client in clients), "a client has ended"
                await asyncio.sleep(0.1)
            shares[weight] = round(gateway.asked[new.port] / gateway.asked.total(), 3)
    finally:
        load.is_over = True
        await asyncio.gather(*clients)
        await gateway.close()
    return load, shares


async def measure(
    model: ModelSource, folder: Path, requests: int, streams: int, eager: bool
) -> dict[str, Any]:
    """Return the figures of a cold start, a warm restart and a rolling update."""
    objects = rendered(model, folder, enforce_eager=eager)
    other = rendered(model, folder, name="next", aliases=["tickets"], enforce_eager=eager)
    node = node_with(model, folder, objects, other)
    cold, warm, new = (
        Pod.of(objects, node, folder / f"{name}.log") for name in ("cold", "warm", "new")
    )
    later = Pod.of(other, node, folder / "next.log")
    with ended_at_last([cold, warm, new, later]):
        cold_run = asyncio.create_task(cold.run())
        await until_ready(cold, cold_run)
        await cold.end(cold_run)
        warm_run = asyncio.create_task(warm.run())
        await until_ready(warm, warm_run)
        new_run = asyncio.create_task(new.run())
        load, end_s = await rollout(warm, warm_run, new, new_run, streams, requests)
        later_run = asyncio.create_task(later.run())
        await until_ready(later, later_run)
        moved, shares = await canary(new, later, streams, requests)
    return {
        "hardware": hardware_facts(),
        "load_average": os.getloadavg(),
        "eager": eager,
        "requests": load.outcomes.total(),
        "lost": load.lost,
        "outcomes": load.outcomes,
        "canary": {
            "requests": moved.outcomes.total(),
            "lost": moved.lost,
            "outcomes": moved.outcomes,
            "shares": shares,
        },
        "cold_ready_s": round(cold.ready_s, 2),
        "cold_parts_s": cold.start_s,
        "warm_ready_s": round(warm.ready_s, 2),
        "warm_parts_s": warm.start_s,
        "warm_to_cold": round(warm.ready_s / cold.ready_s, 3),
        "under_load_ready_s": round(new.ready_s, 2),
        "old_pod_ends_s": round(end_s, 1),
        "exit_codes": [cold.exit_code, warm.exit_code],
        "restarts": [pod.restarts for pod in (cold, warm, new, later)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--eager", action="store_true")
    parser.add_argument("--model", default="tiny-base")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = asyncio.run(
            measure(
                resolve_model(given.model), Path(folder), given.requests, given.streams, given.eager
            )
        )
    print(json.dumps(found))
    sys.exit(0 if found["lost"] + found["canary"]["lost"] == 0 else 1)


if __name__ == "__main__":
    main()

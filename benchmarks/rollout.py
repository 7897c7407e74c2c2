# ruff: noqa: E402
"""A rolling update under load, and a restart on a warm cache: `python benchmarks/rollout.py`.

Renders the manifests of the tiny base, as `tuneline deploy render` does, and acts as the kubelet
(benchmarks/kubelet.py): starts a pod with an empty cache, ends it, starts it again on the cache
that it has left, and replaces it by another pod under streams, with maxSurge 1 and maxUnavailable
0. Every request must have a whole answer; the openai client may try again, as it does by default.

    python benchmarks/rollout.py [--requests 1000] [--streams 8] [--eager] [--model DIR]

Prints one JSON document: requests, lost requests, retries, the times to ready with their parts, and
the load of the machine. Exits with 1 if a request is lost.
"""

from __future__ import annotations

import argparse
import asyncio
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

from benchmarks.kubelet import Node, Pod, Service, ended_at_last, make_image, roll_over
from benchmarks.kubelet import wait_until_ready as until_ready
from k8s import render_manifests
from k8s.config import HOST, MODEL_DIR, PORT, DeployConfig, Resources
from k8s.render.kustomize import build
from serving import plan_container
from serving.config import ServingConfig
from tuneline.core.environment import hardware_facts
from tuneline.models.source import ModelSource, resolve_model

KEY = "key-of-the-secret"
QUESTION = {"role": "user", "content": "The printer is jammed."}
MAX_TOKENS = 48


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


def rendered(model: ModelSource, folder: Path, **serving: Any) -> list[Any]:
    """Return the objects of the manifests of a model, on claims for the model and the kernels."""
    values = {"dtype": "float32", "max_model_len": 512, "cpu_kvcache_space_gib": 1, **serving}
    args, env = plan_container(
        ServingConfig(**values), model, model_dir=MODEL_DIR, host=HOST, port=PORT
    )
    config = DeployConfig(
        overlay="cpu", image="server:1", model_claim="models", cache_claim="kernels", surge=True,
        resources=Resources(cpu="2", memory="4Gi"),
    )  # fmt: skip
    tree = render_manifests(
        config, name="tickets", model_digest=model.digest, served_args=args, served_env=env,
        out=folder / "manifests",
    )  # fmt: skip
    return list(build(tree) or [])


def node_with(model: ModelSource, objects: list[Any], folder: Path) -> Node:
    """Return a node whose claim has the model where the manifests expect it."""
    paths = ("/model", "/cache", "/tmp")  # noqa: S108 (in the container)
    mounts = {path: folder / path.strip("/") for path in paths}
    for path in mounts.values():
        path.mkdir()
    pod = Pod.of(objects, Node(mounts, {}, folder), folder / "log")
    (mounts["/model"] / Path(pod.container["args"][0]).name).symlink_to(model.path.resolve())
    return Node(mounts, {"api-key": KEY}, make_image(folder / "image"))


def served_name(pod: Pod) -> str:
    """Return the name that fixes the artifact."""
    args = pod.container["args"]
    return str(args[args.index("--served-model-name") + 2])


async def rollout(
    old: Pod,
    old_run: asyncio.Task[None],
    new: Pod,
    streams: int,
    requests: int,
    *,
    is_idle_while_loading: bool = False,
) -> tuple[Load, float]:
    """Replace a pod that is ready by a new pod under load.

    Args:
        is_idle_while_loading: The load begins when the new pod's startup probe succeeds, so that
            the new pod's time to ready can be compared with the old pod's.

    Returns:
        What became of the requests, and the seconds that the old pod took to end.
    """
    service, load = Service(), Load(requests)
    service.endpoints.append(old)
    url = await service.open()
    name = served_name(old)
    new_run = asyncio.create_task(new.run())
    while is_idle_while_loading and not new.is_started and not new_run.done():
        await asyncio.sleep(0.1)
    clients = [asyncio.create_task(load.stream(url, name)) for _ in range(streams)]
    try:
        end_s = await roll_over(service, old, old_run, new, new_run)
    finally:
        load.is_over = True
    await asyncio.gather(*clients)
    service.close()
    new_run.cancel()
    return load, end_s


async def measure(
    model: ModelSource, folder: Path, requests: int, streams: int, eager: bool
) -> dict[str, Any]:
    """Return the figures of a cold start, a warm restart and a rolling update."""
    objects = rendered(model, folder, enforce_eager=eager)
    node = node_with(model, objects, folder)
    cold, warm, new = (
        Pod.of(objects, node, folder / f"{name}.log") for name in ("cold", "warm", "new")
    )
    with ended_at_last([cold, warm, new]):
        cold_run = asyncio.create_task(cold.run())
        await until_ready(cold, cold_run)
        await cold.end(cold_run)
        warm_run = asyncio.create_task(warm.run())
        await until_ready(warm, warm_run)
        load, end_s = await rollout(warm, warm_run, new, streams, requests)
    return {
        "hardware": hardware_facts(),
        "load_average": os.getloadavg(),
        "eager": eager,
        "requests": load.outcomes.total(),
        "lost": load.lost,
        "outcomes": load.outcomes,
        "cold_ready_s": round(cold.ready_s, 2),
        "cold_parts_s": cold.start_s,
        "warm_ready_s": round(warm.ready_s, 2),
        "warm_parts_s": warm.start_s,
        "warm_to_cold": round(warm.ready_s / cold.ready_s, 3),
        "under_load_ready_s": round(new.ready_s, 2),
        "old_pod_ends_s": round(end_s, 1),
        "exit_codes": [cold.exit_code, warm.exit_code],
        "restarts": [cold.restarts, warm.restarts, new.restarts],
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
    sys.exit(0 if found["lost"] == 0 else 1)


if __name__ == "__main__":
    main()

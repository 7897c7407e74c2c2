"""Rules on the judge of a canary, as a Job or in an AnalysisTemplate of Argo Rollouts."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from k8s.rules.objects import Object, flags, of_kind, pods

LIMITS = ("failureLimit", "consecutiveErrorLimit")
COMPARE = ["tuneline", "loadtest", "compare"]
_URL = re.compile(r"http://[a-z0-9-]+:\d+/v1")


def _judges(objects: Sequence[Object]) -> Iterator[str]:
    """A judge asks the canary by its digest, another server for the speed, and proves first."""
    own = {
        f"http://{service['metadata']['name']}:{port['port']}/v1"
        for service in of_kind(objects, "Service")
        for port in service["spec"]["ports"]
    }
    for pod in pods(objects):
        for container in pod.spec.get("containers", []):
            if container.get("command", [])[:3] != COMPARE:
                continue
            args = flags(container["args"])
            stable, canary = args[""]
            if canary not in own:
                yield f"{pod.where}: judges {canary}; expected one of {sorted(own)}"
            if stable in own or not _URL.fullmatch(stable):
                yield (
                    f"{pod.where}: compares with {stable}; expected the server of another run in "
                    "the same namespace"
                )
            names = args.get("--model-b", [])
            if not any("@" in name for name in names):
                yield f"{pod.where}: asks for {names}; expected a name with the model's digest"
            proofs = [
                flags(first["args"]).get("--candidate")
                for first in pod.spec.get("initContainers", [])
                if first.get("command") == ["tuneline", "prove"]
            ]
            if proofs != [[canary]]:
                yield f"{pod.where}: an init container must prove the answers of {canary} first"


def _templates(objects: Sequence[Object]) -> Iterator[str]:
    """Argo Rollouts calls a measurement successful if its Job is; a second one hides a failure."""
    for item in of_kind(objects, "AnalysisTemplate"):
        for metric in item["spec"]["metrics"]:
            if [metric.get(key) for key in LIMITS] != [0, 0]:
                yield (
                    f"{item['kind']}/{item['metadata']['name']}: a verdict is not tried again: "
                    "failureLimit and consecutiveErrorLimit must be 0"
                )


RULES = (_judges, _templates)

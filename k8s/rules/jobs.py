"""Rules on Jobs: a load test of a server that is rendered with it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from k8s.rules.objects import Object, flags, namespace, of_kind, pods, servers


def _jobs(objects: Sequence[Object]) -> Iterator[str]:
    urls = {
        f"http://{service['metadata']['name']}:{port['port']}/v1": namespace(service)
        for service in of_kind(objects, "Service")
        for port in service["spec"]["ports"]
    }
    names = {
        name
        for _, container in servers(objects)
        for name in flags(container.get("args", [])).get("--served-model-name", [])
    }
    for pod in pods(objects):
        if pod.owner["kind"] != "Job":
            continue
        spec = pod.owner["spec"]
        if spec.get("backoffLimit") != 0 or pod.spec.get("restartPolicy") != "Never":
            yield f"{pod.where}: a verdict is not tried again: backoffLimit 0, restartPolicy Never"
        for key in ("activeDeadlineSeconds", "ttlSecondsAfterFinished"):
            if key not in spec:
                yield f"{pod.where}: {key} is not set"
        for container in pod.containers:
            args = flags(container.get("args", []))
            for url in args.get("--url", []):
                if urls.get(url) != namespace(pod.owner):
                    yield (
                        f"{pod.where}: {url} is not a Service of these manifests; expected one of "
                        f"{sorted(urls)}"
                    )
            for name in args.get("--model", []):
                if name not in names:
                    yield f"{pod.where}: model {name!r} is not served; served are {sorted(names)}"


RULES = (_jobs,)

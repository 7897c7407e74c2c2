"""Run the Job that judges a canary in the cluster, and wait for its verdict."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence

from k8s.cluster.kubectl import Cluster, Object, apply, delete, get
from k8s.cluster.pods import PATIENCE_S, Trouble, find_trouble
from k8s.rules.objects import QUEUE_LABEL, ref
from tuneline.core.errors import InconclusiveError, InvalidError, ServerError, VerdictError
from tuneline.core.progress import logger

POLL_S = 2.0
GONE_S = 60.0
"""The Job of an earlier step is gone by then."""
MARGIN_S = 60.0
"""Kubernetes ends a Job at its deadline, and says so a moment later."""
VERDICTS: dict[int, type[VerdictError]] = {6: VerdictError, 7: InconclusiveError, 8: InvalidError}
_EXIT_CODE = re.compile(r"exit code (\d+)")


def run_judge(cluster: Cluster, objects: Sequence[Object]) -> None:
    """Apply the judge's objects, and return when its Job is complete.

    A pod's template cannot change, so the Job of an earlier step is deleted first.

    Args:
        objects: Those of the directory `judge` of a rendered tree.

    Raises:
        VerdictError: A verdict is not met; InconclusiveError and InvalidError for exit codes 7, 8.
        ServerError: The Job fails in another way, its pod cannot start, or the cluster does not
            answer.
    """
    (job,) = (item for item in objects if item["kind"] == "Job")
    name = job["metadata"]["name"]
    delete(cluster, [job])
    until_s = time.monotonic() + GONE_S
    while get(cluster, "jobs", name):
        if time.monotonic() > until_s:
            raise ServerError(
                f"{cluster.where}: {ref(job)} of an earlier step is not gone after {GONE_S:g} s",
                hint=f"Try: kubectl delete -n {cluster.namespace} job {name}",
            )
        time.sleep(POLL_S)
    logger.info("%s: proves the answers and compares the speed, in the cluster", ref(job))
    apply(cluster, objects)
    until_s = time.monotonic() + job["spec"]["activeDeadlineSeconds"] + MARGIN_S
    stuck_s: dict[str, float] = {}
    while True:
        found = _state(cluster, name)
        if found == "Complete":
            return
        pods = get(cluster, "pods", f"--selector=batch.kubernetes.io/job-name={name}")
        troubles = [one for one in map(find_trouble, pods) if one is not None]
        if found is not None:
            raise _failure(cluster, ref(job), found, troubles)
        if (stuck := _stuck(troubles, stuck_s)) is not None or time.monotonic() > until_s:
            words = _late(cluster, name) if stuck is None else "cannot start"
            raise _failure(cluster, ref(job), words, troubles)
        time.sleep(POLL_S)


def _state(cluster: Cluster, name: str) -> str | None:
    """Return `Complete`, or why the Job failed; None while it runs."""
    for job in get(cluster, "jobs", name):
        for condition in job.get("status", {}).get("conditions", []):
            if condition["status"] != "True":
                continue
            if condition["type"] == "Complete":
                return "Complete"
            if condition["type"] == "Failed":
                return f"failed: {condition.get('message', condition.get('reason', ''))}"
    return None


def _late(cluster: Cluster, name: str) -> str:
    """Return why a Job did not end in time. The clock of a Job in a queue has not begun."""
    for job in get(cluster, "jobs", name):
        if job.get("spec", {}).get("suspend"):
            queue = job["metadata"].get("labels", {}).get(QUEUE_LABEL)
            return "is suspended" + (f": the queue {queue} has not admitted it" if queue else "")
    return "did not end in time"


def _stuck(troubles: Sequence[Trouble], since_s: dict[str, float]) -> Trouble | None:
    """Return a trouble that has lasted longer than its reason may."""
    now_s = time.monotonic()
    for one in troubles:
        begun_s = since_s.setdefault(f"{one.object} {one.reason}", now_s)
        if one.reason in PATIENCE_S and now_s - begun_s >= PATIENCE_S[one.reason]:
            return one
    return None


def _failure(cluster: Cluster, job: str, words: str, troubles: Sequence[Trouble]) -> Exception:
    """Return the error of a Job that ended badly, with what its containers said."""
    lines = "\n".join(f"  {one.line()}" for one in troubles)
    message = f"{cluster.where}: {job} {words}" + (f"\n{lines}" if lines else "")
    code = next((int(found[1]) for found in _EXIT_CODE.finditer(f"{words} {lines}")), None)
    hint = f"Try: kubectl logs -n {cluster.namespace} {job.lower()} --all-containers"
    if code in VERDICTS:
        return VERDICTS[code](message, hint=hint)
    return ServerError(message, hint=hint)

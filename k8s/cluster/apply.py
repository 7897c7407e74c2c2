"""Apply manifests, wait, check, and roll back by itself when any of it fails.

Nothing changes before the server has admitted every object in a dry run. From the first change on,
a failure brings the earlier manifests back and removes the objects that this apply created.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from k8s.cluster.changes import (
    RELEASE,
    ObjectChange,
    change_lines,
    compare_objects,
    identity,
    ref,
)
from k8s.cluster.check import Check, check_server
from k8s.cluster.kubectl import (
    Cluster,
    Object,
    apply,
    delete,
    get_live,
)
from k8s.cluster.revisions import (
    Record,
    Revision,
    is_under_way,
    new_revision,
    read_record,
    without_server_fields,
)
from k8s.cluster.rollout import Rollout, rollout_limit_s, wait_for_rollout
from k8s.render.facts import server_name
from k8s.rules.objects import DIGEST_LABEL
from tuneline.core.errors import ServerError, TunelineError
from tuneline.core.progress import logger

CHECK_S = 900.0
"""Added to the time that the record reserves: the checks of a server that is ready."""


@dataclass(frozen=True)
class Plan:
    """The manifests of a run, compared with the cluster."""

    run: str
    objects: list[Object]
    live: list[Object]
    merged: list[Object]
    leaving: list[Object]
    """Live objects of the current revision that the manifests no longer have."""
    record: Record

    @property
    def server(self) -> str:
        """Return the name of the Deployment."""
        return server_name(self.run)

    @property
    def deployment(self) -> Object:
        """Return the Deployment in the manifests."""
        return next(item for item in self.objects if item["kind"] == "Deployment")

    @property
    def changes(self) -> list[ObjectChange]:
        """Return the changes that an apply would make."""
        return compare_objects(self.live, self.merged, self.leaving)

    def lines(self) -> list[str]:
        """Return the changes for people."""
        return change_lines(self.live, self.merged, self.changes)


def plan_apply(
    cluster: Cluster,
    run: str,
    objects: Sequence[Mapping[str, Any]],
    *,
    force_conflicts: bool = False,
) -> Plan:
    """Compare the manifests of a run with the cluster, by a dry run on the server.

    Raises:
        ServerError: The cluster does not answer, refuses, or does not admit the manifests.
        ArtifactError: The record in the cluster is damaged.
    """
    wanted = [dict(item) for item in objects]
    record = read_record(cluster, server_name(run), run)
    merged = apply(cluster, wanted, dry_run=True, force_conflicts=force_conflicts)
    now = record.history.now()
    earlier = record.objects(now.number) if now is not None else []
    kept = {identity(item) for item in wanted}
    gone = [item for item in earlier if identity(item) not in kept]
    return Plan(run, wanted, get_live(cluster, wanted), merged, get_live(cluster, gone), record)


def apply_manifests(
    cluster: Cluster,
    plan: Plan,
    *,
    check: Check,
    timeout_s: float | None = None,
    force_conflicts: bool = False,
) -> Revision:
    """Apply a plan and return its revision, which is proven.

    Args:
        check: Asks the new server, through a port-forward.
        timeout_s: How long the rollout may take; by default the Deployment's own deadline.

    Raises:
        TunelineError: The rollout or a check failed, of the class of that failure. The earlier
            version runs again, or the message says why it does not.
    """
    record, limit_s = plan.record, timeout_s or rollout_limit_s(plan.objects)
    _refuse_busy(cluster, record)
    now = record.history.now()
    if not plan.changes and now is not None and now.state == "deployed":
        logger.info("nothing to change: %s is deployed", now.words())
        rollout = wait_for_rollout(cluster, plan.server, plan.run, timeout_s=limit_s)
        check_server(cluster, rollout, check)
        return now
    revision = _begin(cluster, plan, limit_s)
    try:
        apply(cluster, plan.objects, force_conflicts=force_conflicts)
        logger.info("applied as %s; waiting for its pods", revision.words())
        rollout = wait_for_rollout(cluster, plan.server, plan.run, timeout_s=limit_s)
        check_server(cluster, rollout, check)
    except TunelineError as error:
        raise _rolled_back(cluster, plan, revision, error, limit_s) from error
    except (KeyboardInterrupt, SystemExit):
        _say_interrupted(cluster, plan, revision)
        raise
    _remove(cluster, plan.leaving)
    record.set_state(revision.number, "deployed")
    record.write(cluster)
    return record.history.find(revision.number) or revision


def _remove(cluster: Cluster, leaving: Sequence[Object]) -> None:
    """Remove objects that the manifests no longer have; the server is proven without them."""
    try:
        delete(cluster, leaving)
    except TunelineError as error:
        names = ", ".join(map(ref, leaving))
        logger.warning("not removed: %s: %s", names, error.message)


def _refuse_busy(cluster: Cluster, record: Record) -> None:
    newest = record.history.revisions[-1] if record.history.revisions else None
    if newest is not None and is_under_way(newest):
        raise ServerError(
            f"{cluster.where}: {newest.words()} is being applied by {newest.applied_by} since "
            f"{newest.applied_at}, until {newest.until} at the latest",
            hint="Wait for it, or end it with: tuneline deploy roll-back RUN.yaml",
        )


def _begin(cluster: Cluster, plan: Plan, limit_s: float) -> Revision:
    """Record the new revision before anything changes, and the version that runs unrecorded."""
    record = plan.record
    if record.history.now() is None and any(o["kind"] == "Deployment" for o in plan.live):
        found = [without_server_fields(item) for item in plan.live]
        adopted = _revision(record, found, within_s=0.0)
        record.add(adopted.model_copy(update={"state": "deployed"}), found)
        logger.info("the running version was not applied by tuneline; kept as %s", adopted.words())
    revision = _revision(record, plan.objects, within_s=2 * limit_s + CHECK_S)
    record.add(revision, plan.objects)
    try:
        record.write(cluster)
    except (KeyboardInterrupt, SystemExit):
        _say_interrupted(cluster, plan, revision)
        raise
    return revision


def _revision(record: Record, objects: Sequence[Object], *, within_s: float) -> Revision:
    deployment = next(item for item in objects if item["kind"] == "Deployment")
    annotations = deployment["metadata"].get("annotations", {})
    return new_revision(
        record,
        release=annotations.get(RELEASE),
        model_digest=annotations.get(DIGEST_LABEL, "unknown"),
        image=deployment["spec"]["template"]["spec"]["containers"][0].get("image", ""),
        within_s=within_s,
    )


def restore(
    cluster: Cluster,
    run: str,
    earlier: Sequence[Mapping[str, Any]],
    created: Sequence[Mapping[str, Any]],
    *,
    timeout_s: float,
) -> Rollout | None:
    """Bring earlier manifests back, remove objects that came after them, and wait.

    Raises:
        ServerError: The cluster refuses, or the earlier version does not become ready.
    """
    kept = {identity(item) for item in earlier}
    surplus = [item for item in created if identity(item) not in kept]
    if earlier:
        apply(cluster, earlier, force_conflicts=True)
    delete(cluster, surplus)
    if not earlier:
        return None
    return wait_for_rollout(cluster, server_name(run), run, timeout_s=timeout_s)


def _rolled_back(
    cluster: Cluster, plan: Plan, revision: Revision, error: TunelineError, limit_s: float
) -> TunelineError:
    """Return the error after the earlier version is back, with what happened."""
    record, started_s = plan.record, time.monotonic()
    earlier = record.history.earlier()
    manifests = record.objects(earlier.number) if earlier is not None else []
    there = {identity(item) for item in plan.live}
    created = [item for item in plan.objects if identity(item) not in there]
    logger.info("%s failed; going back to %s", revision.words(), _name(earlier))
    try:
        restore(cluster, plan.run, manifests, created, timeout_s=limit_s)
        record.set_state(revision.number, "failed", error.message[:1000])
        record.set_current(0 if earlier is None else earlier.number)
        record.write(cluster)
    except (KeyboardInterrupt, SystemExit):
        logger.warning("interrupted on the way back to %s", _name(earlier))
        logger.warning("  finish it with: tuneline deploy roll-back RUN.yaml")
        raise
    except TunelineError as second:
        return type(error)(
            f"{error.message}\n  The roll-back to {_name(earlier)} failed too: {second.message}",
            hint="Try, as soon as the cause is gone: tuneline deploy roll-back RUN.yaml\n"
            "  The state: tuneline deploy status RUN.yaml",
        )
    took_s = time.monotonic() - started_s
    words = (
        f"Removed again: {', '.join(map(ref, created))}; there was no earlier version"
        if earlier is None
        else f"Rolled back to {earlier.words()}, which is ready again after {took_s:.0f} s"
    )
    hint = error.hint or "Mend the cause, then: tuneline deploy apply RUN.yaml"
    return type(error)(f"{error.message}\n  {words}", hint=hint)


def _name(revision: Revision | None) -> str:
    return "the state before, without a server" if revision is None else revision.words()


def _say_interrupted(cluster: Cluster, plan: Plan, revision: Revision) -> None:
    """Say what an interrupted apply leaves behind, and record it."""
    logger.warning("interrupted: %s is applied and not proven", revision.words())
    earlier = plan.record.history.earlier()
    if earlier is not None:
        logger.warning("  go back to %s: tuneline deploy roll-back RUN.yaml", earlier.words())
    logger.warning("  go on: tuneline deploy apply RUN.yaml; look: tuneline deploy status RUN.yaml")
    try:
        plan.record.set_state(revision.number, "interrupted", "interrupted by the user")
        plan.record.write(cluster)
    except TunelineError as error:
        logger.warning("  the record still says `applying`: %s", error.message)

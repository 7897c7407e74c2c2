"""Apply manifests, wait, check, and roll back by itself when any of it fails.

Nothing changes before the server has admitted every object in a dry run. From the first change on,
a failure brings the earlier manifests back and removes the objects that this apply created.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from k8s.cluster.changes import RELEASE, ObjectChange, change_lines, compare_objects, identity
from k8s.cluster.check import PROOF_S, Check, check_server
from k8s.cluster.kubectl import (
    Cluster,
    Object,
    apply,
    delete,
    get_live,
    get_surplus,
)
from k8s.cluster.refusals import CHANGED_RECORD, is_unreachable
from k8s.cluster.replicas import hold_replicas, refuse_owned, show_replicas
from k8s.cluster.revisions import (
    Record,
    Revision,
    State,
    is_under_way,
    new_revision,
    read_record,
    without_server_fields,
)
from k8s.cluster.rollout import rollout_limit_s, wait_for_rollout
from k8s.cluster.routes import warn_of_route
from k8s.cluster.shares import keep_shares, kept_words
from k8s.render.facts import server_name
from k8s.rules.objects import DIGEST_LABEL, ref
from tuneline.core.errors import ServerError, TunelineError
from tuneline.core.progress import logger

REQUESTS_S = 300.0
"""Added to the time that the record reserves: the requests between waiting and proof."""
MAX_WHY = 1000
"""Characters of the reason of a failure in the record."""


@dataclass(frozen=True)
class Plan:
    """The manifests of a run, compared with the cluster."""

    run: str
    objects: list[Object]
    live: list[Object]
    merged: list[Object]
    leaving: list[Object]
    """Live objects of recorded revisions that the manifests no longer have."""
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

    @property
    def is_deployed(self) -> bool:
        """Return whether the cluster has the manifests and the record calls them proven."""
        history = self.record.history
        now = history.now()
        return not (self.changes or history.going_to or now is None or now.state != "deployed")

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
    kept = keep_shares(cluster, wanted, record.current_objects())
    for words in kept_words(wanted, kept):
        logger.info(words)
    live = get_live(cluster, wanted)
    refuse_owned(cluster, live)
    merged = apply(cluster, kept, dry_run=True, force_conflicts=force_conflicts)
    leaving = get_surplus(cluster, record.surplus(wanted))
    return Plan(run, wanted, live, show_replicas(wanted, live, merged), leaving, record)


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
    record = plan.record
    _refuse_busy(cluster, record)
    _refuse_paused(cluster, plan)
    now, proven = record.history.now(), record.history.proven()
    back = [] if proven is None else record.objects(proven.number)
    limit_s = timeout_s or rollout_limit_s([*plan.merged, *back])
    if plan.is_deployed and now is not None:
        logger.info("nothing to change: %s is deployed", now.words())
        rollout = wait_for_rollout(cluster, plan.server, plan.run, timeout_s=limit_s)
        check_server(cluster, rollout, check)
        return now
    before = record.current_objects()
    revision = _begin(cluster, plan, limit_s)
    _roll_out(cluster, plan, before, revision, check, limit_s, force_conflicts)
    done = _finish(cluster, plan, revision)
    if any(item["kind"] == "HTTPRoute" for item in plan.objects):
        warn_of_route(cluster, plan.server)
    return done


def _roll_out(
    cluster: Cluster,
    plan: Plan,
    before: Sequence[Object],
    revision: Revision,
    check: Check,
    limit_s: float,
    force_conflicts: bool,
) -> None:
    """Apply, wait and check; whatever fails, the earlier version comes back."""
    state = "may be applied in part"
    try:
        # Time has passed since the plan, and a canary may have another share by now.
        wanted = keep_shares(cluster, plan.objects, before)
        hold_replicas(cluster, wanted)
        apply(cluster, wanted, force_conflicts=force_conflicts)
        state = "is applied and not proven"
        logger.info("applied as %s; waiting for its pods", revision.words())
        rollout = wait_for_rollout(cluster, plan.server, plan.run, timeout_s=limit_s)
        check_server(cluster, rollout, check)
    except (KeyboardInterrupt, SystemExit):
        logger.warning("interrupted: %s %s", revision.words(), state)
        _say_ways(plan.record)
        _close(cluster, plan, revision, "interrupted", "interrupted before it was proven")
        raise
    except TunelineError as error:
        words, hint = _go_back(cluster, plan, revision, error.message, limit_s)
        hint = hint or error.hint or "Mend the cause, then: tuneline deploy apply RUN.yaml"
        raise type(error)(f"{error.message}\n  {words}", hint=hint) from error
    except Exception as error:  # a bug of ours must not leave a server without its proof
        words, hint = _go_back(cluster, plan, revision, repr(error), limit_s)
        logger.warning("an unexpected error ended the apply: %r\n  %s", error, words)
        if hint is not None:
            logger.warning("  %s", hint)
        raise


def _finish(cluster: Cluster, plan: Plan, revision: Revision) -> Revision:
    """Record the proven revision as deployed, and remove what it no longer has.

    The record comes first: if somebody else has rolled back under way, the objects that would leave
    belong to the version that runs.

    Raises:
        ServerError: The record cannot be written. The server stays as it is.
    """
    record = plan.record
    try:
        record.close(cluster, revision, "deployed")
        _remove(cluster, plan.leaving)
    except (KeyboardInterrupt, SystemExit):
        logger.warning("interrupted: %s is deployed and proven", revision.words())
        if plan.leaving:
            names = ", ".join(map(ref, plan.leaving))
            logger.warning("  the next apply removes what is left of: %s", names)
        _close(cluster, plan, revision, "deployed", "")
        raise
    except TunelineError as error:
        if CHANGED_RECORD in error.message:
            raise type(error)(
                f"{error.message}\n  {revision.words()} was proven, and may be replaced by now; "
                "nothing was removed",
                hint=error.hint,
            ) from error
        raise type(error)(
            f"{error.message}\n  {revision.words()} is deployed and proven, and not recorded as so",
            hint="Try, as soon as the cause is gone: tuneline deploy apply RUN.yaml",
        ) from error
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


def _refuse_paused(cluster: Cluster, plan: Plan) -> None:
    """Raise ServerError for a Deployment that somebody has paused: no pod would be replaced."""
    for item in plan.merged:
        if item["kind"] == "Deployment" and item["spec"].get("paused"):
            name = item["metadata"]["name"]
            raise ServerError(
                f"{cluster.where}: {ref(item)} is paused, and would start no new pod",
                hint=f"Try: kubectl rollout resume -n {cluster.namespace} deployment {name}",
            )


def _begin(cluster: Cluster, plan: Plan, limit_s: float) -> Revision:
    """Record the new revision before anything changes, and the version that runs unrecorded."""
    record = plan.record
    for one in record.history.revisions:
        if one.state == "applying":
            record.set_state(one.number, "interrupted", "its process ended without a word")
    if record.history.now() is None and any(o["kind"] == "Deployment" for o in plan.live):
        found = [without_server_fields(item) for item in plan.live]
        adopted = _revision(record, found, within_s=0.0)
        record.add(adopted.model_copy(update={"state": "deployed"}), found)
        logger.info("the running version was not applied by tuneline; kept as %s", adopted.words())
    before = record.history.current
    revision = _revision(record, plan.objects, within_s=2 * limit_s + PROOF_S + REQUESTS_S)
    record.add(revision, plan.objects)
    try:
        record.write(cluster)
    except (KeyboardInterrupt, SystemExit):
        logger.warning("interrupted: only the record of %s was written", revision.words())
        why = "interrupted before anything was applied"
        _close(cluster, plan, revision, "interrupted", why, current=before)
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
    earlier: Sequence[Object],
    created: Sequence[Mapping[str, Any]],
    later: Sequence[Object],
) -> None:
    """Bring earlier manifests back, and remove objects that came after them.

    Args:
        later: The manifests that were applied last. A canary keeps its share of the route.

    Raises:
        ServerError: The cluster does not answer, or refuses.
    """
    kept = {identity(item) for item in earlier}
    surplus = [item for item in created if identity(item) not in kept]
    if earlier:
        wanted = keep_shares(cluster, earlier, [*earlier, *later])
        hold_replicas(cluster, wanted)
        apply(cluster, wanted, force_conflicts=True)
    delete(cluster, surplus)


def _go_back(
    cluster: Cluster, plan: Plan, revision: Revision, why: str, limit_s: float
) -> tuple[str, str | None]:
    """Bring the earlier version back, and return what happened and what to type if it failed."""
    record, started_s = plan.record, time.monotonic()
    earlier = record.history.earlier()
    there = {identity(item) for item in plan.live}
    created = [item for item in plan.objects if identity(item) not in there]
    logger.info("%s failed; going back to %s", revision.words(), _name(earlier))
    try:
        manifests = record.objects(earlier.number) if earlier is not None else []
        restore(cluster, manifests, created, plan.objects)
        if earlier is not None:
            wait_for_rollout(cluster, plan.server, plan.run, timeout_s=limit_s)
    except (KeyboardInterrupt, SystemExit):
        logger.warning("interrupted on the way back to %s", _name(earlier))
        logger.warning("  finish it with: tuneline deploy roll-back RUN.yaml")
        why = f"interrupted on the way back after: {why}"
        _close(cluster, plan, revision, "interrupted", why)
        raise
    except Exception as second:  # noqa: BLE001 (the caller raises the first failure)
        told = second.message if isinstance(second, TunelineError) else repr(second)
        if not (isinstance(second, TunelineError) and is_unreachable(second)):
            _close(cluster, plan, revision, "failed", f"{why}; the roll-back failed too: {told}")
        return f"The roll-back to {_name(earlier)} failed too: {told}", (
            "Try, as soon as the cause is gone: tuneline deploy roll-back RUN.yaml\n"
            "  The state: tuneline deploy status RUN.yaml"
        )
    current = 0 if earlier is None else earlier.number
    _close(cluster, plan, revision, "failed", why, current=current)
    if earlier is None:
        names = ", ".join(map(ref, created))
        return f"Removed again: {names}; there was no earlier version", None
    took_s = time.monotonic() - started_s
    return f"Rolled back to {earlier.words()}, which is ready again after {took_s:.0f} s", None


def _name(revision: Revision | None) -> str:
    return "the state before, without a server" if revision is None else revision.words()


def _say_ways(record: Record) -> None:
    """Say what a person can do after an apply that was interrupted."""
    earlier = record.history.earlier()
    if earlier is not None:
        logger.warning("  go back to %s: tuneline deploy roll-back RUN.yaml", earlier.words())
    logger.warning("  go on: tuneline deploy apply RUN.yaml; look: tuneline deploy status RUN.yaml")


def _close(
    cluster: Cluster,
    plan: Plan,
    revision: Revision,
    state: State,
    why: str,
    *,
    current: int | None = None,
) -> None:
    """Record how an apply ended; a failure is said, for another one is raised already."""
    try:
        plan.record.close(cluster, revision, state, why[:MAX_WHY], current=current)
    except TunelineError as error:
        logger.warning("  the record does not say so: %s", error.message)

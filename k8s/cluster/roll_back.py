"""Bring an earlier revision back by hand."""

from __future__ import annotations

from k8s.cluster.apply import restore
from k8s.cluster.check import Check, check_server
from k8s.cluster.kubectl import Cluster, get_surplus
from k8s.cluster.revisions import Revision, read_record
from k8s.cluster.rollout import rollout_limit_s, wait_for_rollout
from k8s.render.facts import server_name
from tuneline.core.errors import ArtifactError, TunelineError
from tuneline.core.progress import logger


def find_earlier(cluster: Cluster, run: str, number: int | None = None) -> Revision:
    """Return the revision that a roll-back brings back: the named one, that of a roll-back that
    did not end, or the proven one that ran before the current one.

    Raises:
        ArtifactError: The record has no such revision.
    """
    history = read_record(cluster, server_name(run), run).history
    found = history.target() if number is None else history.find(number)
    proven = [str(one.number) for one in history.revisions if one.state == "deployed"]
    wanted = "an earlier revision" if number is None else f"revision {number}"
    if found is None or found.state != "deployed":
        raise ArtifactError(
            f"{cluster.where}: run {run} has no proven record of {wanted}; expected one of "
            + (", ".join(proven) or "those that `tuneline deploy apply` would write"),
            hint="Try: tuneline deploy status RUN.yaml",
        )
    return found


def roll_back_server(
    cluster: Cluster,
    run: str,
    target: Revision,
    *,
    check: Check | None = None,
    timeout_s: float | None = None,
) -> Revision:
    """Apply the manifests of an earlier revision, remove what came after it, and wait.

    The record has the target from the beginning, and calls it current when it is proven: the same
    roll-back, typed again after a failure, goes to the same revision.

    Args:
        check: Asks the server afterwards, through a port-forward.

    Raises:
        TunelineError: The cluster refuses, the earlier version does not become ready, or its check
            fails. Nothing else is tried.
    """
    record = read_record(cluster, server_name(run), run)
    now = record.history.now()
    objects = record.objects(target.number)
    later = record.current_objects()
    surplus = get_surplus(cluster, record.surplus(objects))
    limit_s = timeout_s or rollout_limit_s([*objects, *later])
    if now is not None and now.state == "applying":
        record.set_state(now.number, "interrupted", "rolled back while it was applied")
    logger.info("going back to %s", target.words())
    record.set_going_to(target.number)
    record.write(cluster)
    state = "may be applied in part"
    try:
        restore(cluster, objects, surplus, later)
        state = "is applied and not ready"
        rollout = wait_for_rollout(cluster, server_name(run), run, timeout_s=limit_s)
        state = "is ready and not proven"
        if check is not None:
            check_server(cluster, rollout, check)
        state = "runs, and the record does not say so"
        record.close(cluster, target, "deployed", current=target.number)
    except TunelineError as error:
        raise type(error)(
            f"{error.message}\n  {target.words()} {state}",
            hint=error.hint
            or "Try, as soon as the cause is gone: tuneline deploy roll-back RUN.yaml",
        ) from error
    except Exception as error:  # a bug of ours must not hide the state that it leaves
        logger.warning("an unexpected error: %r\n  %s %s", error, target.words(), state)
        _say_ways()
        raise
    except (KeyboardInterrupt, SystemExit):
        logger.warning("interrupted: %s %s", target.words(), state)
        _say_ways()
        raise
    return target


def _say_ways() -> None:
    logger.warning(
        "  finish it: tuneline deploy roll-back RUN.yaml; look: tuneline deploy status RUN.yaml"
    )

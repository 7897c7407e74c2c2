"""The errors that kubectl's refusals become, with the next command to type."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

from k8s.rules.objects import QUEUE_LABEL
from tuneline.core.errors import ConfigError, ServerError, TunelineError
from tuneline.core.secrets import hide_secrets

MAX_WORDS = 1500
"""Characters of kubectl's own words in an error."""
UNREACHABLE = re.compile(
    r"unable to connect|connection to the server .* was refused|connection refused|no such host|"
    r"i/o timeout|deadline exceeded|Client\.Timeout|TLS handshake timeout|EOF$|no route to host|"
    r"connection reset|the server is currently unable|ServiceUnavailable|request timed out",
    re.IGNORECASE | re.MULTILINE,
)
_PASSING = re.compile(
    r"InternalError|Internal error occurred|TooManyRequests|too many requests|ServiceUnavailable|"
    r"the server is currently unable|"
    r"etcdserver: (?:leader changed|no leader|request timed out)|http2: client connection lost|"
    r'Operation cannot be fulfilled on (?!configmaps "\S+-revisions")',
    re.IGNORECASE,
)
"""A conflict about the record says that somebody else works on the deployment; it does not pass."""
OTHER_AUTOSCALER = "The number of pods stays without an autoscaler. Delete it, and apply again"
SILENT_WEBHOOK = "an admission webhook of the cluster does not answer"
CHANGED_RECORD = "somebody else changed the record of this deployment at the same time"
_NOISE = re.compile(r"^(?:Warning: .*|E\d{4} .*memcache\.go.*)\n?", re.MULTILINE)


def explain_refusal(where: str, options: Sequence[str], verb: str, stderr: str) -> TunelineError:
    """Return the error that says what kubectl's words mean.

    Args:
        where: The context and the namespace, in words.
        options: kubectl's options for them.
        verb: kubectl's command, such as `apply`.
        stderr: kubectl's own words.
    """
    kubectl = f"kubectl {shlex.join(options)}"
    words = hide_secrets(_NOISE.sub("", stderr).strip() or stderr.strip())[-MAX_WORDS:]
    if re.search(r"context .* does not exist|no context exists", words):
        return ConfigError(f"{where}: {words}", hint="Try: kubectl config get-contexts")
    if re.search(r"namespaces? \"[^\"]*\" not found", words):
        name = words.split('"')[1]
        return ServerError(
            f"{where}: the namespace does not exist",
            hint=f"Try: {shlex.join(['kubectl', *options[:-1]])} create namespace {name}",
        )
    if "Unauthorized" in words or "must be logged in" in words or "provide credentials" in words:
        return ServerError(
            f"{where}: the cluster does not accept your credentials: {words}",
            hint=f"Log in again, then: {kubectl} auth whoami",
        )
    if "it is being terminated" in words:
        return ServerError(
            f"{where}: the namespace is being deleted: {words}",
            hint="Wait until it is gone, and create it again; or choose another: --namespace NAME",
        )
    if (refused := _refused_by_controller(where, kubectl, words)) is not None:
        return refused
    if "failed calling webhook" in words:
        return ServerError(
            f"{where}: {SILENT_WEBHOOK}: {words}",
            hint="Ask who runs it, or see: kubectl get mutatingwebhookconfigurations,"
            "validatingwebhookconfigurations",
        )
    if "admission webhook" in words or "violates" in words or "exceeded quota" in words:
        return ServerError(f"{where}: the cluster does not admit the objects: {words}")
    if "orbidden" in words:
        return ServerError(
            f"{where}: kubectl {verb} is forbidden: {words}",
            hint=f"Try: {kubectl} auth can-i --list   (docs/deploy.md lists the rights)",
        )
    if re.search(r"Apply failed with \d+ conflict", words):
        owned = words.partition("Please review")[0].strip()
        return ServerError(
            f"{where}: another manager owns fields that the manifests set: {owned}",
            hint="Take the change over into run.yaml, or overwrite it with: --force-conflicts",
        )
    if "the object has been modified" in words or re.search(r'-revisions" already exists', words):
        return ServerError(
            f"{where}: {CHANGED_RECORD}",
            hint="Try: tuneline deploy status RUN.yaml",
        )
    if UNREACHABLE.search(words):
        return ServerError(
            f"{where}: the cluster does not answer: {words}",
            hint=f"Try: {kubectl} get --raw /readyz",
        )
    if "no matches for kind" in words or "doesn't have a resource type" in words:
        return ServerError(
            f"{where}: the cluster lacks a kind of object: {words}",
            hint="Install the project that brings it, or leave out its component in section k8s.",
        )
    return ServerError(f"{where}: kubectl {verb}: {words}")


def _refused_by_controller(where: str, kubectl: str, words: str) -> ServerError | None:
    """Return the error of a refusal by Kueue or KEDA; None for another."""
    if QUEUE_LABEL in words and "immutable" in words:
        return ServerError(
            f"{where}: Kueue lets no running server join, change or leave a queue: {words}",
            hint=f"Delete the Deployment, which ends the server, and apply again: {kubectl} delete "
            "deployment RUN-model-server",
        )
    if found := re.search(r"is already managed by the hpa '([^']+)'", words):
        return ServerError(
            f"{where}: KEDA takes no server that another autoscaler has: {words}",
            hint=f"{OTHER_AUTOSCALER}: {kubectl} delete horizontalpodautoscaler {found[1]}",
        )
    return None


def missing_right(error: TunelineError) -> str | None:
    """Return the right that an error says is missing, such as `list events`; None for another."""
    found = re.search(r'cannot (\w+) resource "([^"]+)"', error.message)
    return None if found is None else " ".join(found.groups())


def is_transient(words: str) -> bool:
    """Return whether kubectl's words are about a refusal that may pass by itself."""
    return bool(_PASSING.search(words))


def is_unreachable(error: TunelineError) -> bool:
    """Return whether an error says that the cluster did not answer, not that it refused."""
    if SILENT_WEBHOOK in error.message:
        return False
    return bool(UNREACHABLE.search(error.message)) or "no answer within" in error.message

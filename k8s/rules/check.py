"""Rules for problems that no schema finds in a set of manifests.

Each rule is a generator over the rendered objects that yields one sentence per problem. A schema
sees one object and its types. A rule sees that a selector matches no pod, that a budget blocks
every node drain, that a key is readable. A new rule is one function and its name in its module's
`RULES`.
"""

from __future__ import annotations

from collections.abc import Sequence

from k8s.rules import (
    adapters,
    jobs,
    judges,
    metadata,
    pods,
    server,
    services,
    traffic,
    training,
    workloads,
)
from k8s.rules.objects import Object

RULES = (
    *metadata.RULES, *services.RULES, *pods.RULES, *jobs.RULES, *server.RULES, *traffic.RULES,
    *training.RULES, *workloads.RULES, *judges.RULES, *adapters.RULES,
)  # fmt: skip


def check_manifests(objects: Sequence[Object]) -> list[str]:
    """Return one sentence for each problem of what `kubectl kustomize` printed.

    Args:
        objects: All objects that are applied together: the server's and the load test's.
    """
    return [problem for rule in RULES for problem in rule(objects)]

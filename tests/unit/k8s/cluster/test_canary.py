"""The names that a canary must answer to."""

from __future__ import annotations

from typing import Any

import pytest

from k8s.cluster import canary
from k8s.cluster.canary import require_names
from k8s.cluster.kubectl import Cluster
from k8s.cluster.manifests import Manifests
from k8s.cluster.rollout import Rollout
from tuneline.core.errors import ConfigError


def _deployment(*names: str) -> dict[str, Any]:
    container = {"args": ["/model", "--served-model-name", *names, "--port=8000"]}
    return {"spec": {"template": {"spec": {"containers": [container]}}}}


def test_the_hint_names_every_alias_of_the_canary(monkeypatch: pytest.MonkeyPatch) -> None:
    stable = Rollout(_deployment("tickets", "support", "help", "tickets@0123456789ab"))
    monkeypatch.setattr(canary, "_rollout", lambda *_: stable)
    deployment = {"kind": "Deployment", **_deployment("next", "help", "beta", "next@123456789abc")}
    manifests = Manifests("next", "n", [deployment], None, "")
    with pytest.raises(ConfigError, match="next: does not serve tickets, support, the names") as e:
        require_names(Cluster("kubectl", "c", "n"), "tickets", manifests)
    assert e.value.hint == (
        "Set serving.aliases: [help, beta, tickets, support] in the run.yaml of next, and run "
        "tuneline release again."
    )

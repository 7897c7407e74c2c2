"""The components that a run's `k8s` section asks for: one row of `COMPONENTS` each.

A component is a folder of `k8s/manifests/components/`, patches, or both. Its manifests are valid
with their example values. `fill` puts a run's values into the parsed manifests. A patch names its
target: an index into a list of the base breaks when somebody else adds to the list.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from k8s.config import DeployConfig
from k8s.render.components import (
    adapters,
    keys,
    model,
    monitoring,
    placement,
    routing,
    scaling,
)
from k8s.render.facts import Facts, Files, Patch


def _no_patches(_facts: Facts) -> list[Patch]:
    return []


def _as_it_is(_files: Files, _facts: Facts) -> None:
    return


@dataclass(frozen=True)
class Component:
    """One row of the table: its part of a kustomization."""

    wanted: Callable[[DeployConfig], bool]
    folder: str | None = None
    """Below `k8s/manifests/components/`; applied to the server only."""
    fill: Callable[[Files, Facts], None] = _as_it_is
    """Puts the run's values into the folder's files."""
    patches: Callable[[Facts], list[Patch]] = _no_patches
    """Entries of `patches` in the server's kustomization."""
    loadtest_patches: Callable[[Facts], list[Patch]] = _no_patches
    """The same in the load test's."""


COMPONENTS: dict[str, Component] = {
    "image-pull-secrets": Component(
        wanted=lambda config: bool(config.image_pull_secrets),
        patches=placement.pull_secrets,
        loadtest_patches=placement.pull_secrets,
    ),
    "user": Component(
        wanted=lambda config: config.run_as_user != placement.BASE_USER,
        patches=placement.user,
        loadtest_patches=placement.user,
    ),
    "placement": Component(
        wanted=lambda config: config.placement != placement.ANYWHERE,
        patches=placement.nodes,
    ),
    "one-node": Component(wanted=placement.shares_a_node, patches=placement.one_node),
    "queue": Component(
        wanted=lambda config: config.queue_name is not None,
        patches=placement.queue,
        loadtest_patches=placement.queue,
    ),
    "model-image": Component(
        wanted=lambda config: config.model_image is not None,
        folder="model-image",
        fill=model.fill_image,
    ),
    # kustomize puts the container of a later component first: the model is copied, then verified.
    "verify-model": Component(
        wanted=lambda config: config.verify_model, folder="verify-model", fill=model.fill_verify
    ),
    "verify-signature": Component(
        wanted=lambda config: config.release_key is not None,
        folder="verify-signature",
        fill=model.fill_signature,
    ),
    "model-hub": Component(
        wanted=lambda config: config.model_hub is not None, folder="model-hub", fill=model.fill_hub
    ),
    "model-fetch": Component(
        wanted=lambda config: config.model_fetch is not None,
        folder="model-fetch",
        fill=model.fill_fetch,
    ),
    "cache-claim": Component(
        wanted=lambda config: config.cache_claim is not None,
        folder="cache-claim",
        fill=model.fill_cache,
    ),
    "named-keys": Component(
        wanted=lambda config: config.keys_secret_name is not None,
        folder="named-keys",
        fill=keys.fill_keys,
    ),
    "adapters": Component(
        wanted=lambda config: config.adapters is not None,
        folder="adapters",
        fill=adapters.fill_adapters,
    ),
    "service-monitor": Component(
        wanted=lambda config: config.monitoring_namespace is not None,
        folder="service-monitor",
        fill=monitoring.fill_monitor,
    ),
    "alerts": Component(
        wanted=lambda config: config.monitoring_namespace is not None,
        folder="alerts",
        fill=monitoring.fill_alerts,
    ),
    "dashboard": Component(
        wanted=lambda config: config.monitoring_namespace is not None,
        folder="dashboard",
        fill=monitoring.fill_dashboard,
    ),
    "hpa": Component(
        wanted=lambda config: config.autoscaling is not None and config.autoscaling.by == "hpa",
        folder="hpa",
        fill=scaling.fill_hpa,
    ),
    "keda": Component(
        wanted=lambda config: config.autoscaling is not None and config.autoscaling.by == "keda",
        folder="keda",
        fill=scaling.fill_keda,
    ),
    "gateway": Component(
        wanted=lambda config: config.gateway is not None,
        folder="gateway",
        fill=routing.fill_gateway,
    ),
    "route": Component(
        wanted=lambda config: config.gateway is not None and config.gateway.route,
        folder="route",
        fill=routing.fill_route,
    ),
    "endpoint-picker": Component(
        wanted=lambda config: config.endpoint_picker is not None,
        folder="endpoint-picker",
        fill=routing.fill_pool,
    ),
}


def wanted_components(config: DeployConfig) -> list[Component]:
    """Return the rows that the configuration asks for, in the table's order."""
    return [component for component in COMPONENTS.values() if component.wanted(config)]

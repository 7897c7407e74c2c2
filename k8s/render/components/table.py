"""The components that a run's `k8s` section asks for, in the order in which kustomize gets them.

kustomize puts the container of a later component first.
"""

from __future__ import annotations

from k8s.config import DeployConfig
from k8s.render.components import (
    adapters,
    keys,
    model,
    monitoring,
    placement,
    recording,
    routing,
    scaling,
)
from k8s.render.components.component import Component

COMPONENTS: dict[str, Component] = {
    **placement.COMPONENTS,
    **model.COMPONENTS,
    **keys.COMPONENTS,
    **adapters.COMPONENTS,
    **recording.COMPONENTS,
    **monitoring.COMPONENTS,
    **scaling.COMPONENTS,
    **routing.COMPONENTS,
}


def wanted_components(config: DeployConfig) -> list[Component]:
    """Return the rows that the configuration asks for, in the table's order."""
    return [component for component in COMPONENTS.values() if component.wanted(config)]

"""Where pods run: a part of the section `k8s`. No machine-learning imports."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from k8s.value_types import DnsSubdomain, LabelKey, LabelValue
from tuneline.core.config import StrictModel


class Toleration(StrictModel):
    """A taint that the pods tolerate."""

    key: LabelKey
    operator: Literal["Exists", "Equal"] = "Exists"
    value: LabelValue | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Toleration:
        if (self.operator == "Equal") != (self.value is not None):
            raise ValueError("value goes with operator: Equal")
        return self


class Placement(StrictModel):
    """The nodes that pods run on."""

    node_selector: dict[LabelKey, LabelValue] = Field(default={})
    """Labels of the nodes, e.g. `cloud.google.com/gke-accelerator: nvidia-l4`."""
    gpu_product: LabelValue | None = None
    """The label `nvidia.com/gpu.product` that NVIDIA's feature discovery sets, e.g.
    `NVIDIA-H100-80GB-HBM3`."""
    tolerations: tuple[Toleration, ...] = ()
    """In addition to `nvidia.com/gpu` on the overlay `gpu`."""
    priority_class: DnsSubdomain | None = None
    runtime_class: DnsSubdomain | None = None
    """`nvidia` on k3s, RKE2 and MicroK8s, where the NVIDIA runtime is not the default."""

"""The facts that a component may know about the run that is rendered."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from k8s.capacity import Capacity
from k8s.config import MODEL_DIR, DeployConfig
from tuneline.core.digests import short_digest
from tuneline.core.errors import ConfigError

Document = dict[str, Any]
Files = dict[str, Document]
"""The YAML files of a component's folder, by name; a component changes them in place."""
Patch = Document
"""An entry of `patches` in a kustomization."""


@dataclass(frozen=True)
class Facts:
    """One run and its configuration."""

    config: DeployConfig
    name: str
    """The run's name; every object's name begins with it."""
    model_digest: str
    """`sha256:...` of the artifact that is served."""
    capacity: Capacity | None = None
    """The load that one pod was measured to carry; None without a load report whose objectives
    hold."""
    release: str | None = None
    """The digest of the release; None marks every object."""
    model_size_bytes: int = 0
    """The size of the model's files; a rollout waits until a pod has copied and verified them."""
    waived: tuple[str, ...] = ()
    """The gates that the release waives."""
    signature: Document | None = None
    """The signature of the model, from its release."""
    dtype: str = "float32"
    """The number format in which the server computes."""
    adapters: Document = field(default_factory=dict)
    """The list of `k8s.adapters`: by name `adapter` and `reference`, the folders in the server's
    container, and `digest`, the adapter's."""

    paths: tuple[str, ...] = ("/v1",)
    """The prefixes of the paths that a gateway sends to the server."""

    @property
    def server(self) -> str:
        """Return the name of the server's Deployment and Service in the cluster."""
        return server_name(self.name)

    @property
    def model_path(self) -> str:
        """Return the folder of the model in the server's container."""
        if self.config.model_claim is None:
            return MODEL_DIR
        folder = self.config.model_path or f"{self.name}-{short_digest(self.model_digest)}"
        return f"{MODEL_DIR}/{folder}"

    def need_capacity(self, key: str) -> Capacity:
        """Return the measured capacity.

        Raises:
            ConfigError: There is none.
        """
        if self.capacity is None:
            raise ConfigError(
                f"{key}: its numbers come from a load test, and no load report of this run has a "
                "scenario with the verdict PASS",
                hint="Try: tuneline loadtest RUN.yaml",
            )
        return self.capacity


Fill = Callable[[Files, Facts], None]


def server_name(run: str) -> str:
    """Return the name of a run's Deployment and Service in the cluster."""
    return f"{run}-model-server"

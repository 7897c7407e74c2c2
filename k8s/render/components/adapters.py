"""The claim with adapters, which the server takes at run time."""

from __future__ import annotations

import json
from collections.abc import Mapping

from k8s.render.components.component import Component
from k8s.render.facts import Facts, Files
from k8s.rules.objects import ADAPTERS


def place_base(served_env: Mapping[str, str], facts: Facts) -> dict[str, str]:
    """Return the server's variables with the folder that the container serves as the base."""
    settings = json.loads(served_env[ADAPTERS])
    settings["base_dir"] = facts.model_path
    return {**served_env, ADAPTERS: json.dumps(settings)}


def fill_adapters(files: Files, facts: Facts) -> None:
    """Name the claim of the adapters."""
    config = facts.config.adapters
    assert config is not None  # noqa: S101 (the row is wanted only with it)
    (volume,) = files["adapters.yaml"]["spec"]["template"]["spec"]["volumes"]
    volume["persistentVolumeClaim"]["claimName"] = config.claim


COMPONENTS: dict[str, Component] = {
    "adapters": Component(
        wanted=lambda config: config.adapters is not None,
        folder="adapters",
        fill=fill_adapters,
    ),
}

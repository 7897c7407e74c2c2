"""The file of named keys, from a Secret."""

from __future__ import annotations

from k8s.render.components.component import Component
from k8s.render.facts import Facts, Files


def fill_keys(files: Files, facts: Facts) -> None:
    """Name the Secret that holds the file."""
    (volume,) = files["keys.yaml"]["spec"]["template"]["spec"]["volumes"]
    volume["secret"]["secretName"] = facts.config.keys_secret_name


COMPONENTS: dict[str, Component] = {
    "named-keys": Component(
        wanted=lambda config: config.keys_secret_name is not None,
        folder="named-keys",
        fill=fill_keys,
    ),
}

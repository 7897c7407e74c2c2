"""The claim to which the server records requests."""

from __future__ import annotations

from k8s.render.components.component import Component
from k8s.render.facts import Facts, Files


def fill_recording(files: Files, facts: Facts) -> None:
    """Name the claim."""
    (volume,) = files["recording.yaml"]["spec"]["template"]["spec"]["volumes"]
    volume["persistentVolumeClaim"]["claimName"] = facts.config.recording_claim


COMPONENTS: dict[str, Component] = {
    "recording": Component(
        wanted=lambda config: config.recording_claim is not None,
        folder="recording",
        fill=fill_recording,
    ),
}

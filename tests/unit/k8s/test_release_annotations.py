"""Every rendered object names its release and the gates that the release waives."""

import pytest

from k8s.config import DeployConfig
from k8s.render.facts import Facts
from k8s.render.kustomize import common

DIGEST = "sha256:" + "a" * 64


@pytest.mark.parametrize(
    ("waived", "expected"),
    [((), None), (("load",), "load"), (("load", "speed"), "load,speed")],
)
def test_waived_gates_are_an_annotation(waived: tuple[str, ...], expected: str | None) -> None:
    facts = Facts(DeployConfig(), "tickets", DIGEST, release="sha256:r", waived=waived)
    annotations = common(facts)["commonAnnotations"]
    assert annotations["tuneline/release"] == "sha256:r"
    assert annotations.get("tuneline/waived") == expected

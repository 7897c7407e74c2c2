"""The Deployment of a rendered tree as KServe's LLMInferenceService."""

from __future__ import annotations

import copy

from k8s.config import DeployConfig
from k8s.render.facts import Document

MAIN = "main"
"""The name of the container that KServe's presets merge with."""


def llm_inference_service(objects: list[Document], config: DeployConfig) -> list[Document]:
    """Return the objects with an LLMInferenceService in the place of the Deployment.

    KServe makes the Deployment from the pod that is given, under the labels that are given, so that
    the tree's own Service, budget, policies and monitors select its pods. The model reaches the pod
    by the tree's own volumes; KServe's copying of models is off.
    """
    return [_service(item, config) if item["kind"] == "Deployment" else item for item in objects]


def _service(deployment: Document, config: DeployConfig) -> Document:
    spec = deployment["spec"]
    template = copy.deepcopy(spec["template"])
    pod = template["spec"]
    (container,) = pod["containers"]
    own = container["name"]
    container["name"] = MAIN
    for variable in container["env"]:
        resource = variable.get("valueFrom", {}).get("resourceFieldRef", {})
        if resource.get("containerName") == own:
            resource["containerName"] = MAIN
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        # KServe's presets ask by HTTPS, and what is not given is theirs.
        container[probe]["httpGet"]["scheme"] = "HTTP"
    # They also have a preStop by `exec`. Next to another handler, the API refuses the Deployment.
    seconds = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    sleep = {"exec": {"command": ["/bin/sleep", str(seconds)]}}
    container["lifecycle"] = {"preStop": sleep}
    names = container["args"]
    return {
        "apiVersion": "serving.kserve.io/v1alpha2",
        "kind": "LLMInferenceService",
        "metadata": deployment["metadata"],
        "spec": {
            # KServe puts these into the Deployment's selector, which no update may change: a label
            # of the model would stop the next release.
            "labels": dict(spec["selector"]["matchLabels"]),
            "annotations": template["metadata"].get("annotations", {}),
            "model": {"uri": _uri(config, names), "name": deployment["metadata"]["name"]},
            "storageInitializer": {"enabled": False},
            "replicas": spec["replicas"],
            "rolloutStrategy": dict(spec["strategy"]["rollingUpdate"]),
            "template": pod,
        },
    }


def _uri(config: DeployConfig, args: list[str]) -> str:
    """Return the model's source as KServe writes it; the pod's own volumes bring it."""
    if config.model_claim is not None:
        folder = args[0].removeprefix("/model/")
        return f"pvc://{config.model_claim}/{folder}"
    if config.model_image is not None:
        return f"oci://{config.model_image}"
    if config.model_hub is not None:
        return f"hf://{config.model_hub.repo}"
    return "file:///model"

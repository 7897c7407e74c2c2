"""How the model and the compiled kernels reach the pod."""

from __future__ import annotations

from typing import Any

from k8s.config import FetchedModel, HubModel
from k8s.render.components.component import Component
from k8s.render.facts import Facts, Files
from k8s.rules.objects import KEY_VOLUME, quantity
from tuneline.core.digests import short_digest
from tuneline.core.errors import ConfigError

# The sum of the disk that the base's emptyDirs and the logs may take.
BASE_STORAGE_GIB = 12

# Files that the Hub and its client add to a model. vLLM reads none of them. An unlisted template or
# tensor file is still a difference.
HUB_FILES = (".cache/*", ".gitattributes", "README.md")


def fill_image(files: Files, facts: Facts) -> None:
    """Put the model's image into the volume."""
    (volume,) = _pod(files["image.yaml"])["volumes"]
    volume["image"]["reference"] = facts.config.model_image


def fill_verify(files: Files, facts: Facts) -> None:
    """Put the image, the model's folder and its digest into the container that verifies."""
    (container,) = _pod(files["init.yaml"])["initContainers"]
    container["image"] = facts.config.loadtest_image
    container["args"] = _verify_args(facts)


def fill_signature(files: Files, facts: Facts) -> None:
    """Put the signature of the model into a ConfigMap, and the key that it needs into the pod."""
    wanted = facts.config.release_key
    assert wanted is not None  # noqa: S101 (the row is wanted only with it)
    if facts.signature is None:
        raise ConfigError(
            "k8s.release_key: needs the signature of the model; the manifests come from no signed "
            "release",
            hint="Try: tuneline release RUN.yaml --sign-key KEY.pem\n"
            "  Or without a check of the signature: --set k8s.release_key=null",
        )
    files["model.sig.json"] = facts.signature
    pod = _pod(files["init.yaml"])
    (container,) = pod["initContainers"]
    container["args"] = [
        *_verify_args(facts),
        "--signature=/release/model.sig",
        f"--key=/release-key/{wanted.file}",
    ]
    if wanted.secret_name is not None:
        pod["volumes"][1] = {"name": KEY_VOLUME, "secret": {"secretName": wanted.secret_name}}
    else:
        pod["volumes"][1]["configMap"]["name"] = wanted.config_map


def _verify_args(facts: Facts) -> list[str]:
    args = [facts.model_path, f"--digest={facts.model_digest}"]
    if facts.config.model_hub is not None:
        args += [f"--ignore={pattern}" for pattern in HUB_FILES]
    return args


def fill_hub(files: Files, facts: Facts) -> None:
    """Put the repository, its commit and its token into the container that downloads."""
    wanted = facts.config.model_hub
    assert wanted is not None  # noqa: S101 (the row is wanted only with it)
    (container,) = _pod(files["init.yaml"])["initContainers"]
    # vLLM's own image has the Hub's client.
    container["image"] = facts.config.image
    container["args"] = [wanted.repo, f"--revision={wanted.revision}", "--local-dir=/model"]
    if wanted.secret_name is not None:
        key = {"secretKeyRef": {"name": wanted.secret_name, "key": "token"}}
        container["env"].append({"name": "HF_TOKEN", "valueFrom": key})
    _size(files, wanted)


def fill_fetch(files: Files, facts: Facts) -> None:
    """Put the command, its secret and the port of the storage into the files."""
    wanted = facts.config.model_fetch
    assert wanted is not None  # noqa: S101 (the row is wanted only with it)
    (container,) = _pod(files["init.yaml"])["initContainers"]
    container["image"] = wanted.image
    container["command"] = list(wanted.command)
    if wanted.secret_name is not None:
        container["envFrom"] = [{"secretRef": {"name": wanted.secret_name}}]
    files["network-policy.yaml"]["spec"]["egress"][0]["ports"][0]["port"] = wanted.port
    _size(files, wanted)


def fill_cache(files: Files, facts: Facts) -> None:
    """Give each model a folder of the claim of its own."""
    pod = _pod(files["cache.yaml"])
    folder = f"{facts.name}-{short_digest(facts.model_digest)}"
    for entry in pod["containers"][0]["env"]:
        entry["value"] = entry["value"].replace("/example/", f"/{folder}/")
    (volume,) = pod["volumes"]
    volume["persistentVolumeClaim"]["claimName"] = facts.config.cache_claim


def _size(files: Files, wanted: HubModel | FetchedModel) -> None:
    """Limit the folder, and let the pod have it on top of the base's own disk."""
    pod = _pod(files["init.yaml"])
    (volume,) = pod["volumes"]
    volume["emptyDir"]["sizeLimit"] = wanted.size
    limit = with_gibibytes(wanted.size, BASE_STORAGE_GIB)
    for container in (*pod["initContainers"], *pod["containers"]):
        container["resources"]["limits"]["ephemeral-storage"] = limit


def with_gibibytes(size: str, gibibytes: int) -> str:
    """Return a quantity that is larger by some gibibytes, rounded up to whole mebibytes."""
    total = quantity(size) + gibibytes * 2**30
    return f"{-(-int(total) // 2**20)}Mi"


def _pod(document: dict[str, Any]) -> dict[str, Any]:
    pod: dict[str, Any] = document["spec"]["template"]["spec"]
    return pod


COMPONENTS: dict[str, Component] = {
    "model-image": Component(
        wanted=lambda config: config.model_image is not None,
        folder="model-image",
        fill=fill_image,
    ),
    # kustomize puts the container of a later component first: the model is copied, then verified.
    "verify-model": Component(
        wanted=lambda config: config.verify_model, folder="verify-model", fill=fill_verify
    ),
    "verify-signature": Component(
        wanted=lambda config: config.release_key is not None,
        folder="verify-signature",
        fill=fill_signature,
    ),
    "model-hub": Component(
        wanted=lambda config: config.model_hub is not None, folder="model-hub", fill=fill_hub
    ),
    "model-fetch": Component(
        wanted=lambda config: config.model_fetch is not None,
        folder="model-fetch",
        fill=fill_fetch,
    ),
    "cache-claim": Component(
        wanted=lambda config: config.cache_claim is not None,
        folder="cache-claim",
        fill=fill_cache,
    ),
}

"""How the model reaches the pod, and how it is verified there."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from k8s.render.components.model import with_gibibytes
from tests.commands import tuneline_here
from tuneline.core.artifact import Artifact, new_artifact, open_artifact
from tuneline.core.errors import ConfigError
from tuneline.core.files import payload_files
from tuneline.release.parties import Signer
from tuneline.release.sign import sign_model

Objects: TypeAlias = list[dict[str, Any]]
DIGEST = "sha256:" + "0123456789abcdef" * 4
IMAGE = "registry.example.com/tuneline-loadtest:0.1.0"


@pytest.fixture
def server_pod(
    tmp_path: Path, render_run: Callable[..., Path], objects_of: Callable[..., Objects]
) -> Callable[..., dict[str, Any]]:
    def rendered(**options: Any) -> dict[str, Any]:
        objects = objects_of(render_run(tmp_path / "out", **options))
        (deployment,) = (item for item in objects if item["kind"] == "Deployment")
        found: dict[str, Any] = deployment["spec"]["template"]["spec"]
        return found

    return rendered


def volumes(pod: dict[str, Any]) -> dict[str, Any]:
    return {volume["name"]: volume for volume in pod["volumes"]}


def test_a_model_of_the_hub_is_copied_at_one_commit_and_verified(
    server_pod: Callable[..., dict[str, Any]],
) -> None:
    pod = server_pod(
        model_hub={"repo": "team/tickets", "revision": "a" * 40, "secret_name": "hub"},
        verify_model=True,
        loadtest_image=IMAGE,
    )
    fetch, verify = pod["initContainers"]
    assert fetch["command"] == ["hf", "download"]
    assert fetch["args"] == ["team/tickets", f"--revision={'a' * 40}", "--local-dir=/model"]
    env = {entry["name"]: entry for entry in fetch["env"]}
    assert env["HF_TOKEN"]["valueFrom"]["secretKeyRef"] == {"name": "hub", "key": "token"}
    assert env["HF_HUB_OFFLINE"]["value"] == "0"
    assert fetch["volumeMounts"][0] == {"name": "model", "mountPath": "/model"}
    assert volumes(pod)["model"] == {"name": "model", "emptyDir": {"sizeLimit": "50Gi"}}
    assert verify["args"] == [
        "/model", f"--digest={DIGEST}",
        "--ignore=.cache/*", "--ignore=.gitattributes", "--ignore=README.md",
    ]  # fmt: skip
    (server,) = pod["containers"]
    assert server["args"][0] == "/model"
    assert server["resources"]["limits"]["ephemeral-storage"] == "63488Mi"  # 50 + 12 GiB


def test_a_model_of_a_bucket_is_copied_by_the_storages_own_client(
    server_pod: Callable[..., dict[str, Any]],
) -> None:
    command = ["aws", "s3", "cp", "--recursive", "s3://models/tickets", "/model"]
    image = "registry.example.com/aws-cli:2"
    pod = server_pod(
        model_fetch={"image": image, "command": command, "secret_name": "s3", "size": "4Gi"},
        verify_model=True,
        loadtest_image=IMAGE,
    )
    fetch, _ = pod["initContainers"]
    assert (fetch["image"], fetch["command"]) == (image, command)
    assert fetch["envFrom"] == [{"secretRef": {"name": "s3"}}]
    assert volumes(pod)["model"]["emptyDir"] == {"sizeLimit": "4Gi"}


def test_a_claim_is_mounted_whole_and_the_folder_is_an_argument(
    server_pod: Callable[..., dict[str, Any]],
) -> None:
    pod = server_pod(model_path="1e5", verify_model=True, loadtest_image=IMAGE)
    (server,) = pod["containers"]
    (mount,) = (entry for entry in server["volumeMounts"] if entry["name"] == "model")
    assert mount == {"name": "model", "mountPath": "/model", "readOnly": True}
    assert server["args"][0] == "/model/1e5"
    assert pod["initContainers"][0]["args"][0] == "/model/1e5"


def test_compiled_kernels_lie_on_a_claim_by_model(
    server_pod: Callable[..., dict[str, Any]],
) -> None:
    pod = server_pod(cache_claim="kernels")
    claim = {"name": "cache", "persistentVolumeClaim": {"claimName": "kernels"}}
    assert volumes(pod)["cache"] == claim
    env = {entry["name"]: entry.get("value") for entry in pod["containers"][0]["env"]}
    folder = "/cache/support-tickets-0123456789ab"
    assert env["VLLM_CACHE_ROOT"] == f"{folder}/vllm"
    assert env["TRITON_CACHE_DIR"] == f"{folder}/triton"


def verify(pod: dict[str, Any], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the command of the rendered init container on a folder of this machine."""
    (container,) = (entry for entry in pod["initContainers"] if entry["name"] == "verify-model")
    assert container["command"] == ["tuneline", "verify"]
    mounted, *options = container["args"]
    assert mounted.startswith("/model")
    return tuneline_here("verify", str(folder), *options)


@pytest.fixture
def model(tmp_path: Path) -> Artifact:
    with new_artifact(tmp_path / "model", "model", config={}) as draft:
        (draft.dir / "config.json").write_text("{}")
        (draft.dir / "model.safetensors").write_bytes(b"weights")
    return open_artifact(tmp_path / "model")


def test_the_init_container_tells_this_model_from_another(
    server_pod: Callable[..., dict[str, Any]], model: Artifact
) -> None:
    pod = server_pod(verify_model=True, loadtest_image=IMAGE, digest=model.digest)
    assert verify(pod, model.path).returncode == 0
    (model.path / "config.json").write_text("[]")
    assert verify(pod, model.path).returncode == 3


def test_the_init_container_refuses_a_sound_model_of_another_digest(
    server_pod: Callable[..., dict[str, Any]], model: Artifact
) -> None:
    done = verify(server_pod(verify_model=True, loadtest_image=IMAGE), model.path)
    assert done.returncode == 3
    assert f"has digest {model.digest}; expected {DIGEST}" in done.stderr


def test_what_the_hubs_client_adds_is_no_difference(
    server_pod: Callable[..., dict[str, Any]], model: Artifact
) -> None:
    local_folder = pytest.importorskip("huggingface_hub._local_folder")
    local_folder.write_download_metadata(model.path, "config.json", "a" * 40, "etag")
    (model.path / ".gitattributes").write_text("*.safetensors filter=lfs")
    (model.path / "README.md").write_text("# Tickets")
    added = [file for file in payload_files(model.path) if ".cache" in file.parts]
    assert len(added) >= 2
    options = {"verify_model": True, "loadtest_image": IMAGE, "digest": model.digest}
    hub = {"repo": "team/tickets", "revision": "a" * 40}
    pod = server_pod(model_hub=hub, **options)
    done = verify(pod, model.path)
    assert done.returncode == 0, done.stderr
    # vLLM would read this one.
    (model.path / "chat_template.jinja").write_text("another")
    assert verify(pod, model.path).returncode == 3
    (model.path / "chat_template.jinja").unlink()
    # A claim has only the files that were copied there.
    assert verify(server_pod(**options), model.path).returncode == 3


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two key pairs: the team's, and another."""
    folder = tmp_path_factory.mktemp("keys")
    for name in ("team", "other"):
        private, public = str(folder / f"{name}.pem"), str(folder / f"{name}.pub")
        made = ["ecparam", "-genkey", "-name", "prime256v1", "-noout", "-out", private]
        subprocess.run(["openssl", *made], check=True, timeout=60)
        published = ["ec", "-in", private, "-pubout", "-out", public]
        subprocess.run(["openssl", *published], check=True, capture_output=True, timeout=60)
    return folder


def signature_of(model: Path, key: Path) -> dict[str, Any]:
    sign_model(Signer(key=key), model, key.parent / "model.sig")
    found: dict[str, Any] = json.loads((key.parent / "model.sig").read_text())
    return found


@pytest.fixture
def signed_pod(
    tmp_path: Path, render_run: Callable[..., Path], objects_of: Callable[..., Objects],
    model: Artifact, keys: Path,
) -> Callable[..., Callable[[], subprocess.CompletedProcess[str]]]:  # fmt: skip
    """Render a run for a signed model; the result runs the init container's own command here.

    Every path of the command is mounted in the container. Here it is a folder with the content of
    the rendered ConfigMap, the cluster's key, or the model.
    """

    def rendered(
        signer: str = "team", trusted: str = "team", digest: str = model.digest, **options: Any
    ) -> Callable[[], subprocess.CompletedProcess[str]]:
        out = render_run(
            tmp_path / "out", verify_model=True, loadtest_image=IMAGE, model_path="model",
            release_key={"config_map": "team-key"}, digest=digest,
            signature=signature_of(model.path, keys / f"{signer}.pem"), **options,
        )  # fmt: skip
        objects = objects_of(out)
        (deployment,) = (item for item in objects if item["kind"] == "Deployment")
        pod = deployment["spec"]["template"]["spec"]
        in_cluster = {item["metadata"]["name"]: item for item in objects}
        in_cluster["team-key"] = {"data": {"release.pub": (keys / f"{trusted}.pub").read_text()}}
        (container,) = (one for one in pod["initContainers"] if one["name"] == "verify-model")
        folders = {"model": model.path.parent}
        for name, volume in volumes(pod).items():
            if "configMap" in volume:
                folders[name] = tmp_path / name
                folders[name].mkdir()
                for file, text in in_cluster[volume["configMap"]["name"]]["data"].items():
                    (folders[name] / file).write_text(text)
        assert container["command"] == ["tuneline", "verify"]
        command: list[str] = ["verify", *container["args"]]
        for mount in container["volumeMounts"]:
            if mount["name"] in folders:
                inside, here = f"{mount['mountPath']}/", f"{folders[mount['name']]}/"
                command = [part.replace(inside, here) for part in command]
        return lambda: tuneline_here(*command)

    return rendered


def test_the_init_container_checks_the_signature_of_the_release(
    signed_pod: Callable[..., Any], model: Artifact
) -> None:
    verify_here = signed_pod()
    done = verify_here()
    assert done.returncode == 0, done.stderr
    assert "ok  signature: signed by the key" in done.stdout
    (model.path / "config.json").write_text("[]")
    done = verify_here()
    assert done.returncode == 3
    assert "config.json: sha256" in done.stderr


def test_the_init_container_refuses_a_manifest_that_fits_other_files(
    signed_pod: Callable[..., Any], model: Artifact
) -> None:
    """Files, manifest and the digest of the manifests are forged together; the key is not."""
    with new_artifact(model.path.with_name("forged"), "model", config={}) as draft:
        (draft.dir / "config.json").write_text("[]")
        (draft.dir / "model.safetensors").write_bytes(b"weights")
    forged = open_artifact(model.path.with_name("forged"))
    verify_here = signed_pod(digest=forged.digest)
    shutil.rmtree(model.path)
    forged.path.rename(model.path)
    done = verify_here()
    assert done.returncode == 3
    assert "differs from the signed files" in done.stderr


def test_the_init_container_refuses_another_key(signed_pod: Callable[..., Any]) -> None:
    done = signed_pod(signer="other")()
    assert done.returncode == 3
    assert "model.sig: is not a signature by the key" in done.stderr


def test_a_key_without_a_signed_release_is_refused(server_pod: Callable[..., Any]) -> None:
    options = {"verify_model": True, "loadtest_image": IMAGE, "signature": None}
    with pytest.raises(ConfigError, match=r"k8s\.release_key: needs the signature") as caught:
        server_pod(release_key={"config_map": "team-key"}, **options)
    assert "--sign-key" in (caught.value.hint or "")
    assert caught.value.exit_code == 2


def test_a_key_may_come_from_a_secret(server_pod: Callable[..., Any]) -> None:
    pod = server_pod(
        release_key={"secret_name": "team-key", "file": "team.pem"},
        verify_model=True, loadtest_image=IMAGE,
    )  # fmt: skip
    assert volumes(pod)["release-key"] == {
        "name": "release-key", "secret": {"secretName": "team-key"},
    }  # fmt: skip
    assert pod["initContainers"][0]["args"][-1] == "--key=/release-key/team.pem"


@pytest.mark.parametrize(
    ("size", "expected"), [("50Gi", "63488Mi"), ("1500M", "13719Mi"), ("1Mi", "12289Mi")]
)
def test_sizes_add_up(size: str, expected: str) -> None:
    assert with_gibibytes(size, 12) == expected

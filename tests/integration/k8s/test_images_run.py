"""Images with their libraries: the containers of rendered manifests at work, without a network.

The build takes many minutes and 20 GB, so `TUNELINE_IMAGES=1` has to ask for it. The images are
those of `scripts/images_without_registry.sh`. With CONTAINERS_STORAGE_CONF they stay in that
storage, and the next run builds on their bases.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.rollout import KEY, rendered
from k8s.render.kustomize import build
from k8s.rules.objects import Object, of_kind, servers
from tests.commands import tuneline_here
from tests.images import (
    ROOT,
    USERS,
    Container,
    Image,
    Mount,
    buildah_with,
    open_image,
    own_storage,
)
from tuneline.models.source import resolve_model

pytestmark = pytest.mark.timeout(5400)  # the first test builds

EXAMPLE = ROOT / "examples" / "support-tickets"
RUNS = "/tmp/runs"  # noqa: S108 (in the container)
QUESTION = [{"role": "user", "content": "The printer is jammed."}]


@pytest.fixture(scope="module")
def images() -> Iterator[dict[str, Image]]:
    """Every image of `k8s/images`, by its name."""
    if os.environ.get("TUNELINE_IMAGES") != "1":
        pytest.skip("images with their libraries are built only with TUNELINE_IMAGES=1")
    with contextlib.ExitStack() as stack:
        if storage := os.environ.get("CONTAINERS_STORAGE_CONF"):
            run = buildah_with(Path(storage))
        else:
            # Not a folder of pytest's, which keeps those of three runs.
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="images-"))
            run = stack.enter_context(own_storage(Path(folder)))
        done = run(command="scripts/images_without_registry.sh", timeout_s=5000)
        assert done.returncode == 0, done.stderr[-5000:]
        print(done.stdout)
        built = [line.split()[0] for line in done.stdout.splitlines() if "/tuneline-" in line]
        opened = []
        for name in built:
            opened.append(open_image(run, name))
            stack.callback(run, "rm", opened[-1].mounted_by)
        assert sorted(image.name for image in opened) == ["cpu", "gpu", "loadtest", "training"]
        yield {image.name: image for image in opened}


def writable(folder: Path) -> Path:
    """Make a folder as the kubelet makes a volume for the pod's group."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in (folder, *folder.rglob("*")):
        os.chown(path, 10001, 10001)
    return folder


def wait_for(container: Container, what: str, is_there: Any, seconds: float = 600) -> None:
    end_s = time.monotonic() + seconds
    while not is_there():
        log = container.log.read_text(errors="replace")
        assert container.process.poll() is None, f"ended before {what}:\n{log[-5000:]}"
        assert time.monotonic() < end_s, f"no {what} after {seconds} s:\n{log[-5000:]}"
        time.sleep(0.5)


@pytest.mark.parametrize("user", USERS)
@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_vllm_starts_as_any_user(images: dict[str, Image], name: str, user: str) -> None:
    done = images[name].run(user, "vllm", "--version")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split()[-1] == "0.32.0+cpu"


@pytest.mark.parametrize("user", USERS)
@pytest.mark.parametrize(
    ("name", "rooms"), [("training", {"train", "export"}), ("loadtest", {"loadtest"})]
)
def test_doctor_finds_what_an_image_is_for(
    images: dict[str, Image], name: str, user: str, rooms: set[str]
) -> None:
    done = images[name].run(user, "tuneline", "doctor", "--json", "--runs-dir", RUNS)
    assert done.returncode == 0, done.stderr[-3000:]
    findings = {entry["what"]: entry for entry in json.loads(done.stdout)}
    assert rooms <= {what.removeprefix("room ") for what, found in findings.items() if found["ok"]}


def test_the_server_answers_and_ends_its_streams(images: dict[str, Image], tmp_path: Path) -> None:
    model = resolve_model("tiny-base")
    ((_, spec),) = servers(rendered(model, tmp_path))
    folder = tmp_path / "models" / Path(spec["args"][0]).name
    shutil.copytree(model.path, folder)
    mounts = (
        Mount(folder.parent, "/model"),
        Mount(writable(tmp_path / "cache"), "/cache", is_writable=True),
    )
    name = "tickets"
    url = "http://127.0.0.1:8000/v1/chat/completions"
    head = [
        "--header",
        f"Authorization: Bearer {KEY}",
        "--header",
        "Content-Type: application/json",
    ]

    def ask(**options: Any) -> list[str]:
        body = {"model": name, "messages": QUESTION, "ignore_eos": True, **options}
        return [*head, "--data", json.dumps(body), url]

    with images["cpu"].container(
        spec, tmp_path / "log", secrets={"api-key": KEY}, mounts=mounts
    ) as server:
        wait_for(server, "ready", lambda: server.get("/ready") == "200")
        answer = json.loads(server.curl(*ask(max_tokens=8)).communicate()[0])
        assert answer["choices"][0]["message"]["content"]
        assert answer["usage"]["completion_tokens"] == 8
        stream = server.curl(*ask(max_tokens=400, stream=True))
        assert stream.stdout is not None
        assert stream.stdout.readline().startswith("data: ")
        server.terminate()
        wait_for(server, "drain", lambda: server.get("/ready") == "503", seconds=20)
        rest = stream.stdout.read().split()
        assert rest[-2:] == ["data:", "[DONE]"]
        assert '"finish_reason":"length"' in "".join(rest)
        assert server.process.wait(60) == 0
    assert any((tmp_path / "cache").rglob("*.so")), "no compiled kernel is in the cache"


@pytest.fixture
def training(tmp_path: Path) -> Object:
    """The container of a rendered training, with its files in `config` and `work`."""
    (tmp_path / "work" / "data").mkdir(parents=True)
    document = yaml.safe_load((EXAMPLE / "run.yaml").read_text())
    document["k8s"]["training"] = {
        "image": "registry.example.com/tuneline-training:v0.1.0", "work_claim": "work",
    }  # fmt: skip
    del document["training"]["num_train_epochs"]
    document["training"]["max_steps"] = 12
    document["reference"]["num_prompts"] = 4
    for name in ("train.jsonl", "heldout.jsonl"):
        shutil.copyfile(EXAMPLE / name, tmp_path / "work" / "data" / name)
        shutil.copyfile(EXAMPLE / name, tmp_path / name)
    run_file = tmp_path / "run.yaml"
    run_file.write_text(yaml.safe_dump(document))
    done = tuneline_here(
        "deploy", "render", str(run_file), "--training", "--out", str(tmp_path / "tree")
    )
    assert done.returncode == 0, done.stderr
    objects = list(build(tmp_path / "tree") or [])
    (job,), (config_map,) = of_kind(objects, "Job"), of_kind(objects, "ConfigMap")
    (tmp_path / "config").mkdir()
    for name, text in config_map["data"].items():
        (tmp_path / "config" / name).write_text(text)
    writable(tmp_path / "work")
    (tmp_path / "message").touch()
    (tmp_path / "message").chmod(0o666)
    (container,) = job["spec"]["template"]["spec"]["containers"]
    return dict(container)


def test_a_training_ends_with_an_adapter_and_on_sigterm_with_a_checkpoint(
    images: dict[str, Image], training: Object, tmp_path: Path
) -> None:
    image, log = images["training"], tmp_path / "log"
    mounts = (
        Mount(tmp_path / "config", "/config"),
        Mount(tmp_path / "work", "/work", is_writable=True),
        Mount(tmp_path / "message", "/dev/termination-log", is_writable=True),
    )
    work = tmp_path / "work"
    with image.container(training, log, secrets={}, mounts=mounts) as pod:
        wait_for(pod, "a step", lambda: "step" in log.read_text())
        pod.terminate()
        assert pod.process.wait(120) == 143
    assert list(work.rglob("checkpoint-*"))
    with image.container(training, log, secrets={}, mounts=mounts) as pod:
        assert pod.process.wait(600) == 0, log.read_text()[-5000:]
    assert "continuing after step" in log.read_text()
    (adapter,) = work.glob("runs/*/adapter-*/manifest.json")
    assert json.loads(adapter.read_text())["kind"] == "adapter"

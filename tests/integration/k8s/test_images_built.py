"""The servers' images, built by buildah on a small Debian in place of vLLM's own images."""

from __future__ import annotations

import getpass
import importlib.util
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.images import ROOT, USERS, Command, Image, open_image, own_storage

BASE = "localhost/stand-in:1"


@pytest.fixture(scope="module")
def buildah(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Command]:
    with own_storage(tmp_path_factory.mktemp("containers")) as run:
        yield run


def make_base(buildah: Command, folder: Path, *packages: str, variant: str, more: str = "") -> None:
    made = buildah(
        f"--variant={variant}", "--include=" + ",".join(packages), "--quiet", "bookworm",
        str(folder / "root.tar"), command="mmdebstrap",
    )  # fmt: skip
    if made.returncode:
        pytest.skip(f"mmdebstrap makes no base here: {made.stderr[-300:]}")
    (folder / "Dockerfile").write_text(f"FROM scratch\nADD root.tar /\n{more}")
    built = buildah("build", "--isolation=chroot", "-t", BASE, str(folder))
    if built.returncode:
        pytest.skip(f"buildah builds no image here: {built.stderr[-300:]}")


def build(buildah: Command, name: str, options: str) -> subprocess.CompletedProcess[str]:
    return buildah(
        name, command="scripts/images.sh", ENGINE="buildah", BASE=BASE,
        OPTIONS=f"--isolation=chroot --pull-never {options}",
    )  # fmt: skip


def open_built(buildah: Command, done: subprocess.CompletedProcess[str], name: str) -> Image:
    """Return the image that `scripts/images.sh` has built and whose size it has printed."""
    assert done.returncode == 0, done.stderr[-3000:]
    image, size, unit, seconds, _ = done.stdout.splitlines()[-1].split()
    assert image.startswith(f"localhost/tuneline-{name}:")
    assert (float(size) > 10, unit, int(seconds) < 500) == (True, "MB", True)
    found, base = open_image(buildah, image), open_image(buildah, BASE)
    return replace(found, added=frozenset(files(found.root) - files(base.root)))


def files(root: Path) -> set[str]:
    found = {str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir()}
    assert len(found) > 500
    return found


@pytest.fixture(scope="module")
def base(buildah: Command, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A Debian whose packages are unpacked and not configured, with prometheus-client of vLLM."""
    folder = tmp_path_factory.mktemp("base")
    spec = importlib.util.find_spec("prometheus_client")
    assert spec is not None
    assert spec.origin is not None
    shutil.copytree(Path(spec.origin).parent, folder / "prometheus_client")
    make_base(
        buildah, folder, "base-files", "base-passwd", "coreutils", "dash", "libc-bin", "passwd",
        "python3", variant="extract",
        more="COPY prometheus_client /usr/lib/python3/dist-packages/prometheus_client\n"
        "RUN cp /usr/share/base-passwd/passwd.master /etc/passwd && "
        "cp /usr/share/base-passwd/group.master /etc/group\n",
    )  # fmt: skip


@pytest.fixture(scope="module", params=["cpu", "gpu"])
def server(buildah: Command, base: None, request: pytest.FixtureRequest) -> Iterator[Image]:
    yield open_built(buildah, build(buildah, request.param, ""), request.param)


def check_config(image: Image) -> None:
    assert image.config["User"] == "10001:10001"
    labels = image.config["Labels"]
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()
    assert labels["org.opencontainers.image.revision"].removesuffix("-dirty") == commit
    assert labels["org.opencontainers.image.base.name"] == BASE
    for name in ("pip.conf", ".git", ".cache", ".netrc", ".env"):
        assert not [path for path in image.added if name in path.split("/")], name


def tracked(*folders: str) -> set[str]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *folders],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    return {name for name in listed if (ROOT / name).exists()}


def test_a_server_image_adds_only_the_middleware_and_a_user(server: Image) -> None:
    check_config(server)
    assert server.config["Entrypoint"] == ["vllm", "serve"]
    folders = ["serving/middleware", "serving/adapters", "serving/parity.py", "serving/config.py"]
    folders += ["serving/engine", "tuneline/core", "tuneline/models", "tuneline/__init__.py"]
    info = "opt/tuneline/tuneline_engine-0.dist-info"
    ours = {f"opt/tuneline/{name}" for name in tracked(*folders)} | {
        "opt/tuneline/serving/__init__.py", f"{info}/METADATA", f"{info}/entry_points.txt",
    }  # fmt: skip
    assert len(ours) > 20
    # The tools that add a user keep a copy of each file, and lock them.
    bytecode = {path for path in server.added if path.endswith(".pyc")}
    compiled = {path.replace("/__pycache__", "").split(".")[0] + ".py" for path in bytecode}
    assert {path for path in ours if path.endswith(".py")} <= compiled
    others = {path for path in server.added - ours - bytecode if not path.startswith("etc/")}
    assert (ours - server.added, others) == (set(), set())
    for path in ours:
        assert (server.root / path).stat().st_mode & 0o222 == (0o200 if "dist-info" in path else 0)
    assert (server.root / "cache").stat().st_uid == 10001


CODE = """
import getpass, os, pathlib
from importlib.metadata import entry_points
import serving.middleware
serving.middleware.TunelineMiddleware
for path in ("/written", "/opt/tuneline/written"):
    try:
        pathlib.Path(path).touch()
    except OSError as error:
        print(error.strerror)
pathlib.Path("/tmp/written").touch()
plugins = entry_points(group="vllm.general_plugins")
print(os.getuid(), getpass.getuser(), *(plugin.value for plugin in plugins))
"""


@pytest.mark.parametrize("user", USERS)
def test_the_middleware_runs_as_any_user_with_a_read_only_root(server: Image, user: str) -> None:
    done = server.run(user, "python3", "-c", CODE)
    assert done.returncode == 0, done.stderr
    refused = ["Read-only", "file", "system"] * 2
    ours = [user.partition(":")[0], "tuneline", "serving.engine:register"]
    assert done.stdout.split() == [*refused, *ours]
    assert getpass.getuser() != "tuneline"

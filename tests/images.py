"""Images that buildah has built, and their containers as a kubelet runs them."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from k8s.rules.objects import quantity

ROOT = Path(__file__).parents[1]
USERS = ["10001:10001", "1000650000:0"]
"""The user of the manifests, and one that OpenShift would choose."""

Command = Callable[..., "subprocess.CompletedProcess[str]"]

# A root that cannot be written, no capability, no device.
ENTER = """
set -e
root=$1 user=$2; shift 2
mount --rbind "$root" "$root"
mount -t proc proc "$root/proc"
mount -t sysfs -o ro sysfs "$root/sys"
mount -t tmpfs tmpfs "$root/tmp"
mount -t tmpfs tmpfs "$root/dev"
mkdir -m 1777 "$root/dev/shm"
mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
for name in null zero full random urandom; do
  touch "$root/dev/$name"
  mount --bind "/dev/$name" "$root/dev/$name"
done
printf '127.0.0.1 localhost %s\\n' "$(uname -n)" > "$root/etc/hosts"
while [ "$1" != -- ]; do
  if [ -d "$1" ]; then mkdir -p "$root$2"; else touch "$root$2"; fi
  mount --bind "$1" "$root$2"
  [ "$3" = rw ] || mount -o remount,bind,ro "$root$2"
  shift 3
done
shift
mount -o remount,bind,ro "$root"
exec setpriv --no-new-privs --bounding-set=-all,+sys_chroot,+setuid,+setgid \\
  chroot --userspec="$user" --groups="${user#*:}" "$root" env -i "$@"
"""


@dataclass(frozen=True)
class Mount:
    """A file or folder of this machine at a path of the container."""

    source: Path
    path: str
    is_writable: bool = False


@dataclass(frozen=True)
class Image:
    """A built image: the name of a container of buildah, its root, and its configuration."""

    name: str
    mounted_by: str
    root: Path
    config: dict[str, Any]
    added: frozenset[str] = field(default_factory=frozenset)

    def words(
        self, user: str, command: tuple[str, ...], env: Mapping[str, str], mounts: tuple[Mount, ...]
    ) -> list[str]:
        """Return the command line that runs `command` as process 1 of a container."""
        environ = dict(entry.split("=", 1) for entry in self.config["Env"]) | dict(env)
        places = [
            word
            for mount in mounts
            for word in (str(mount.source), mount.path, "rw" if mount.is_writable else "ro")
        ]
        return [
            "unshare", "--mount", "--pid", "--ipc", "--fork", "--kill-child",
            "sh", "-c", ENTER, "sh", str(self.root), user, *places, "--",
            *(f"{name}={value}" for name, value in environ.items()), *command,
        ]  # fmt: skip

    def run(
        self, user: str, *command: str, timeout_s: float = 120, mounts: tuple[Mount, ...] = (),
        **env: str,
    ) -> subprocess.CompletedProcess[str]:  # fmt: skip
        """Run a command as the manifests do: no capability, a read-only root, a writable /tmp."""
        return subprocess.run(
            self.words(user, command, env, mounts),
            capture_output=True, text=True, check=False, timeout=timeout_s,
        )  # fmt: skip

    @contextmanager
    def container(
        self, spec: Mapping[str, Any], log: Path, *, secrets: Mapping[str, str],
        mounts: tuple[Mount, ...],
    ) -> Iterator[Container]:  # fmt: skip
        """Start a container of a manifest as user 10001, and kill it at the end.

        Its network has the address of loopback and no way out.
        """
        env = {entry["name"]: _value(entry, spec, secrets) for entry in spec["env"]}
        paths = {mount.path for mount in mounts} | {"/tmp", "/dev/shm"}  # noqa: S108 (in the container)
        assert {mount["mountPath"] for mount in spec["volumeMounts"]} <= paths
        command = (*spec["command"], *spec["args"])
        words = self.words(USERS[0], command, env, mounts)
        network = ["unshare", "--net", "sh", "-c", 'ip link set lo up; exec "$@"', "sh"]
        with log.open("w") as file:
            process = subprocess.Popen([*network, *words], stdout=file, stderr=file)
        try:
            yield Container(process, log)
        finally:
            process.kill()  # process 1 of the container dies with it, and all others with process 1
            process.wait()


@dataclass(frozen=True)
class Container:
    """A running container. Its network has one address, which this machine can enter."""

    process: subprocess.Popen[bytes]
    log: Path

    def terminate(self) -> None:
        """Send SIGTERM to process 1, as a kubelet does."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        (child,) = children.split()
        os.kill(int(child), signal.SIGTERM)

    def curl(self, *options: str, timeout_s: float = 120) -> subprocess.Popen[str]:
        """Start curl inside the container's network."""
        return subprocess.Popen(
            ["nsenter", f"--net=/proc/{self.process.pid}/ns/net", "curl", "--silent",
             "--no-buffer", "--max-time", str(timeout_s), *options],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def get(self, path: str) -> str:
        """Return the status of a GET; 000 while nothing listens."""
        url = f"http://127.0.0.1:8000{path}"
        asked = self.curl("--output", "/dev/null", "--write-out", "%{http_code}", url)
        return asked.communicate()[0]


def _value(entry: Mapping[str, Any], spec: Mapping[str, Any], secrets: Mapping[str, str]) -> str:
    if "value" in entry:
        return str(entry["value"])
    source = entry["valueFrom"]
    if "secretKeyRef" in source:
        return secrets[source["secretKeyRef"]["key"]]
    kind, _, name = source["resourceFieldRef"]["resource"].partition(".")
    return str(math.ceil(quantity(spec["resources"][kind][name])))


def buildah_with(storage: Path) -> Command:
    """Return a function that runs buildah, or another command, with the storage of a file.

    The test is skipped where there is no buildah.
    """
    if os.geteuid() != 0 or not (shutil.which("buildah") and shutil.which("mmdebstrap")):
        pytest.skip("images are built by root with buildah and mmdebstrap")
    environ = {**os.environ, "CONTAINERS_STORAGE_CONF": str(storage)}

    def run(
        *args: str, command: str = "buildah", timeout_s: float = 500, **env: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [command, *args], env={**environ, **env}, capture_output=True, text=True, check=False,
            cwd=ROOT, timeout=timeout_s,
        )  # fmt: skip

    return run


@contextmanager
def own_storage(folder: Path, drivers: tuple[str, ...] = ("overlay", "vfs")) -> Iterator[Command]:
    """Give buildah a storage in a folder, by the first driver that works, and empty it at the end.

    The driver overlay takes a third less of the CPU's time than vfs, which works on every file
    system, and inside a container.
    """
    storage = folder / "storage.conf"
    for driver in drivers:
        storage.write_text(
            f'[storage]\ndriver = "{driver}"\nrunroot = "{folder}/{driver}/run"\n'
            f'graphroot = "{folder}/{driver}/store"\n'
        )
        run = buildah_with(storage)
        if run("info").returncode == 0:
            break
    try:
        yield run
    finally:
        run("rm", "--all")
        run("rmi", "--all", "--force")


def open_image(buildah: Command, image: str) -> Image:
    """Return an image with its root mounted."""
    container = buildah("from", "--pull-never", image).stdout.strip()
    root = Path(buildah("mount", container).stdout.strip())
    inspected = json.loads(buildah("inspect", "--type=image", image).stdout)
    name = image.removeprefix("localhost/tuneline-").partition(":")[0]
    return Image(name, container, root, inspected["OCIv1"]["config"])

"""`podman kube play` of the rendered server: what a container engine makes of its YAML.

The image is a small Debian whose `vllm` says what it was given. podman takes the YAML with three
changes: an image of its own, no `ports` (it would open them on every address of the machine), and
the Secret by `podman secret create`, because podman 4.3 cannot read one of its own from YAML. It
ignores Services, policies, budgets, preStop, grace periods, and startup and readiness probes.
"""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.rollout import KEY, rendered
from k8s.rules.objects import of_kind, quantity
from tests.images import ROOT, own_storage
from tuneline.models.source import resolve_model

IMAGE = "localhost/said:1"
PACKAGES = "base-files,base-passwd,coreutils,dash,grep,libc-bin,sed"
SAYS = r"""#!/bin/sh
printf 'ARG %s\n' "$@"
env | sed 's/^/ENV /'
echo "ID $(id -u):$(id -g)"
grep -E 'CapEff|CapBnd|NoNewPrivs|Seccomp:' /proc/self/status | tr -d '\t' | sed 's/^/STATUS /'
for place in / /model /cache /tmp; do
  if touch "$place/written" 2>/dev/null; then echo "WRITES $place"; fi
done
echo DONE
exec sleep 600
"""
DOCKERFILE = """FROM scratch
ADD root.tar /
RUN cp /usr/share/base-passwd/passwd.master /etc/passwd
COPY vllm /usr/bin/vllm
"""

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def podman(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """podman with a storage of its own, which has the image."""
    if shutil.which("podman") is None:
        pytest.skip("podman is not installed")
    folder = tmp_path_factory.mktemp("podman")
    config = folder / "containers.conf"
    lines = ["[containers]", "default_ulimits = []", "[engine]", 'cgroup_manager = "cgroupfs"']
    lines += ['events_logger = "file"']
    # The crun of Debian 12 refuses a machine with both versions of control groups.
    lines += ['runtime = "runc"'] if shutil.which("runc") else []
    config.write_text("\n".join(lines) + "\n")
    with own_storage(folder, ("vfs",)) as buildah:
        made = buildah(
            "--variant=extract", f"--include={PACKAGES}", "--quiet", "bookworm",
            str(folder / "root.tar"), command="mmdebstrap",
        )  # fmt: skip
        if made.returncode:
            pytest.skip(f"mmdebstrap makes no base here: {made.stderr[-300:]}")
        (folder / "vllm").write_text(SAYS)
        (folder / "vllm").chmod(0o755)
        (folder / "Dockerfile").write_text(DOCKERFILE)
        built = buildah("build", "--isolation=chroot", "-t", IMAGE, str(folder))
        if built.returncode:
            pytest.skip(f"buildah builds no image here: {built.stderr[-300:]}")

        def run(*args: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
            environ = {
                "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": str(folder),
                "CONTAINERS_STORAGE_CONF": str(folder / "storage.conf"),
                "CONTAINERS_CONF": str(config),
            }  # fmt: skip
            return subprocess.run(
                ["podman", *args], env=environ, input=stdin, capture_output=True, text=True,
                check=False, cwd=ROOT, timeout=300,
            )  # fmt: skip

        probe = run("run", "--rm", "--network=none", "--ulimit=host", IMAGE, "/bin/true")
        if probe.returncode:
            pytest.skip(f"podman runs no container here: {probe.stderr[-300:]}")
        yield run
        run("pod", "rm", "--all", "--force", "--time=0")
        run("volume", "rm", "--all", "--force")


def test_podman_gives_the_server_what_the_yaml_says(podman: Run, tmp_path: Path) -> None:
    (deployment,) = of_kind(rendered(resolve_model("tiny-base"), tmp_path), "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    wanted = [*container["command"][1:], *container["args"]]
    given: dict[str, Any] = {**container, "image": IMAGE}
    del given["ports"]
    deployment["spec"]["template"]["spec"]["containers"][:] = [given]
    secret = {"api-key": base64.b64encode(KEY.encode()).decode()}
    assert podman("secret", "create", "tuneline-api-key", "-", stdin=json.dumps(secret)).stdout
    played = podman("kube", "play", "--network=none", "-", stdin=yaml.safe_dump(dict(deployment)))
    assert played.returncode == 0, played.stderr
    (name,) = podman("ps", "--filter=name=-vllm", "--format={{.Names}}").stdout.split()
    said = ""
    for _ in range(200):
        said = podman("logs", name).stdout
        if "DONE" in said:
            break
        time.sleep(0.2)
    lines: dict[str, list[str]] = {}
    for line in said.splitlines():
        kind, _, rest = line.partition(" ")
        lines.setdefault(kind, []).append(rest)
    assert lines["ARG"] == wanted
    env = dict(line.split("=", 1) for line in lines["ENV"])
    for entry in container["env"]:
        if "value" in entry:
            assert env[entry["name"]] == entry["value"]
    assert env["VLLM_API_KEY"] == KEY
    limits = container["resources"]["limits"]
    assert env["OMP_NUM_THREADS"] == limits["cpu"]
    assert lines["ID"] == ["10001:10001"]
    assert sorted(lines["STATUS"]) == [
        "CapBnd:0000000000000000", "CapEff:0000000000000000", "NoNewPrivs:1", "Seccomp:2",
    ]  # fmt: skip
    assert lines["WRITES"] == ["/cache", "/tmp"]  # noqa: S108 (places in the container)
    shown = podman("inspect", name, "--format={{.HostConfig.Memory}}").stdout
    assert int(shown) == quantity(limits["memory"])

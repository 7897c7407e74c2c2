"""The container's arguments and variables against vLLM itself, and the image's own files."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import pytest

import k8s
from k8s.config import HOST, MODEL_DIR, PORT, DeployConfig
from k8s.render.facts import Facts
from k8s.render.kustomize import build
from k8s.render.tree import render_manifests
from k8s.rules.objects import servers
from serving.command.arguments import served_names, server_args
from serving.command.environment import artifact_facts, server_env
from serving.command.flags import MIDDLEWARE
from serving.config import ServingConfig
from tuneline.models.source import ModelSource

Container: TypeAlias = dict[str, Any]
Parse: TypeAlias = Callable[[list[str]], Any]

ROOM = Path(k8s.__file__).parent
ROOT = ROOM.parent
DIGEST = "sha256:" + "0123456789abcdef" * 4
SERVING = ServingConfig(
    max_model_len=1024, enforce_eager=True, extra_args={"max-num-queued-reqs": 64}
)


@pytest.fixture(scope="module")
def parse() -> Parse:
    """vLLM's own parser of `vllm serve`; exits with 2 on what it does not know."""
    pytest.importorskip("vllm", reason="vLLM is not installed; its parser is what is asked")
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = make_arg_parser(FlexibleArgumentParser(prog="vllm serve"))
    return lambda args: parser.parse_args(args)


@pytest.fixture(scope="module")
def containers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Container]:
    """The vLLM container of both overlays, as they are and as a run fills them in."""
    if k8s.find_kubectl() is None:
        pytest.skip("kubectl is not installed; it renders the manifests under test")
    directories = {name: ROOM / "manifests/overlays" / name for name in ("cpu", "gpu")}
    for overlay in ("cpu", "gpu"):
        source = ModelSource("tickets", Path(MODEL_DIR), DIGEST, "model")
        config = DeployConfig.model_validate(
            {"overlay": overlay, "image": "server:1", "model_claim": "models"}
        )
        directories[f"a run on {overlay}"] = render_manifests(
            Facts(config, "tickets", DIGEST),
            tmp_path_factory.mktemp("deploy") / overlay,
            served_args=server_args(
                SERVING,
                model=MODEL_DIR,
                adapter=None,
                served_names=served_names("tickets", DIGEST),
                host=HOST,
                port=PORT,
            ),
            served_env=server_env(SERVING, artifact_facts(source, None, "tickets")),
        )
    found = {}
    for name, directory in directories.items():
        ((_, container),) = servers(build(directory) or [])
        found[name] = dict(container)
    assert len(found) == 4
    return found


def test_vllm_takes_the_arguments(parse: Parse, containers: dict[str, Container]) -> None:
    for name, container in containers.items():
        assert container["command"] == ["vllm", "serve"]
        args = parse(container["args"])
        folder = "tickets-0123456789ab" if name.startswith("a run") else "example"
        assert args.model_tag == f"/model/{folder}", name
        assert (args.host, args.port) == ("0.0.0.0", 8000)  # noqa: S104
        assert args.middleware == [MIDDLEWARE]
        assert args.shutdown_timeout > 0
        assert args.api_key is None
        assert args.trust_remote_code is False
    rendered = parse(containers["a run on gpu"]["args"])
    assert rendered.served_model_name == ["tickets", "tickets@0123456789ab"]
    assert rendered.max_model_len == 1024
    assert rendered.enforce_eager is True
    assert rendered.max_num_queued_reqs == 64
    assert parse(containers["cpu"]["args"]).dtype == "float32"


@pytest.mark.parametrize(
    "arg",
    # The last three were flags of earlier releases: a pod given one of them never starts.
    ["--max-modellen=1024", "--port=http", "--swap-space=4", "--task=generate", "--device=cpu"],
)
def test_vllm_refuses_what_it_does_not_know(
    parse: Parse,
    containers: dict[str, Container],
    arg: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as caught:
        parse([*containers["a run on cpu"]["args"], arg])
    assert caught.value.code == 2
    assert arg.partition("=")[0] in capsys.readouterr().err


def test_vllm_knows_the_variables(parse: Parse, containers: dict[str, Container]) -> None:
    from vllm import envs

    for name, container in containers.items():
        ours = {entry["name"] for entry in container["env"] if entry["name"].startswith("VLLM_")}
        assert len(ours) >= 4, name
        assert ours <= set(envs.environment_variables), name
    assert "VLLM_ENGINE_READY_TIMEOUT" not in envs.environment_variables


FOR_ADAPTERS = {
    "serving/adapters": "serving/adapters",
    "serving/parity.py serving/config.py": "serving/",
    "tuneline/core": "tuneline/core",
    "tuneline/models": "tuneline/models",
    "tuneline/__init__.py": "tuneline/",
}
"""The files that the Dockerfile copies for adapters at run time, with their places."""


def test_the_image_holds_all_that_the_middleware_needs(tmp_path: Path) -> None:
    """The files that the Dockerfile copies, with no others on the path, are enough to import it."""
    pytest.importorskip("prometheus_client", reason="a part of the extra `serve`")
    text = (ROOM / "images" / "Dockerfile.server").read_text()
    copied = re.findall(r"^COPY (?:--\S+ )*(.+) /opt/tuneline/(\S+)$", text, re.MULTILINE)
    ours = [(folder, folder) for folder in ("serving/middleware", "serving/engine")]
    assert copied == [ours[0], *FOR_ADAPTERS.items(), ours[1]]
    empty = re.findall(r"install --mode=0444 /dev/null /opt/tuneline/(\S+)$", text, re.MULTILINE)
    assert empty == ["serving/__init__.py"]
    for sources, target in copied:
        for source in sources.split():
            place = tmp_path / target / (Path(source).name if target.endswith("/") else "")
            place.parent.mkdir(parents=True, exist_ok=True)
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, place)
            else:
                shutil.copyfile(ROOT / source, place)
    (tmp_path / "serving/__init__.py").touch()
    module, _, name = MIDDLEWARE.rpartition(".")
    assert _imports(
        tmp_path,
        # A server without adapters needs nothing of `tuneline`.
        "import sys; sys.modules['tuneline'] = None\n"
        f"import {module} as m; m.{name}; print(m.__file__)",
    ) == [str(tmp_path / "serving/middleware/__init__.py")]
    # Nothing of this repository is found elsewhere: the finder of an editable install is left out.
    assert _imports(
        tmp_path,
        "import sys; sys.meta_path = [f for f in sys.meta_path if 'editable' not in repr(f)]\n"
        f"sys.path = [p for p in sys.path if p != {str(ROOT)!r}]\n"
        "import serving.middleware.adapters as m, tuneline; print(m.__file__, tuneline.__file__)",
    ) == [str(tmp_path / "serving/middleware/adapters.py"), str(tmp_path / "tuneline/__init__.py")]


def _imports(folder: Path, code: str) -> list[str]:
    """Return the words that Python prints with a folder before everything else on its path."""
    done = subprocess.run(
        # -P: the current directory, which holds the whole repository, stays off the path.
        [sys.executable, "-P", "-c", code],
        env={"PYTHONPATH": str(folder), "PATH": os.environ["PATH"]},
        capture_output=True, text=True, check=False, cwd=folder, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_the_image_names_the_plugin_as_the_package_does(tmp_path: Path) -> None:
    """The metadata that the Dockerfile writes, made by its own commands, is found by Python."""
    text = (ROOM / "images" / "Dockerfile.server").read_text()
    (commands,) = re.findall(
        r"^RUN (mkdir /opt/tuneline/tuneline_engine.+?entry_points\.txt)$",
        text,
        re.MULTILINE | re.DOTALL,
    )
    script = commands.replace("\\\n", "").replace("/opt/tuneline", str(tmp_path))
    subprocess.run(["sh", "-ec", script], check=True, timeout=10)
    code = (
        "from importlib.metadata import entry_points\n"
        "print(*(e.value for e in entry_points(group='vllm.general_plugins', name='tuneline')))"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{code}"],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    package = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    assert set(done.stdout.split()) == {package["vllm.general_plugins"]["tuneline"]}

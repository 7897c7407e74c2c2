"""`tuneline adapters apply` against the middleware over HTTP. An app plays vLLM's routes."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from serving import describe_adapter
from tests.commands import tuneline_here
from tests.unit.serving.adapters.made import make_adapter, make_reference
from tests.unit.serving.middleware.test_adapters import Scene, new_scene, scene
from tuneline.core.artifact import Artifact
from tuneline.core.errors import ArtifactError, ConfigError

__all__ = ["new_scene", "scene"]

Apply = Callable[..., tuple[int, str, dict[str, str]]]


@pytest.fixture
def url(scene: Scene) -> Iterator[str]:
    """The scene's middleware on a port of this machine."""
    server = uvicorn.Server(
        uvicorn.Config(scene.middleware, port=0, log_level="error", lifespan="off")
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}/v1"
    server.should_exit = True
    thread.join()


@pytest.fixture
def apply(scene: Scene, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Apply:
    """Apply a list; return the exit code, stderr, and what was done by name."""
    monkeypatch.setenv("VLLM_API_KEY", "admin")

    def applied(**wanted: Artifact) -> tuple[int, str, dict[str, str]]:
        entries = {
            name: describe_adapter(made.path, scene.root, str(scene.root)).model_dump()
            for name, made in wanted.items()
        }
        file = tmp_path / "desired.json"
        file.write_text(json.dumps(entries))
        done = tuneline_here("adapters", "apply", url, str(file), "--json")
        found = json.loads(done.stdout)["adapters"] if done.returncode == 0 else []
        return done.returncode, done.stderr, {one["name"]: one["action"] for one in found}

    return applied


def made_adapter(scene: Scene, name: str, scale: float = 1.0) -> Artifact:
    """Return an adapter in a folder of its own, with its reference next to it."""
    made = make_adapter(scene.root / name / "adapter", scale=scale)
    make_reference(scene.root / name / "reference", made)
    return made


def digests(scene: Scene) -> dict[str, str]:
    assert scene.middleware.adapters is not None
    return {one["name"]: one["digest"] for one in scene.middleware.adapters._entries()}


def test_a_server_gets_the_adapters_of_a_list(scene: Scene, apply: Apply) -> None:
    one, two, three = (made_adapter(scene, n, s) for n, s in (("1", 1.0), ("2", 2.0), ("3", 3.0)))
    assert apply(a=one, b=two)[2] == {"a": "added", "b": "added"}
    assert apply(a=one, b=two)[2] == {"a": "kept", "b": "kept"}
    asked = len(scene.vllm.asked)
    assert apply(a=three, b=two)[2] == {"a": "added", "b": "kept"}
    assert len(scene.vllm.asked) > asked
    asked = len(scene.vllm.asked)
    # The version before is loaded and proven: it gets the name without a new proof.
    assert apply(a=one, b=two)[2] == {"a": "rolled back", "b": "kept"}
    assert len(scene.vllm.asked) == asked
    assert apply(b=two)[2] == {"b": "kept", "a": "removed"}
    assert digests(scene) == {"b": two.digest}
    assert apply()[2] == {"b": "removed"}


def test_an_adapter_that_fails_its_proof_leaves_everything_that_is_served(
    scene: Scene, apply: Apply
) -> None:
    one, two, three = (made_adapter(scene, n, s) for n, s in (("1", 1.0), ("2", 2.0), ("3", 3.0)))
    assert apply(a=one, b=two)[0] == 0
    scene.vllm.broken.add(three.short_digest)
    code, words, _ = apply(a=three, c=two)
    assert code == 6
    assert "a: " in words and "the adapter is loaded and not applied" in words
    # `b` is no longer wanted, and stays while a wanted one fails; so `c` has no room.
    assert "c: 2 adapters are served" in words
    assert digests(scene) == {"a": one.digest, "b": two.digest}


def test_a_list_names_the_digest_that_is_served(
    scene: Scene, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "admin")
    one, two = made_adapter(scene, "1"), made_adapter(scene, "2", 2.0)
    entry = describe_adapter(one.path, scene.root, str(scene.root)).model_dump()
    file = tmp_path / "desired.json"
    file.write_text(json.dumps({"a": {**entry, "digest": two.digest}}))
    done = tuneline_here("adapters", "apply", url, str(file))
    assert (done.returncode, digests(scene)) == (3, {})
    assert f"the digest is {one.short_digest}; expected {two.short_digest}" in done.stderr
    monkeypatch.setenv("VLLM_API_KEY", "app")
    done = tuneline_here("adapters", "apply", url, str(file))
    assert done.returncode == 5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "No such file"),
        ("{", "is not a list of adapters"),
        ('{"a": {"adapter": "/x"}}', "reference"),
    ],
)
def test_a_file_that_is_no_list_is_refused(tmp_path: Path, text: str | None, message: str) -> None:
    file = tmp_path / "desired.json"
    if text is not None:
        file.write_text(text)
    done = tuneline_here("adapters", "apply", "http://127.0.0.1:9/v1", str(file))
    assert done.returncode == 2
    assert message in done.stderr


def test_an_adapter_is_described_with_its_reference_below_the_root(tmp_path: Path) -> None:
    root = tmp_path / "root"
    made = make_adapter(root / "run" / "adapter")
    with pytest.raises(ArtifactError, match="no reference of this adapter is next to it"):
        describe_adapter(made.path, root, "/adapters")
    make_reference(root / "run" / "reference-1", made)
    found: Any = describe_adapter(made.path, root, "/adapters")
    assert found.model_dump() == {
        "adapter": "/adapters/run/adapter", "reference": "/adapters/run/reference-1",
        "digest": made.digest,
    }  # fmt: skip
    with pytest.raises(ConfigError, match=r"is not below serving\.adapters\.root"):
        describe_adapter(made.path, tmp_path / "other", "/adapters")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "No such file or directory; expected a list of adapters"),
        ("", "is not a list of adapters: invalid json: eof"),
        ('{"a": {"adapter": "/runs/a"}}', "a: reference: field required"),
    ],
)
def test_a_file_that_is_no_list_shows_the_form(tmp_path: Path, text: str | None, said: str) -> None:
    file = tmp_path / "list.json"
    if text is not None:
        file.write_text(text)
    done = tuneline_here("adapters", "apply", "http://127.0.0.1:1/v1", str(file))
    assert done.returncode == 2
    assert said in done.stderr
    assert '"reference": ' in done.stderr
    assert "pydantic" not in done.stderr

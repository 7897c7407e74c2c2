"""Publishing: exact files, equal bytes each time, nothing over what is there, no secret told."""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import socket
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from export import push_model
from tests.integration.export import families
from tuneline.core.artifact import Artifact, new_artifact, open_artifact, verify_artifact
from tuneline.core.errors import (
    ArtifactError,
    ConfigError,
    MissingError,
    ServerError,
    TamperedError,
)

TOKEN = "hf_not_a_real_token_0123456789"


@pytest.fixture
def model(tmp_path: Path) -> Artifact:
    with new_artifact(tmp_path / "model", "model", config={}) as draft:
        (draft.dir / "config.json").write_text('{"vocab_size": 3}')
        (draft.dir / "model.safetensors").write_bytes(bytes(range(256)) * 40)
        (draft.dir / "tokenizer.json").write_text("{}")
    return open_artifact(tmp_path / "model")


def test_a_folder_is_an_artifact_again(model: Artifact, tmp_path: Path) -> None:
    where = push_model(model.path, str(tmp_path / "copy"), "# Card\n")
    assert where == str(tmp_path / "copy")
    names = sorted(file.name for file in (tmp_path / "copy").iterdir())
    assert names == ["README.md", "config.json", "manifest.json", "model.safetensors",
                     "tokenizer.json"]  # fmt: skip
    for name in names[1:]:
        assert (tmp_path / "copy" / name).read_bytes() == (model.path / name).read_bytes()
    assert open_artifact(tmp_path / "copy").digest == model.digest
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "model"]


def test_a_tar_is_the_same_bytes_each_time(model: Artifact, tmp_path: Path) -> None:
    push_model(model.path, str(tmp_path / "one.tar"), "# Card\n")
    (model.path / "config.json").touch()  # a new time of modification
    push_model(model.path, str(tmp_path / "two.tar"), "# Card\n")
    one, two = ((tmp_path / name).read_bytes() for name in ("one.tar", "two.tar"))
    assert hashlib.sha256(one).digest() == hashlib.sha256(two).digest()
    with tarfile.open(tmp_path / "one.tar") as archive:
        members = archive.getmembers()
        assert [member.name for member in members] == sorted(member.name for member in members)
        assert {(m.uid, m.gid, m.mtime, m.mode, m.uname) for m in members} == {(0, 0, 0, 0o644, "")}
        archive.extractall(tmp_path / "unpacked")  # noqa: S202 (Python 3.11.2 has no filter)
    (tmp_path / "unpacked" / "README.md").unlink()
    verify_artifact(open_artifact(tmp_path / "unpacked"))


@pytest.mark.parametrize("target", ["there", "there.tar"])
def test_nothing_is_published_over_what_is_there(
    model: Artifact, target: str, tmp_path: Path
) -> None:
    (tmp_path / target).write_text("mine")
    with pytest.raises(ArtifactError, match="exists already"):
        push_model(model.path, str(tmp_path / target), None)
    assert (tmp_path / target).read_text() == "mine"


@pytest.mark.parametrize("target", ["out", "out.tar"])
def test_two_pushes_to_one_place_do_not_mix(
    model: Artifact, target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second push comes while the first has written a file and not given it its name."""
    from export.publish import push

    seen: list[str] = []
    written = push._write

    def slowly(files: dict[str, Path], extra: dict[str, str], out: Path) -> None:
        monkeypatch.setattr(push, "_write", written)
        (tmp_path / f".{target}.partial").write_text("the first push")
        with pytest.raises(ArtifactError, match=f"{target}: another process is writing it"):
            push_model(model.path, str(tmp_path / target), None)
        seen.append((tmp_path / f".{target}.partial").read_text())
        (tmp_path / f".{target}.partial").unlink()
        written(files, extra, out)

    monkeypatch.setattr(push, "_write", slowly)
    push_model(model.path, str(tmp_path / target), None)
    assert seen == ["the first push"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", target]


def test_a_model_that_was_altered_is_not_published(model: Artifact, tmp_path: Path) -> None:
    (model.path / "config.json").write_text('{"vocab_size": 4}')
    with pytest.raises(TamperedError, match=r"config\.json"):
        push_model(model.path, str(tmp_path / "out.tar"), None)
    assert not (tmp_path / "out.tar").exists()


def test_a_plain_folder_goes_without_pickles_and_code(tmp_path: Path) -> None:
    folder = tmp_path / "plain"
    folder.mkdir()
    for name in ("config.json", "pytorch_model.bin", "modeling.py", "x.pt", "LICENSE", "NOTICE"):
        (folder / name).write_text("{}")
    save_file({"weight": torch.ones(3)}, folder / "model.safetensors")
    push_model(folder, str(tmp_path / "out"), None)
    names = sorted(file.name for file in (tmp_path / "out").iterdir())
    assert names == ["LICENSE", "NOTICE", "config.json", "model.safetensors"]
    with pytest.raises(ArtifactError, match="expected a model folder"):
        push_model(tmp_path, str(tmp_path / "other"), None)


@pytest.mark.parametrize("to", ["nope:", "s3://bucket/model", "hub:acme/model"])
def test_a_place_that_is_none_is_refused(
    to: str, model: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.iterdir())
    with pytest.raises(ConfigError, match="expected hf:ORG/NAME, s3://BUCKET/PATH, a"):
        push_model(model.path, to, None)
    assert set(tmp_path.iterdir()) == before


def test_the_hub_needs_a_name_and_a_token(model: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with pytest.raises(ConfigError, match="expected hf:ORG/NAME"):
        push_model(model.path, "hf:name", None)
    with pytest.raises(MissingError, match="HF_TOKEN is not set"):
        push_model(model.path, "hf:org/name", None)


class _Hub(BaseHTTPRequestHandler):
    """The Hub's answers to an upload of small files, which all go with the commit itself."""

    seen: list[tuple[str, str | None, Any]]
    there: list[str]
    status: int

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        type(self).seen.append((self.path, self.headers["Authorization"], body))
        answer: dict[str, Any] = {}
        if self.path == "/api/repos/create":
            answer = {"url": f"http://{self.headers['Host']}/org/name", "id": "org/name"}
        elif self.path.startswith("/api/models/org/name/preupload/"):
            files = json.loads(body)["files"]
            answer = {"files": [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files
            ]}  # fmt: skip
        elif self.path.startswith("/api/models/org/name/commit/"):
            answer = {
                "success": True, "commitOid": "0" * 40,
                "commitUrl": f"http://{self.headers['Host']}/org/name/commit/{'0' * 40}",
            }  # fmt: skip
        self._send(type(self).status, answer)

    def do_GET(self) -> None:
        if self.path.startswith("/api/models/org/name/tree/"):
            there = [{"type": "file", "path": path, "size": 1, "oid": "0"} for path in self.there]
            self._send(200, there)
            return
        self._send(200, {"id": "org/name", "sha": "0" * 40, "private": True, "tags": [],
                         "siblings": [], "downloads": 0, "likes": 0})  # fmt: skip

    def _send(self, status: int, answer: Any) -> None:
        data = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[_Hub]]:
    """A stand-in for the Hub's HTTP, for small files; large ones go another way there."""
    import huggingface_hub

    class Hub(_Hub):
        status = 200

    Hub.seen, Hub.there = [], [".gitattributes", "README.md", "config.json"]

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{server.server_address[1]}"
    real = huggingface_hub.HfApi
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda **options: real(endpoint=url, **options))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    yield Hub
    server.shutdown()
    server.server_close()


def test_an_upload_holds_exactly_the_files(
    model: Artifact, hub: type[_Hub], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    push_model(model.path, "hf:org/name", "# Card\n")
    created = next(json.loads(body) for path, _, body in hub.seen if path == "/api/repos/create")
    assert (created["name"], created["organization"]) == ("name", "org")
    assert created["visibility"] == "private"
    commit = next(body for path, _, body in hub.seen if "/commit/" in path)
    lines = [json.loads(line) for line in commit.decode().splitlines()]
    sent = {
        line["value"]["path"]: base64.b64decode(line["value"]["content"])
        for line in lines
        if line["key"] == "file"
    }
    expected = {file.name: file.read_bytes() for file in model.path.iterdir()}
    assert sent == {**expected, "README.md": b"# Card\n"}
    assert {token for _, token, _ in hub.seen} == {f"Bearer {TOKEN}"}
    assert TOKEN not in caplog.text


def test_an_upload_replaces_the_model_that_was_there(model: Artifact, hub: type[_Hub]) -> None:
    read = [
        "adapter_config.json", "additional_chat_templates/tool_use.jinja", "chat_template.jinja",
        "model-00001-of-00002.safetensors", "model.safetensors.index.json", "vocab.json",
    ]  # fmt: skip
    hub.there += [*read, "model.safetensors", "notes.txt", "original/model.safetensors", "x.gguf"]
    push_model(model.path, "hf:org/name", None)
    commit = next(body for path, _, body in hub.seen if "/commit/" in path)
    lines = [json.loads(line) for line in commit.decode().splitlines()]
    removed = [line["value"]["path"] for line in lines if line["key"] == "deletedFile"]
    assert sorted(removed) == read


def test_a_hub_that_refuses(model: Artifact, hub: type[_Hub]) -> None:
    hub.status = 403
    with pytest.raises(ServerError, match="refused the upload") as raised:
        push_model(model.path, "hf:org/name", None)
    assert TOKEN not in str(raised.value)


def test_a_hub_that_cannot_be_reached(model: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    with socket.socket() as closed:  # bound and not listening: a connection is refused
        closed.bind(("127.0.0.1", 0))
        url, real = f"http://127.0.0.1:{closed.getsockname()[1]}", huggingface_hub.HfApi
        monkeypatch.setattr(
            huggingface_hub, "HfApi", lambda **options: real(endpoint=url, **options)
        )
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        with pytest.raises(ServerError, match=r"refused the upload: .*[Cc]onnect") as raised:
            push_model(model.path, "hf:org/name", None)
    assert raised.value.exit_code == 5
    assert "the network" in str(raised.value.hint)


@pytest.mark.parametrize("to", ["out", "out.tar"])
@pytest.mark.parametrize("damage", ["truncated", "a-shard-lost", "no-index", "no-json"])
def test_a_plain_folder_that_was_cut_short_is_refused(damage: str, to: str, tmp_path: Path) -> None:
    base = families.make_base(tmp_path / "base", "llama", max_shard_size="60KB")
    push_model(base, str(tmp_path / "whole"), None)
    shard = sorted(base.glob("*.safetensors"))[1]
    if damage == "truncated":
        shard.write_bytes(shard.read_bytes()[:-50])
    elif damage == "a-shard-lost":
        shard.unlink()
    elif damage == "no-index":
        (base / "model.safetensors.index.json").unlink()
    else:
        (base / "config.json").write_text("{oops")
    name = {"no-json": "config.json", "no-index": "neither model"}.get(damage, shard.name)
    with pytest.raises(ArtifactError, match=name):
        push_model(base, str(tmp_path / to), None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "whole"]

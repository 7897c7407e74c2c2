"""Artifacts on a real S3 server: whole or not at all, also when the store fails half-way."""

from __future__ import annotations

import http.server
import json
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.s3_server import BUCKET, NO_LIMIT, Store, s3_server, s3_store
from tuneline.core import storage
from tuneline.core.artifact import Artifact, new_artifact, open_artifact, verify_artifact
from tuneline.core.errors import (
    ArtifactError,
    ConfigError,
    NotAnArtifactError,
    ServerError,
    TamperedError,
    TunelineError,
)
from tuneline.core.storage import (
    list_artifacts,
    pull_artifact,
    pull_files,
    push_artifact,
    require_place,
)

PLACE = f"s3://{BUCKET}/runs/tickets/model-1"


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with s3_server() as found:
        yield found


@pytest.fixture
def store(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    with s3_store(endpoint, monkeypatch) as found:
        yield found


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    return write(tmp_path / "model-1")


def write(out: Path, text: str = "hello") -> Artifact:
    with new_artifact(out, "dataset", config={"seed": 1}) as draft:
        (draft.dir / "inner").mkdir()
        (draft.dir / "inner" / "a b.txt").write_text(text)
        (draft.dir / "empty").touch()
        (draft.dir / "한국어.bin").write_bytes(bytes(range(256)) * 50)
    return open_artifact(out)


def test_an_artifact_comes_back_byte_for_byte(
    store: Store, artifact: Artifact, tmp_path: Path
) -> None:
    assert push_artifact(artifact, PLACE)
    assert sorted(store.names()) == sorted(
        f"runs/tickets/model-1/{name}"
        for name in ("empty", "inner/a b.txt", "manifest.json", "한국어.bin")
    )
    found = pull_artifact(PLACE, tmp_path / "copy")
    verify_artifact(open_artifact(tmp_path / "copy"))
    assert found.digest == artifact.digest
    for file in artifact.path.rglob("*"):
        if file.is_file():
            copy = tmp_path / "copy" / file.relative_to(artifact.path)
            assert copy.read_bytes() == file.read_bytes()
    assert list_artifacts(f"s3://{BUCKET}/runs/tickets") == ["model-1"]


def test_a_large_file_goes_in_parts(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # S3 takes parts of 5 MiB and more.
    monkeypatch.setattr("tuneline.core.storage.CHUNK_BYTES", 5 * 2**20)
    with new_artifact(tmp_path / "large", "dataset", config={}) as draft:
        (draft.dir / "weights").write_bytes(bytes(range(256)) * (11 * 2**12) + b"end")
    artifact = open_artifact(tmp_path / "large")
    push_artifact(artifact, PLACE)
    head = store.client.head_object(Bucket=BUCKET, Key="runs/tickets/model-1/weights")
    assert head["ETag"].endswith('-3"')
    assert head["ContentLength"] == 11 * 2**20 + 3
    assert pull_artifact(PLACE, tmp_path / "copy").digest == artifact.digest


def test_the_same_artifact_is_pushed_once(store: Store, artifact: Artifact) -> None:
    assert push_artifact(artifact, PLACE)
    before = store.client.head_object(Bucket=BUCKET, Key="runs/tickets/model-1/empty")
    assert not push_artifact(artifact, PLACE)
    after = store.client.head_object(Bucket=BUCKET, Key="runs/tickets/model-1/empty")
    assert before["LastModified"] == after["LastModified"]


def test_another_artifact_and_other_files_are_left_alone(
    store: Store, artifact: Artifact, tmp_path: Path
) -> None:
    push_artifact(artifact, PLACE)
    with pytest.raises(
        ArtifactError, match=r"holds the artifact [0-9a-f]{12}; expected [0-9a-f]{12}"
    ):
        push_artifact(write(tmp_path / "other", "other"), PLACE)
    assert pull_artifact(PLACE, tmp_path / "copy").digest == artifact.digest
    with pytest.raises(ArtifactError, match="holds tickets/model-1/empty, which is not a file of"):
        push_artifact(artifact, f"s3://{BUCKET}/runs")
    assert len(store.names()) == 4


@pytest.mark.parametrize("number", range(6))
def test_credentials_that_are_lost_half_way_leave_nothing_to_see(
    store: Store, artifact: Artifact, tmp_path: Path, number: int
) -> None:
    store.take_credentials_after(str(number))
    began_s = time.monotonic()
    with pytest.raises(ServerError, match="the store") as caught:
        push_artifact(artifact, PLACE)
    assert time.monotonic() - began_s < 30
    assert caught.value.exit_code == 5
    assert "not-a-secret" not in str(caught.value)
    assert "The same command then continues" in str(caught.value)
    store.take_credentials_after(NO_LIMIT)
    assert not [name for name in store.names() if name.endswith("manifest.json")]
    with pytest.raises(NotAnArtifactError, match=r"holds no manifest\.json"):
        pull_artifact(PLACE, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()
    assert list_artifacts(f"s3://{BUCKET}/runs/tickets") == []
    assert push_artifact(artifact, PLACE)
    assert pull_artifact(PLACE, tmp_path / "copy").digest == artifact.digest


@pytest.mark.parametrize("number", range(3))
def test_a_download_that_is_refused_half_way_leaves_no_directory(
    store: Store, artifact: Artifact, tmp_path: Path, number: int
) -> None:
    push_artifact(artifact, PLACE)
    store.take_credentials_after(str(number))
    with pytest.raises(ServerError, match="the store"):
        pull_artifact(PLACE, tmp_path / "copy")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model-1"]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            lambda s, k: s.client.delete_object(Bucket=BUCKET, Key=f"{k}/한국어.bin"),
            "is not there; expected a file",
        ),
        (
            lambda s, k: s.client.put_object(
                Bucket=BUCKET, Key=f"{k}/inner/a b.txt", Body=b"HELLO"
            ),
            "differs from its manifest",
        ),
    ],
)
def test_a_changed_file_in_the_store_is_found(
    store: Store,
    artifact: Artifact,
    tmp_path: Path,
    change: Callable[[Store, str], Any],
    expected: str,
) -> None:
    push_artifact(artifact, PLACE)
    change(store, "runs/tickets/model-1")
    with pytest.raises(TamperedError, match=expected):
        pull_artifact(PLACE, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize("name", ["../escaped", "/etc/escaped", "a/../../escaped", "..\\escaped"])
def test_a_manifest_that_names_a_file_elsewhere_is_refused(
    store: Store, artifact: Artifact, tmp_path: Path, name: str
) -> None:
    manifest = json.loads((artifact.path / "manifest.json").read_text())
    manifest["files"][0]["path"] = name
    text = json.dumps(manifest).encode()
    store.client.put_object(Bucket=BUCKET, Key="x/manifest.json", Body=text)
    with pytest.raises(TamperedError, match="expected a path inside the artifact"):
        pull_artifact(f"s3://{BUCKET}/x", tmp_path / "copy")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model-1"]


def test_a_manifest_that_is_none_is_refused(store: Store, tmp_path: Path) -> None:
    store.client.put_object(Bucket=BUCKET, Key="x/manifest.json", Body=b"{}")
    with pytest.raises(NotAnArtifactError, match=r"x/manifest\.json: "):
        pull_artifact(f"s3://{BUCKET}/x", tmp_path / "copy")


def test_a_changed_artifact_is_not_pushed(store: Store, artifact: Artifact) -> None:
    (artifact.path / "inner" / "a b.txt").write_text("HELLO")
    with pytest.raises(TamperedError, match="differs from its manifest"):
        push_artifact(artifact, PLACE)
    assert store.names() == []


def test_a_bucket_that_is_not_there_is_named(store: Store, artifact: Artifact) -> None:
    with pytest.raises(ServerError, match="s3://nowhere/x: "):
        push_artifact(artifact, "s3://nowhere/x")


def test_a_store_that_cannot_be_reached_ends_in_bounded_time(
    store: Store, artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        began_s = time.monotonic()
        with pytest.raises(ServerError, match="the store cannot be used"):
            push_artifact(artifact, PLACE)
    assert time.monotonic() - began_s < 60


def test_a_store_that_hangs_ends_in_bounded_time(
    store: Store, artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tuneline.core.storage.REQUEST_S", 1)
    monkeypatch.setattr("tuneline.core.storage.RETRIES", 1)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        began_s = time.monotonic()
        with pytest.raises(ServerError, match="the store cannot be used"):
            push_artifact(artifact, PLACE)
    assert time.monotonic() - began_s < 20


def test_two_writers_of_one_artifact_end_with_one(store: Store, artifact: Artifact) -> None:
    errors: list[TunelineError] = []

    def push() -> None:
        try:
            push_artifact(artifact, PLACE)
        except TunelineError as error:
            errors.append(error)

    threads = [threading.Thread(target=push) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(store.names()) == 4


def test_files_without_a_manifest_are_copied_on_request(store: Store, tmp_path: Path) -> None:
    for name, text in {"data/train.jsonl": b"{}", "data/more/a.csv": b"a,b"}.items():
        store.client.put_object(Bucket=BUCKET, Key=f"in/{name}", Body=text)
    assert pull_files(f"s3://{BUCKET}/in", tmp_path / "in") == 2
    assert (tmp_path / "in" / "data" / "more" / "a.csv").read_bytes() == b"a,b"
    with pytest.raises(ArtifactError, match="exists already"):
        pull_files(f"s3://{BUCKET}/in", tmp_path / "in")
    with pytest.raises(NotAnArtifactError, match="holds no file"):
        pull_files(f"s3://{BUCKET}/nothing", tmp_path / "nothing")


class Shrinking(http.server.BaseHTTPRequestHandler):
    """A store whose only file has ten bytes in the list, and six when it is read."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if "list-type" in self.path:
            self._answer(200, LISTED, {"Content-Type": "application/xml"})
        else:
            date = "Thu, 01 Jan 2026 00:00:00 GMT"
            headers = {"Content-Range": "bytes 0-5/6", "ETag": '"1"', "Last-Modified": date}
            self._answer(206, b'{"a":1', headers)

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


LISTED = b"""<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>models</Name>
<IsTruncated>false</IsTruncated><Contents><Key>data/rows.jsonl</Key><Size>10</Size><ETag>"1"</ETag>
<LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents></ListBucketResult>"""


def test_a_file_that_is_replaced_while_it_is_copied_is_found(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Shrinking) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        with pytest.raises(TamperedError, match=r"rows\.jsonl: ends after 6 bytes; expected 10"):
            pull_files(f"s3://{BUCKET}/data", tmp_path / "out")
        server.shutdown()
    assert not (tmp_path / "out").exists()


def test_a_directory_that_is_there_stays(store: Store, artifact: Artifact) -> None:
    push_artifact(artifact, PLACE)
    with pytest.raises(ArtifactError, match="exists already"):
        pull_artifact(PLACE, artifact.path)
    verify_artifact(artifact)


def test_a_store_without_credentials_names_their_variables() -> None:
    from obstore.exceptions import GenericError

    with (
        pytest.raises(ServerError, match="no credentials are set") as caught,
        storage._errors("s3://b"),
    ):
        raise GenericError("Error performing PUT http://169.254.169.254/latest/api/token in 1 ms")
    assert "AWS_ACCESS_KEY_ID" in str(caught.value)


@pytest.mark.parametrize(
    "url", ["", "s3://", "bucket/path", "ftp://bucket/path", "s3:/bucket", "hf:team/model"]
)
def test_a_place_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="is not a place in object storage"):
        require_place(url)


def test_no_library_is_a_missing_extra(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "obstore", None)
    with pytest.raises(TunelineError, match="obstore") as caught:
        push_artifact(artifact, PLACE)
    assert caught.value.exit_code == 4
    assert "[storage]" in str(caught.value)
    shutil.rmtree(artifact.path)

"""A dataset of the Hub: downloaded once, then read from the cache without a network."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {
    "README.md": b"---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n"
    b"    path: rows-*.csv\n  - split: test\n    path: test.csv\n---\n",
    "rows-1.csv": b"prompt,completion\na,None\n",
    "rows-2.csv": b"prompt,completion\nb,00123\n",
    "test.csv": b"prompt,completion\nc,d\n",
}


class Hub(BaseHTTPRequestHandler):
    """The three routes of the Hub's API that a download of a dataset asks."""

    asked: ClassVar[list[str]] = []

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.asked.append(path)
        name = path.rpartition("/")[2]
        if path == "/api/datasets/owner/name/revision/main":
            self._send(json.dumps({"id": "owner/name", "sha": COMMIT, "siblings": []}).encode())
        elif path == f"/api/datasets/owner/name/tree/{COMMIT}":
            tree = [
                {"type": "file", "path": name, "size": len(data), "oid": _oid(data)}
                for name, data in FILES.items()
            ]
            self._send(json.dumps(tree).encode())
        elif path.startswith(f"/datasets/owner/name/resolve/{COMMIT}/") and name in FILES:
            self._send(FILES[name])
        else:
            self.send_error(404)

    def _send(self, data: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", f'"{_oid(data)}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        pass


def _oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()  # noqa: S324 (git's own)


@pytest.fixture
def url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def convert(
    folder: Path, url: str, out: str, *options: str, **variables: str
) -> subprocess.CompletedProcess[str]:
    code = "from tuneline.cli import main; main()"
    arguments = ["data", "convert", "hf:owner/name", "--out", out, *options]
    environment = {
        **os.environ,
        "HF_ENDPOINT": url,
        "HF_HUB_CACHE": str(folder / "cache"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        **variables,
    }
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def test_a_dataset_is_downloaded_once_and_read_as_text(tmp_path: Path, url: str) -> None:
    done = convert(tmp_path, url, "rows.jsonl", "--to", "prompt-completion")
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [row["completion"][0]["content"] for row in rows] == ["None", "00123"]
    assert not any(path.endswith("test.csv") for path in Hub.asked)

    num_asked = len(Hub.asked)
    assert num_asked
    again = convert(tmp_path, url, "again.jsonl")
    assert again.returncode == 0, again.stderr
    assert len(Hub.asked) == num_asked

    other = convert(tmp_path, url, "test.jsonl", "--split", "test", HF_HUB_OFFLINE="1")
    assert other.returncode == 4
    assert "hf:owner/name: is not cached, and the Hugging Face Hub does not give it" in other.stderr
    assert "hf download --repo-type dataset owner/name --local-dir name" in other.stderr
    assert not (tmp_path / "test.jsonl").exists()

    split = convert(tmp_path, url, "none.jsonl", "--split", "dev")
    assert split.returncode == 2
    assert "has no split 'dev'; found: train, test" in split.stderr

"""Who signs a release, what the signature covers, and when an earlier release is returned."""

import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from tests.integration.release.keys import certificate, write_key, write_private
from tests.integration.release.line import Answers, FinishedLine, rewrite, verify, write_line
from tuneline.core.artifact import new_artifact
from tuneline.core.errors import ArtifactError, ServerError
from tuneline.release import parties
from tuneline.release.parties import Signer
from tuneline.release.sign import sign_model


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys")
    write_key(folder, "own")
    return folder


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> FinishedLine:
    return write_line(tmp_path_factory.mktemp("line"))


def test_a_failed_release_is_not_signed(tmp_path: Path, keys: Path) -> None:
    line = write_line(tmp_path, Answers(parity_noise=0.5))
    done = line.release("--sign-key", str(keys / "own.pem"))
    assert done.returncode == 6
    assert "FAIL, not signed" in done.stdout
    (release,) = line.run.dir.glob("release-*")
    assert not list(release.glob("*.sig"))


def test_a_key_with_a_password_signs(
    line: FinishedLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = write_key(tmp_path, "locked", b"hunter2")
    done = line.release("--sign-key", str(key))
    assert done.returncode == 2
    assert "Password was not given" in done.stderr
    assert "TUNELINE_SIGN_PASSWORD" in done.stderr
    monkeypatch.setenv("TUNELINE_SIGN_PASSWORD", "hunter2")
    release = line.released("--sign-key", str(key))
    assert verify(release, "--key", tmp_path / "locked.pub").returncode == 0
    assert "hunter2" not in "".join(path.read_text() for path in release.iterdir())


@pytest.mark.parametrize("content", ["own.pub", "rsa", "text"])
def test_a_file_that_is_not_an_ec_key_is_refused_before_the_gates(
    line: FinishedLine, keys: Path, tmp_path: Path, content: str
) -> None:
    path = tmp_path / "key.pem"
    if content == "rsa":
        write_private(rsa.generate_private_key(65537, 2048), path)
    elif content == "text":
        path.write_text("hello")
    else:
        path = keys / content
    done = line.release("--sign-key", str(path))
    assert done.returncode == 2
    assert f"--sign-key {path}: " in done.stderr
    assert "openssl ecparam" in done.stderr


def test_a_certificate_signs_and_another_root_is_refused(
    line: FinishedLine, tmp_path: Path
) -> None:
    root_key, leaf_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    root = certificate("root", root_key, None, root_key, ca=True)
    leaf = certificate("team", leaf_key, root.subject, root_key, ca=False)
    stranger = certificate("other", leaf_key, None, leaf_key, ca=True)
    for name, one in (("root", root), ("leaf", leaf), ("stranger", stranger)):
        (tmp_path / f"{name}.pem").write_bytes(one.public_bytes(serialization.Encoding.PEM))
    key = write_private(leaf_key, tmp_path / "key.pem")
    release = line.released(
        "--sign-key", str(key), "--sign-certificate", str(tmp_path / "leaf.pem"),
        "--sign-chain", str(tmp_path / "root.pem"),
    )  # fmt: skip
    assert verify(release, "--certificate", tmp_path / "root.pem").returncode == 0
    done = verify(release, "--certificate", tmp_path / "stranger.pem")
    assert done.returncode == 3
    assert "release.sig: is not a signature by the certificate" in done.stderr


def test_an_expired_certificate_neither_signs_nor_verifies(
    line: FinishedLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root_key, leaf_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    root = certificate("root", root_key, None, root_key, ca=True)
    old = certificate("t", leaf_key, root.subject, root_key, ca=False, ends=timedelta(minutes=-5))
    for name, one in (("root", root), ("leaf", old)):
        (tmp_path / f"{name}.pem").write_bytes(one.public_bytes(serialization.Encoding.PEM))
    options = [
        "--sign-key", str(write_private(leaf_key, tmp_path / "key.pem")),
        "--sign-certificate", str(tmp_path / "leaf.pem"),
        "--sign-chain", str(tmp_path / "root.pem"),
    ]  # fmt: skip
    done = line.release(*options)
    assert done.returncode == 2
    assert "leaf.pem: is valid from" in done.stderr
    assert "expected a certificate that is valid today" in done.stderr
    # A signer who does not use Tuneline may sign all the same.
    monkeypatch.setattr(parties, "_require_valid_today", lambda *_: None)
    done = verify(line.released(*options), "--certificate", tmp_path / "root.pem")
    assert done.returncode == 3
    assert "release.sig: its certificate is valid from" in done.stderr


def test_a_new_key_under_the_name_of_the_old_one_signs_anew(
    line: FinishedLine, tmp_path: Path
) -> None:
    key = write_key(tmp_path, "key")
    first = line.released("--sign-key", str(key))
    assert line.released("--sign-key", str(key)) == first
    (tmp_path / "key.pub").rename(tmp_path / "old.pub")
    write_key(tmp_path, "key")
    second = line.released("--sign-key", str(key))
    assert second != first
    assert verify(second, "--key", tmp_path / "key.pub").returncode == 0
    assert verify(second, "--key", tmp_path / "old.pub").returncode == 3
    assert verify(first, "--key", tmp_path / "old.pub").returncode == 0


def test_a_new_certificate_of_the_same_key_signs_anew(line: FinishedLine, tmp_path: Path) -> None:
    root_key, leaf_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    root = certificate("root", root_key, None, root_key, ca=True)
    key = write_private(leaf_key, tmp_path / "key.pem")
    (tmp_path / "root.pem").write_bytes(root.public_bytes(serialization.Encoding.PEM))
    options = [
        "--sign-key", str(key), "--sign-certificate", str(tmp_path / "leaf.pem"),
        "--sign-chain", str(tmp_path / "root.pem"),
    ]  # fmt: skip
    found = []
    for name in ("team", "another team"):
        leaf = certificate(name, leaf_key, root.subject, root_key, ca=False)
        (tmp_path / "leaf.pem").write_bytes(leaf.public_bytes(serialization.Encoding.PEM))
        found.append(line.released(*options))
        assert line.released(*options) == found[-1]
    assert found[0] != found[1]


FILES = (
    "README.md", "bom.json", "junit.xml", "model.sig", "release.json", "release.sig",
    "report.html", "report.md", "rows.json", "statement.json",
)  # fmt: skip


@pytest.fixture(scope="module")
def own_release(
    tmp_path_factory: pytest.TempPathFactory, keys: Path
) -> tuple[FinishedLine, Path, Path]:
    """A line with a release of its own, and a copy of the release for repair."""
    folder = tmp_path_factory.mktemp("own")
    own = write_line(folder / "line")
    release = own.released("--sign-key", str(keys / "own.pem"))
    assert sorted(path.name for path in release.iterdir()) == sorted([*FILES, "manifest.json"])
    return own, release, Path(shutil.copytree(release, folder / "copy"))


def _damaged(text: str) -> str:
    """Return the text with one changed digit, or with a digit of a signature changed."""
    at = text.index('"sig"') + 20 if '"sig"' in text else len(text) // 2
    while not text[at].isdigit():
        at += 1
    return text[:at] + str((int(text[at]) + 1) % 10) + text[at + 1 :]


def _removed(_: str) -> None:
    return None


@pytest.mark.parametrize(
    ("name", "edit"),
    [*((name, _damaged) for name in FILES), ("rows.json", _removed), ("model.sig", _removed)],
)
def test_a_file_of_an_earlier_release_is_compared_before_it_is_returned(
    own_release: tuple[FinishedLine, Path, Path],
    keys: Path,
    name: str,
    edit: Callable[[str], str | None],
) -> None:
    """The manifest fits: only the proofs and the key refute the file."""
    own, release, copy = own_release
    try:
        rewrite(release, name, edit)
        done = own.release("--sign-key", str(keys / "own.pem"))
        assert done.returncode == 3
        assert name in done.stderr
        assert f"rm -r {release}" in done.stderr
    finally:
        shutil.rmtree(release)
        shutil.copytree(copy, release)


def test_a_manifest_that_says_signed_of_an_unsigned_release_is_found(tmp_path: Path) -> None:
    own = write_line(tmp_path)
    release = own.released()
    manifest = release / "manifest.json"
    text = manifest.read_text()
    manifest.write_text(text.replace('"is_signed": false', '"is_signed": true'))
    done = own.release()
    assert done.returncode == 3
    assert "differs from a release of the same proofs (manifest.json)" in done.stderr


@pytest.mark.parametrize("name", [".gitattributes", ".gitignore", ".git/config", ".github/x.yml"])
def test_a_git_file_in_a_model_is_not_signed_over(tmp_path: Path, keys: Path, name: str) -> None:
    """model-signing would leave it out of the signature."""
    model = tmp_path / "model"
    with new_artifact(model, "model", config={}) as draft:
        (draft.dir / name).parent.mkdir(exist_ok=True)
        (draft.dir / name).write_text("text")
    with pytest.raises(ArtifactError, match="a signature leaves out") as caught:
        sign_model(Signer(key=keys / "own.pem"), model, tmp_path / "model.sig")
    assert name.partition("/")[0] in str(caught.value)
    assert not (tmp_path / "model.sig").exists()


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """A job whose platform gives it identity tokens; the result sets the identity."""
    subject = ""

    class Tokens(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            now = int(time.time())
            claims = {
                "iss": "https://token.actions.githubusercontent.com", "aud": "sigstore",
                "sub": subject, "iat": now, "exp": now + 300,
            }  # fmt: skip
            token = jwt.encode(claims, "the client checks no signature of a token", "HS256")
            body = json.dumps({"value": token}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    def works_for(name: str) -> None:
        nonlocal subject
        subject = name

    server = ThreadingHTTPServer(("127.0.0.1", 0), Tokens)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}/token?api=1"
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("ACTIONS_ID_TOKEN_REQUEST_TOKEN", "secret")
    monkeypatch.setenv("ACTIONS_ID_TOKEN_REQUEST_URL", url)
    yield works_for
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_identity_of_a_job_tells_keyless_signers_apart(job: Callable[[str], None]) -> None:
    signer = Signer(keyless=True)
    job("repo:team/tickets:ref:refs/heads/main")
    first = signer.identity()
    assert first == [
        "repo:team/tickets:ref:refs/heads/main", "https://token.actions.githubusercontent.com",
    ]  # fmt: skip
    assert signer.identity() == first
    job("repo:other/tickets:ref:refs/heads/main")
    assert signer.identity() != first


def test_a_job_that_may_not_ask_for_its_identity_is_told_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.delenv("ACTIONS_ID_TOKEN_REQUEST_TOKEN", raising=False)
    with pytest.raises(ServerError, match="the identity of this job is not known") as caught:
        Signer(keyless=True).identity()
    assert caught.value.exit_code == 5
    monkeypatch.delenv("GITHUB_ACTIONS")
    assert Signer(keyless=True).identity() is None

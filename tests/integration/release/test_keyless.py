"""Keyless signatures, verified without a network against a Sigstore of the test."""

import shutil
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.integration.release.keys import write_key
from tests.integration.release.line import verify
from tests.integration.release.sigstore import Sigstore
from tuneline.core.artifact import new_artifact
from tuneline.core.errors import ServerError
from tuneline.release.parties import Signer
from tuneline.release.sign import sign_model

ANA, ISSUER = "ana@example.com", "https://id.example.com"


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, a keyless signature, one by a key, and the keys of two Sigstores."""
    folder = tmp_path_factory.mktemp("keyless")
    with new_artifact(folder / "model", "model", config={}) as draft:
        (draft.dir / "config.json").write_text("{}")
    path = write_key(folder, "own")
    sign_model(Signer(key=path), folder / "model", folder / "by-key.sig")
    shutil.copy(folder / "by-key.sig", folder / "model.sig")
    key = serialization.load_pem_private_key(path.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    own = Sigstore()
    own.vouch(folder / "model.sig", key, ANA, ISSUER)
    own.write_trust_config(folder / "trust.json")
    Sigstore().write_trust_config(folder / "other.json")
    return folder


@pytest.mark.parametrize(
    ("identity", "issuer", "signature", "trust", "words"),
    [
        (ANA, ISSUER, "model.sig", "trust.json", ""),
        ("bob@example.com", ISSUER, "model.sig", "trust.json", "do not match bob@example.com"),
        (ANA, "https://id.example.org", "model.sig", "trust.json", "OIDCIssuer does not match"),
        (ANA, ISSUER, "model.sig", "other.json", "failed to build timestamp certificate chain"),
        (ANA, ISSUER, "by-key.sig", "trust.json", "is not a signature by the identity"),
    ],
)
def test_a_keyless_signature_is_that_of_its_identity(
    signed: Path, identity: str, issuer: str, signature: str, trust: str, words: str
) -> None:
    done = verify(
        signed / "model", "--signature", signed / signature, "--identity", identity,
        "--issuer", issuer, "--trust-config", signed / trust,
    )  # fmt: skip
    assert done.returncode == (3 if words else 0), done.stderr
    assert words in done.stderr
    assert ("ok  signature: signed by the identity ana@example.com" in done.stdout) == (not words)


def test_a_changed_file_under_a_keyless_signature_is_named(signed: Path, tmp_path: Path) -> None:
    with new_artifact(tmp_path / "model", "model", config={}) as draft:
        (draft.dir / "config.json").write_text("{ }")
    done = verify(
        tmp_path / "model", "--signature", signed / "model.sig", "--identity", ANA,
        "--issuer", ISSUER, "--trust-config", signed / "trust.json",
    )  # fmt: skip
    assert done.returncode == 3
    assert "differs from the signed files" in done.stderr
    assert "Hash mismatch for 'config.json'" in done.stderr


@pytest.mark.parametrize("text", [None, "", "{}", '{"mediaType": "other"}'])
def test_a_trust_configuration_that_is_none_is_refused(
    signed: Path, tmp_path: Path, text: str | None
) -> None:
    path = tmp_path / "trust.json"
    if text is not None:
        path.write_text(text)
    done = verify(
        signed / "model", "--signature", signed / "model.sig", "--identity", ANA,
        "--issuer", ISSUER, "--trust-config", path,
    )  # fmt: skip
    assert done.returncode == 2
    assert f"--trust-config {path}: " in done.stderr
    assert "expected a client trust configuration of Sigstore" in done.stderr


def test_without_a_network_the_missing_keys_are_named(
    signed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sigstore.errors import TUFError
    from sigstore.models import ClientTrustConfig

    def unreachable() -> None:
        raise TUFError("Failed to refresh TUF metadata")

    monkeypatch.setattr(ClientTrustConfig, "production", unreachable)
    done = verify(
        signed / "model", "--signature", signed / "model.sig", "--identity", ANA,
        "--issuer", ISSUER,
    )  # fmt: skip
    assert done.returncode == 5
    assert "the keys of Sigstore cannot be fetched: Failed to refresh TUF metadata" in done.stderr
    assert "--trust-config FILE" in done.stderr
    with pytest.raises(ServerError, match="Sigstore did not sign: Failed to refresh"):
        sign_model(Signer(keyless=True), signed / "model", signed / "new.sig")
    assert not (signed / "new.sig").exists()

"""Signatures by OpenSSF model-signing: over the files of the model, and over those of the release.

A signature is a Sigstore bundle: a DSSE envelope with an in-toto statement that lists every file
with its SHA-256. `model_signing verify` and the same project's validation operator read it too.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from tuneline.core.artifact import remove_command
from tuneline.core.documents import parse_json
from tuneline.core.environment import require
from tuneline.core.errors import ArtifactError, ConfigError, ServerError, TamperedError
from tuneline.core.files import MANIFEST, file_sha256
from tuneline.core.release import RELEASE_SIGNATURE

EXTRA = "release"
PASSWORD = "TUNELINE_SIGN_PASSWORD"  # noqa: S105 (the name of the variable)
UNREADABLE = (ValueError, KeyError, TypeError, AttributeError, IndexError, OSError)
"""The errors that model-signing lets through for a file that is not a signature."""
UNSIGNED = (".git", ".gitattributes", ".github", ".gitignore")
"""The names at the top of a folder that model-signing leaves out of every signature."""


@dataclass(frozen=True)
class Signer:
    """Who signs: a key, a key with its certificate, or an identity of Sigstore.

    Attributes:
        key: PEM file with an elliptic-curve private key; its password is in TUNELINE_SIGN_PASSWORD.
        certificate: PEM file with the key's certificate.
        chain: PEM files with the certificates between that one and the root.
        keyless: Whether Sigstore's certificate authority issues a certificate for the identity of
            this job or person. It needs the network.
    """

    key: Path | None = None
    certificate: Path | None = None
    chain: tuple[Path, ...] = ()
    keyless: bool = False

    def identity(self) -> list[str] | None:
        """Return what tells this signer from others: hashes of its public key and certificates.

        Keyless, it is the identity and the issuer of this job; None for a person, whose identity
        is asked in a browser only while the signature is made.

        Raises:
            ConfigError: A file cannot be used.
            ServerError: The issuer of the job's identity does not answer.
        """
        if self.keyless:
            return _ambient_identity()
        public = hashlib.sha256(self.public_pem()).hexdigest()
        given = [path for path in (self.certificate, *self.chain) if path is not None]
        with _key_errors("--sign-certificate", self.certificate or Path()):
            return [public, *(file_sha256(path) for path in given)]

    def public_pem(self) -> bytes:
        """Return the public key that fits the private one, as PEM.

        Raises:
            ConfigError: The key cannot be read.
        """
        assert self.key is not None  # noqa: S101 (`config` has checked it)
        serialization = require("cryptography.hazmat.primitives.serialization", EXTRA)
        password = os.environ.get(PASSWORD)
        with _key_errors("--sign-key", self.key):
            private = serialization.load_pem_private_key(
                self.key.read_bytes(), None if password is None else password.encode()
            )
            encoding, form = serialization.Encoding.PEM, serialization.PublicFormat
            pem: bytes = private.public_key().public_bytes(encoding, form.SubjectPublicKeyInfo)
        return pem

    def config(self) -> Any:
        """Return the configuration of model-signing.

        Raises:
            ConfigError: The options exclude one another, or a file cannot be used.
        """
        signing = require("model_signing.signing", EXTRA)
        if self.keyless:
            if self.key is not None or self.certificate is not None:
                raise ConfigError("--keyless: has no meaning with --sign-key or --sign-certificate")
            return signing.Config().use_sigstore_signer(use_ambient_credentials=True)
        if self.key is None:
            raise ConfigError("--sign-certificate: needs the key of the certificate: --sign-key")
        password = os.environ.get(PASSWORD)
        if self.certificate is not None:
            _require_valid_today("--sign-certificate", self.certificate)
            for path in self.chain:
                _require_valid_today("--sign-chain", path)
        with _key_errors("--sign-key", self.key):
            if self.certificate is not None:
                return signing.Config().use_certificate_signer(
                    private_key=self.key,
                    signing_certificate=self.certificate,
                    certificate_chain=self.chain,
                )
            # model-signing passes the password on to a function that takes bytes.
            return signing.Config().use_elliptic_key_signer(
                private_key=self.key, password=None if password is None else password.encode()
            )


@dataclass(frozen=True)
class Trust:
    """Whose signature is accepted: a public key, a root certificate, or an identity of Sigstore."""

    key: Path | None = None
    certificates: tuple[Path, ...] = ()
    identity: str | None = None
    issuer: str | None = None

    def __bool__(self) -> bool:
        return self.key is not None or bool(self.certificates) or self.identity is not None

    @property
    def said(self) -> str:
        """Return the trusted party, for messages."""
        if self.key is not None:
            return f"the key {self.key}"
        if self.certificates:
            return f"the certificate {', '.join(map(str, self.certificates))}"
        return f"the identity {self.identity}"

    def config(self) -> Any:
        """Return the configuration of model-signing.

        Raises:
            ConfigError: The options exclude one another, or a file cannot be used.
        """
        verifying = require("model_signing.verifying", EXTRA)
        given = [self.key is not None, bool(self.certificates), self.identity is not None]
        if sum(given) != 1:
            raise ConfigError("expected one of --key, --certificate and --identity")
        if self.key is not None:
            with _key_errors("--key", self.key):
                return verifying.Config().use_elliptic_key_verifier(public_key=self.key)
        if self.certificates:
            with _key_errors("--certificate", self.certificates[0]):
                return verifying.Config().use_certificate_verifier(
                    certificate_chain=self.certificates
                )
        if self.issuer is None:
            raise ConfigError("--identity: needs the issuer of the identity: --issuer URL")
        return verifying.Config().use_sigstore_verifier(
            identity=self.identity, oidc_issuer=self.issuer
        )


def sign_model(signer: Signer, model: Path, signature: Path) -> None:
    """Sign every file of a model's directory.

    Raises:
        ArtifactError: A file cannot be signed.
        ConfigError: The key or the certificate cannot be used.
        ServerError: Sigstore does not answer.
    """
    _sign(signer, model, signature, ignored=())


def sign_release(signer: Signer, folder: Path) -> None:
    """Sign every file of a release folder; the signature is the one file that comes after it.

    Raises:
        ArtifactError: A file cannot be signed.
        ConfigError: The key or the certificate cannot be used.
        ServerError: Sigstore does not answer.
    """
    _sign(signer, folder, folder / RELEASE_SIGNATURE, ignored=(RELEASE_SIGNATURE, MANIFEST))


def check_own_signature(signer: Signer, folder: Path, signature: Path, scratch: Path) -> None:
    """Check that a signer's private key signed a folder as it is now.

    The signature's certificate is not asked: its chain may end before a root.

    Args:
        signer: A signer with a key.
        folder: The signed folder.
        signature: The signature.
        scratch: An empty directory for the public key.

    Raises:
        ArtifactError: There is no signature, another key made it, or it cannot be read.
        TamperedError: The signature is right, and files differ from the signed ones.
    """
    pem = signer.public_pem()
    public, copy = scratch / "public.pem", scratch / "copy.sig"
    public.write_bytes(pem)
    try:
        bundle = json.loads(signature.read_text(encoding="utf-8"))
        hint = {"hint": hashlib.sha256(pem).hexdigest()}
        bundle["verificationMaterial"] = {"publicKey": hint, "tlogEntries": []}
    except (*UNREADABLE, RecursionError):
        raise ArtifactError(f"{signature}: is not a signature by {signer.key}") from None
    copy.write_text(json.dumps(bundle), encoding="utf-8")
    check_signature(Trust(key=public), folder, copy)


def check_signature(
    trust: Trust, folder: Path, signature: Path, *, ignore: Sequence[str] = ()
) -> None:
    """Check that a folder is signed by a trusted party, and that its files are the signed ones.

    Args:
        trust: The trusted party.
        folder: The signed folder.
        signature: The signature.
        ignore: Patterns of unsigned files that the folder may hold. The caller finds any other.

    Raises:
        ArtifactError: There is no signature, another key made it, or it cannot be read.
        TamperedError: The signature is right, and files differ from the signed ones.
        ConfigError: The key or certificate cannot be used.
    """
    if not signature.is_file():
        raise ArtifactError(
            f"{signature}: no such file: the release is not signed; expected a signature by "
            f"{trust.said}",
            hint="Try: tuneline release RUN.yaml --sign-key KEY.pem",
        )
    if unsigned := _unsigned(folder, ignore):
        raise TamperedError(
            f"{folder}: holds {', '.join(unsigned)}, which no signature covers",
            hint=f"Try: {remove_command(folder / unsigned[0])}",
        )
    folder = folder.resolve()  # the files behind a link to the folder are compared
    config = trust.config()
    if ignore:
        config = config.set_ignore_unsigned_files(True)
    refused = (
        require("cryptography.exceptions", EXTRA).InvalidSignature,
        require("OpenSSL.crypto", EXTRA).X509StoreContextError,
        *UNREADABLE,
    )
    try:
        parse_json(signature.read_text(encoding="utf-8"))
        config.verify(folder, signature)
    except (*refused, RecursionError) as error:
        said = str(error).strip()
        if said.startswith("Signature mismatch"):
            raise TamperedError(
                f"{folder}: differs from the signed files: {_plain(said)}"
            ) from None
        if "is a symlink" in said:
            raise TamperedError(
                f"{folder}: holds a symbolic link, which no signature covers; expected files",
                hint=f"Verify a copy: cp -rL {shlex.quote(str(folder))} COPY",
            ) from None
        reason = said or "the signature does not fit its content"
        raise ArtifactError(
            f"{signature}: is not a signature by {trust.said}: {reason}",
            hint="Check that it is the key of the team that released, and fetch the release again.",
        ) from None


def check_certificate_date(signature: Path, made_at: str) -> None:
    """Check that the certificate of a signature was valid when a release was made.

    model-signing takes a certificate as valid on the day of its issue, whatever the day of the
    signature is. The time of a release is a part of what is signed.

    Args:
        signature: A signature by a certificate, which is right.
        made_at: The time of the release, ISO 8601.

    Raises:
        ArtifactError: The certificate had expired, or was not valid yet.
    """
    x509 = require("cryptography.x509", EXTRA)
    bundle = json.loads(signature.read_text(encoding="utf-8"))
    first = bundle["verificationMaterial"]["x509CertificateChain"]["certificates"][0]
    found = x509.load_der_x509_certificate(base64.b64decode(first["rawBytes"]))
    start, end = found.not_valid_before_utc, found.not_valid_after_utc
    if not start <= datetime.fromisoformat(made_at) <= end:
        raise ArtifactError(
            f"{signature}: its certificate is valid from {start:%Y-%m-%d %H:%M} to "
            f"{end:%Y-%m-%d %H:%M} UTC; expected one that was valid at {made_at}, when the release "
            "was made",
            hint="Release again with a certificate that is valid.",
        )


def _require_valid_today(option: str, path: Path) -> None:
    """Raise ConfigError if a certificate has expired, or is not valid yet."""
    x509 = require("cryptography.x509", EXTRA)
    with _key_errors(option, path):
        for one in x509.load_pem_x509_certificates(path.read_bytes()):
            start, end = one.not_valid_before_utc, one.not_valid_after_utc
            if not start <= datetime.now(UTC) <= end:
                raise ConfigError(
                    f"{option} {path}: is valid from {start:%Y-%m-%d %H:%M} to "
                    f"{end:%Y-%m-%d %H:%M} UTC; expected a certificate that is valid today"
                )


def _sign(signer: Signer, folder: Path, signature: Path, *, ignored: tuple[str, ...]) -> None:
    hashing = require("model_signing.hashing", EXTRA)
    if unsigned := _unsigned(folder):
        raise ArtifactError(
            f"{folder}: holds {', '.join(unsigned)}, which a signature leaves out; expected no "
            "git file in an artifact",
            hint="Remove it, and make what depends on it again: "
            f"{remove_command(folder / unsigned[0])}",
        )
    config = signer.config().set_hashing_config(
        hashing.Config().set_ignored_paths(paths=[Path(name) for name in ignored])
    )
    if not signer.keyless:
        try:
            config.sign(folder, signature)
        except ValueError as error:  # a symbolic link
            raise ArtifactError(f"{folder}: cannot be signed: {error}") from None
        return
    sigstore = require("sigstore.errors", EXTRA)
    try:
        config.sign(folder, signature)
    except (sigstore.Error, OSError, ValueError) as error:
        raise ServerError(
            f"--keyless: Sigstore did not sign: {error}",
            hint="Check the network and the identity of this job, or sign with --sign-key.",
        ) from None


def _unsigned(folder: Path, ignore: Sequence[str] = ()) -> list[str]:
    """Return the names in a folder that model-signing would leave out of its signature."""
    return [
        name
        for name in UNSIGNED
        if os.path.lexists(folder / name)
        and not any(fnmatchcase(name, pattern) for pattern in ignore)
    ]


def _ambient_identity() -> list[str] | None:
    """Return identity and issuer of this job; None if no job has one."""
    oidc = require("sigstore.oidc", EXTRA)
    try:
        token = oidc.detect_credential()
        if token is None:
            return None
        found = oidc.IdentityToken(token)
    except (oidc.IdentityError, OSError) as error:
        raise ServerError(
            f"--keyless: the identity of this job is not known: {error}",
            hint="Check that the job may ask for an identity token, or sign with --sign-key.",
        ) from None
    return [found.identity, found.federated_issuer]


@contextmanager
def _key_errors(option: str, path: Path) -> Iterator[None]:
    """Name a key file that cannot be used."""
    try:
        yield
    except OSError as error:
        raise ConfigError(f"{option} {path}: cannot be read: {error.strerror}") from None
    except TypeError as error:  # a password is missing, or one too many is given
        raise ConfigError(
            f"{option} {path}: {error}",
            hint=f"Put the key's password into the environment variable {PASSWORD}.",
        ) from None
    except (ValueError, AttributeError) as error:
        raise ConfigError(
            f"{option} {path}: {error}; expected a PEM file with an elliptic-curve key",
            hint="Try: openssl ecparam -genkey -name prime256v1 -noout -out KEY.pem && "
            "openssl ec -in KEY.pem -pubout -out PUB.pem",
        ) from None


def _plain(said: str) -> str:
    """Return the difference that model-signing names, without Python's form of a digest."""
    return said.removeprefix("Signature mismatch: ").replace("Digest(algorithm=", "(")

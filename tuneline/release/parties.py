"""Who signs a release, and whose signature is accepted: a key, a certificate, or an identity."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tuneline.core.environment import require
from tuneline.core.errors import ConfigError, ServerError
from tuneline.core.files import file_sha256

EXTRA = "release"
"""The extra of the package with the libraries for signatures."""
PASSWORD = "TUNELINE_SIGN_PASSWORD"  # noqa: S105 (the name of the variable)


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
    """Whose signature is accepted: a public key, a root certificate, or an identity of Sigstore.

    Attributes:
        key: The PEM file of a public key.
        certificates: PEM files of root certificates.
        identity: The name that Sigstore's certificate must have.
        issuer: The OpenID issuer that vouches for the identity.
        trust_config: A client trust configuration of Sigstore, with the keys of its certificate
            authority and logs. Without it, those of the public Sigstore are fetched.
    """

    key: Path | None = None
    certificates: tuple[Path, ...] = ()
    identity: str | None = None
    issuer: str | None = None
    trust_config: Path | None = None

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
            ServerError: Sigstore's keys cannot be fetched.
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
        sigstore = require("sigstore.errors", EXTRA)
        try:
            return verifying.Config().use_sigstore_verifier(
                identity=self.identity, oidc_issuer=self.issuer, trust_config=self.trust_config
            )
        except (sigstore.Error, OSError, ValueError) as error:
            if self.trust_config is not None:
                raise ConfigError(
                    f"--trust-config {self.trust_config}: {error}; expected a client trust "
                    "configuration of Sigstore"
                ) from None
            raise ServerError(
                f"--identity: the keys of Sigstore cannot be fetched: {error}",
                hint="Check the network, or bring them along: --trust-config FILE "
                "(docs/release.md#signing)",
            ) from None


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

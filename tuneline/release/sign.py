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
from collections.abc import Sequence
from datetime import datetime
from fnmatch import fnmatchcase
from pathlib import Path

from tuneline.core.artifact import remove_command
from tuneline.core.documents import parse_json
from tuneline.core.environment import require
from tuneline.core.errors import ArtifactError, ServerError, TamperedError
from tuneline.core.files import MANIFEST
from tuneline.core.release import RELEASE_SIGNATURE
from tuneline.release.parties import EXTRA, Signer, Trust

UNREADABLE = (ValueError, KeyError, TypeError, AttributeError, IndexError, OSError)
"""The errors that model-signing lets through for a file that is not a signature."""
UNSIGNED = (".git", ".gitattributes", ".github", ".gitignore")
"""The names at the top of a folder that model-signing leaves out of every signature."""


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
        ServerError: Sigstore's keys cannot be fetched.
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
        require("sigstore.errors", EXTRA).Error,
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


def _sign(signer: Signer, folder: Path, signature: Path, *, ignored: tuple[str, ...]) -> None:
    hashing = require("model_signing.hashing", EXTRA)
    if unsigned := _unsigned(folder):
        raise ArtifactError(
            f"{folder}: holds {', '.join(unsigned)}, which a signature leaves out; expected no "
            "git file in an artifact",
            hint="Remove it, and make what depends on it again: "
            f"{remove_command(folder / unsigned[0])}",
        )
    files = hashing.Config().set_ignored_paths(paths=[Path(name) for name in ignored])
    if not signer.keyless:
        config = signer.config().set_hashing_config(files)
        try:
            config.sign(folder, signature)
        except ValueError as error:  # a symbolic link
            raise ArtifactError(f"{folder}: cannot be signed: {error}") from None
        return
    sigstore = require("sigstore.errors", EXTRA)
    try:
        signer.config().set_hashing_config(files).sign(folder, signature)
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


def _plain(said: str) -> str:
    """Return the difference that model-signing names, without Python's form of a digest."""
    return said.removeprefix("Signature mismatch: ").replace("Digest(algorithm=", "(")

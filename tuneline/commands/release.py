"""The command that releases a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tuneline.commands.option_values import open_run
from tuneline.commands.options import AsJson, Overrides, RunFile, RunsDir
from tuneline.commands.printing import emit
from tuneline.core.errors import ConfigError
from tuneline.pipeline import DEFAULT_RUNS

if TYPE_CHECKING:
    from tuneline.core.artifact import Artifact
    from tuneline.core.release import Release

WIDTH = 18


def release(
    run_file: RunFile,
    waive: Annotated[
        list[str] | None,
        typer.Option(
            metavar="GATE:REASON", help="A reason of a failing gate that does not stop the release."
        ),
    ] = None,
    why: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="The reason, one per --waive; the release records it."),
    ] = None,
    sign_key: Annotated[
        Path | None,
        typer.Option(metavar="KEY.pem", help="Sign with this elliptic-curve private key."),
    ] = None,
    sign_certificate: Annotated[
        Path | None, typer.Option(metavar="CERT.pem", help="The certificate of --sign-key.")
    ] = None,
    sign_chain: Annotated[
        list[Path] | None,
        typer.Option(metavar="CERT.pem", help="A certificate between that one and the root."),
    ] = None,
    keyless: Annotated[
        bool, typer.Option("--keyless", help="Sign by Sigstore with the identity of this job.")
    ] = False,
    overrides: Overrides = None,
    runs_dir: RunsDir = DEFAULT_RUNS,
    as_json: AsJson = False,
) -> None:
    """Judge a finished run by its gates, and write its release.

    A release holds every figure with its source, a bill of materials, a model card, and signatures.
    Exits with 6 if a gate fails; the release that says so is written all the same.
    """
    from tuneline.core.release import Waiver, read_release
    from tuneline.release import Signer, make_release, require_released

    gates, reasons = waive or [], why or []
    if len(gates) != len(reasons):
        raise ConfigError(
            f"{len(gates)} --waive and {len(reasons)} --why: expected one --why for each --waive",
            hint='Try: --waive GATE --why "the reason"',
        )
    named = (one.partition(":") for one in gates)
    waivers = [
        Waiver(gate=gate, reason=reason, why=text)
        for (gate, _, reason), text in zip(named, reasons, strict=True)
    ]
    given = keyless or sign_certificate is not None or sign_key is not None
    signer = Signer(sign_key, sign_certificate, tuple(sign_chain or ()), keyless)
    if sign_chain and sign_certificate is None:
        raise ConfigError("--sign-chain: needs --sign-certificate")
    artifact = make_release(
        open_run(run_file, overrides, runs_dir),
        waivers=waivers,
        signer=signer if given else None,
    )
    document = read_release(artifact.path)
    emit(_document(artifact, document), _lines(artifact, document), as_json)
    require_released(artifact)


def _document(artifact: Artifact, document: Release) -> dict[str, object]:
    return {
        "path": str(artifact.path),
        "digest": artifact.digest,
        "is_signed": artifact.manifest.metrics["is_signed"],
        "release": document.model_dump(mode="json"),
    }


def _lines(artifact: Artifact, document: Release) -> list[str]:
    lines = [
        f"{gate.outcome:10} {gate.name:{WIDTH}} {gate.words}"
        + (f" Waived: {gate.why}" if gate.why else "")
        for gate in document.gates
    ]
    signed = "signed" if artifact.manifest.metrics["is_signed"] else "not signed"
    return [*lines, "", f"{document.said_verdict}, {signed}: {artifact.path}", artifact.digest]

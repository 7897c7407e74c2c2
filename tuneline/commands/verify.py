"""The command that verifies an artifact, a run, a release or a signed model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tuneline.commands.option_values import open_run, refuse
from tuneline.commands.options import AsJson, Overrides, RunOrDir, RunsDir
from tuneline.commands.printing import emit
from tuneline.core.artifact import Artifact, open_artifact, verify_artifact
from tuneline.core.errors import ConfigError, NotAnArtifactError, TamperedError, VerdictError
from tuneline.core.files import MANIFEST
from tuneline.core.release import RELEASE_FILE, RELEASE_KIND
from tuneline.core.verdict import Verdict
from tuneline.pipeline import DEFAULT_RUNS
from tuneline.release import Trust

if TYPE_CHECKING:
    from tuneline.pipeline.run_config import Run


def verify(
    target: RunOrDir,
    digest: Annotated[
        str | None,
        typer.Option(metavar="SHA256", help="Of a directory: the digest that it must have."),
    ] = None,
    ignore: Annotated[
        list[str] | None,
        typer.Option(metavar="GLOB", help="Of a directory: files that it may hold unlisted."),
    ] = None,
    key: Annotated[
        Path | None,
        typer.Option(metavar="PUB.pem", help="The public key that must have signed it."),
    ] = None,
    certificate: Annotated[
        list[Path] | None,
        typer.Option(metavar="CERT.pem", help="The root certificate of the signer."),
    ] = None,
    identity: Annotated[
        str | None, typer.Option(help="Who must have signed it by Sigstore (with --issuer).")
    ] = None,
    issuer: Annotated[
        str | None, typer.Option(metavar="URL", help="The OpenID issuer of --identity.")
    ] = None,
    trust_config: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Sigstore's keys, for --identity without the network."),
    ] = None,
    signature: Annotated[
        Path | None,
        typer.Option(metavar="model.sig", help="Of a model: its signature, from its release."),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Of a release: a copy of its model, file by file."),
    ] = None,
    base: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Of a release of an adapter: its base model."),
    ] = None,
    overrides: Overrides = None,
    runs_dir: RunsDir = DEFAULT_RUNS,
    as_json: AsJson = False,
) -> None:
    """Compare every byte with the manifests, and a release with its signature.

    Of a release it also checks that the chain of digests closes, that the files say the same, that
    a model is the released one, and with --key whose signature it has. Of a single model, --key
    goes with --signature. The last line names what nobody looked at.
    """
    # Over 60 lines: half of them are the options of the command line.
    of_directories = {"--digest": digest, "--ignore": ignore or None}
    of_releases = {"--model": model, "--base": base}
    of_trust = {
        "--key": key, "--certificate": certificate or None, "--identity": identity,
        "--issuer": issuer, "--trust-config": trust_config,
    }  # fmt: skip
    if issuer is not None and identity is None:
        raise ConfigError("--issuer: goes with the identity that it vouches for: --identity NAME")
    if trust_config is not None and identity is None:
        raise ConfigError("--trust-config: goes with an identity of Sigstore: --identity NAME")
    trust = Trust(key, tuple(certificate or ()), identity, issuer, trust_config)
    if target.name == RELEASE_FILE and target.is_file():
        target = _whole_folder(target)
    if not target.is_dir():
        given = {**of_directories, "--signature": signature, **of_trust, **of_releases}
        refuse("with a run.yaml", given)
        _verify_run(open_run(target, overrides, runs_dir), as_json)
        return
    refuse("of a directory", {"--set": overrides})
    artifact = open_artifact(target, check_sizes=False)
    if artifact.kind == RELEASE_KIND:
        refuse("of a release", {**of_directories, "--signature": signature})
        _verify_release(target, model, base, trust, as_json)
        return
    refuse("without a release", of_releases)
    if signature is None:
        refuse("without a release or --signature", of_trust)
        _verify_artifact(artifact, digest, ignore or ())
        emit({artifact.path.name: artifact.digest}, [_ok(artifact)], as_json)
        return
    _verify_signed(artifact, digest, ignore or (), trust, signature, as_json)


def _verify_run(run: Run, as_json: bool) -> None:
    """Compare every artifact of a run with its manifest."""
    from tuneline.pipeline.plan import all_current

    artifacts = all_current(run)
    for artifact in artifacts.values():
        _verify_artifact(artifact, None, ())
    document = {name: artifact.digest for name, artifact in artifacts.items()}
    emit(document, [_ok(artifact, name) for name, artifact in artifacts.items()], as_json)


def _mark(is_done: bool) -> str:
    return "ok" if is_done else "--"


def _ok(artifact: Artifact, name: str = "") -> str:
    return (
        f"ok  {name or artifact.path.name}: {len(artifact.manifest.files)} files, {artifact.digest}"
    )


def _whole_folder(path: Path) -> Path:
    """Return the folder of a `release.json`.

    Raises:
        NotAnArtifactError: The rest of the release is missing. A signature covers the whole folder.
    """
    if not (path.parent / MANIFEST).is_file():
        raise NotAnArtifactError(
            f"{path}: is one file of a release, and nothing in it was checked; expected the whole "
            "folder, which its digest and its signature cover",
            hint=f"Fetch the folder of the release. Then: tuneline verify {path.parent}",
        )
    return path.parent


def _verify_signed(
    artifact: Artifact,
    digest: str | None,
    ignore: Sequence[str],
    trust: Trust,
    signature: Path,
    as_json: bool,
) -> None:
    """Compare a model with its manifest, and manifest and files with the signature of a release."""
    from tuneline.release import check_signature

    if not trust:
        raise ConfigError(
            "--signature: says nothing without the key that you trust; expected --key, "
            "--certificate or --identity",
            hint=f"Try: tuneline verify {artifact.path} --signature {signature} --key PUB.pem",
        )
    _verify_artifact(artifact, digest, ignore)
    # The manifest is signed too, so files that it does not list are found by now.
    check_signature(trust, artifact.path, signature, ignore=ignore)
    lines = [_ok(artifact), f"ok  signature: signed by {trust.said}"]
    unchecked = ["release"]
    if digest is None:
        unchecked.append("digest")
        lines.append("--  digest: not compared; give the one that you expect with --digest SHA256")
    lines.append("--  release: not here; only a release that passes is signed")
    document = {artifact.path.name: artifact.digest, "signed_by": trust.said}
    emit({**document, "not_checked": unchecked}, lines, as_json)


def _verify_artifact(artifact: Artifact, digest: str | None, ignore: Sequence[str]) -> None:
    verify_artifact(artifact, ignore)
    if digest is not None and artifact.digest != digest:
        raise TamperedError(
            f"{artifact.path}: has digest {artifact.digest}; expected {digest}",
            hint="Another artifact is in its place. Copy the right one there.",
        )


def _verify_release(
    path: Path, model: Path | None, base: Path | None, trust: Trust, as_json: bool
) -> None:
    from tuneline.release import verify_release

    found = verify_release(path, model=model, base=base, trust=trust)
    release, artifact = found.release, found.artifact
    document = {
        artifact.path.name: artifact.digest,
        "verdict": release.verdict,
        "model": release.model.digest,
        "model_dir": None if found.model is None else str(found.model),
        "num_artifacts_compared": found.num_links,
        "signed_by": trust.said if found.is_trusted else None,
        "waivers": [waiver.model_dump() for waiver in release.waivers],
        "checked": [check.name for check in found.checks if check.is_done],
        "not_checked": found.unchecked,
    }
    lines = [
        *(
            f"{'ok' if check.is_done else '--'}  {check.name}: {check.words}"
            for check in found.checks
        ),
        *(f"waived {waiver.said}: {waiver.why}" for waiver in release.waivers),
        f"release.json says {release.said_verdict}; not checked: {', '.join(found.unchecked)}"
        if found.unchecked
        else f"verdict {release.said_verdict}",
    ]
    emit(document, lines, as_json)
    if release.verdict is not Verdict.PASS:
        failed = ", ".join(gate.name for gate in release.failed())
        raise VerdictError(
            f"{path}: {release.verdict}: {failed or 'no gate failed'}; expected a release that "
            "passes",
            hint="Its files are whole. Read why in report.md, and release again.",
        )

"""`tuneline verify RELEASE_DIR`: content, chain and signature of a release, anywhere."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tuneline.core.artifact import Artifact, open_artifact, verify_artifact
from tuneline.core.digests import short_digest
from tuneline.core.documents import parse_json
from tuneline.core.errors import ConfigError, TamperedError
from tuneline.core.files import MANIFEST, FileEntry, difference_lines, file_sha256
from tuneline.core.release import (
    BOM_FILE,
    MODEL_SIGNATURE,
    RELEASE_KIND,
    RELEASE_SIGNATURE,
    STATEMENT_FILE,
    Release,
    read_release,
)
from tuneline.models.source import read_digest, resolve_model
from tuneline.pipeline.stage import SERVED_STAGES
from tuneline.release.parties import Trust
from tuneline.release.sign import check_certificate_date, check_signature
from tuneline.release.statement import statement_of

NOT_ARTIFACTS = ("file", "files", "value", "forgetting-suite", "peft-adapter")
"""Kinds of inputs that no stage makes, besides the base model."""


@dataclass(frozen=True)
class Check:
    """One part of a verification.

    Attributes:
        name: A short name.
        is_done: Whether the part was looked at; a part that differs is an error.
        words: The finding, or the missing part and the option to type.
    """

    name: str
    is_done: bool
    words: str


@dataclass(frozen=True)
class Verified:
    """The result of a verification.

    Attributes:
        artifact: The release.
        release: Its document.
        model: The model whose files were compared; None if none was given or found.
        num_links: Artifacts of the chain that are next to the release and were compared.
        is_trusted: Whether a signature was checked.
        checks: Every part, looked at or not.
    """

    artifact: Artifact
    release: Release
    model: Path | None
    num_links: int
    is_trusted: bool
    checks: list[Check]

    @property
    def unchecked(self) -> list[str]:
        """Return the names of the parts that nobody looked at."""
        return [check.name for check in self.checks if not check.is_done]


def verify_release(
    path: Path, *, model: Path | None = None, base: Path | None = None, trust: Trust | None = None
) -> Verified:
    """Check that a release is what its makers wrote, and that a model is the released one.

    Args:
        path: The directory of the release.
        model: A copy of the model; the one next to the release if not given.
        base: The folder of the base model that the released adapter is served with.
        trust: Whose signature is required; without it, signatures are not read.

    Raises:
        TamperedError: A file was changed, added, removed or renamed, the chain does not close, or
            the files contradict one another; the message names each.
        ArtifactError: It is not a release, is not signed, or is signed by another key.
        ConfigError: A base model is given for a release whose model has none.
    """
    artifact = open_artifact(path, kind=RELEASE_KIND, check_sizes=False)
    verify_artifact(artifact)
    release = read_release(path)
    if base is not None and release.model.form != "adapter":
        raise ConfigError("--base: has no meaning for a merged model, which has the base in it")
    check_agreement(artifact, release)
    num_links = _check_links(path.absolute().parent, release)
    copy = model or _neighbour(path, release)
    if copy is not None:
        _check_model(copy, release)
    if base is not None:
        _check_base(base, release)
    if trust:
        check_signature(trust, path, path / RELEASE_SIGNATURE)
        if trust.certificates:
            check_certificate_date(path / RELEASE_SIGNATURE, release.created_at)
        if copy is not None:
            check_signature(trust, copy, path / MODEL_SIGNATURE)
    checks = [
        *_file_checks(artifact, release, num_links),
        *_model_checks(release, copy, base),
        *_signature_checks(trust, copy),
    ]
    return Verified(artifact, release, copy, num_links, bool(trust), checks)


def _file_checks(artifact: Artifact, release: Release, num_links: int) -> list[Check]:
    total = len(release.chain)
    here = f"{num_links} of {total}" if num_links else f"none of {total}"
    return [
        Check("files", True, f"{len(artifact.manifest.files)} files, {artifact.digest}"),
        Check("chain", True, f"the digests of {total} artifacts connect"),
        Check("artifacts", True, f"{total} of {total} are here and are the released ones")
        if num_links == total
        else Check("artifacts", False, f"{here} is here" if num_links < 2 else f"{here} are here"),
    ]


def _model_checks(release: Release, copy: Path | None, base: Path | None) -> list[Check]:
    found = release.model
    checks = [
        Check("model", True, f"{len(found.files)} files of {copy}, {found.digest}")
        if copy is not None
        else Check("model", False, "not here; give a copy of it with --model DIR")
    ]
    if found.form == "adapter":
        checks.append(
            Check("base model", True, f"{base}, {release.base.digest}")
            if base is not None
            else Check("base model", False, "not here; give its folder with --base DIR")
        )
    return checks


def _signature_checks(trust: Trust | None, copy: Path | None) -> list[Check]:
    if not trust:
        words = "give the key that you trust with --key PUB.pem"
        return [Check("signature", False, words)]
    return [
        Check("signature", True, f"the release is signed by {trust.said}"),
        Check("signature of the model", True, f"signed by {trust.said}")
        if copy is not None
        else Check("signature of the model", False, "the model is not here"),
    ]


def check_agreement(artifact: Artifact, release: Release) -> None:
    """Check that the files of a release say the same, and that the chain closes."""
    problems = []
    statement = _read_json(artifact.path / STATEMENT_FILE)
    if not _is_about(statement, release):
        problems.append(f"{STATEMENT_FILE}: is about another release than release.json")
    bom = _read_json(artifact.path / BOM_FILE)
    try:
        named = {entry["content"] for entry in bom["metadata"]["component"]["hashes"]}
    except (KeyError, TypeError):
        named = set()
    if named != {release.model.digest.removeprefix("sha256:")}:
        problems.append(f"{BOM_FILE}: is about another model than release.json")
    recorded = [(entry.role, entry.digest) for entry in artifact.manifest.inputs]
    if recorded != [(link.stage, link.digest) for link in release.chain]:
        problems.append(f"{MANIFEST}: names other inputs than the chain of release.json")
    problems += _open_ends(release)
    _raise(artifact.path, problems)


def _is_about(statement: Any, release: Release) -> bool:
    """Return whether a statement is that of a release; an earlier Tuneline wrote fewer keys."""
    expected = statement_of(release)
    try:
        predicate = Release.model_validate(statement["predicate"])
    except (KeyError, TypeError, ValidationError):
        return False
    frame = {"predicate": None}
    return predicate == release and statement | frame == expected | frame


def _read_json(path: Path) -> Any:
    """Return the JSON value of a release's file.

    Raises:
        TamperedError: There is no such file, or it is not JSON with each key once.
    """
    try:
        return parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise TamperedError(
            f"{path}: cannot be read: {error}; expected a file of a release",
            hint="Fetch the release again, or release again: tuneline release RUN.yaml",
        ) from None


def _open_ends(release: Release) -> list[str]:
    """Return the inputs of the chain that no earlier artifact, file or base model has."""
    known = {release.base.digest}
    if release.teacher is not None:
        known.add(release.teacher.digest)
    problems = []
    for link in release.chain:
        problems += [
            f"chain: {link.stage} was made from {entry.role} {short_digest(entry.digest)}, which "
            "is not in the chain"
            for entry in link.inputs
            if entry.digest not in known and entry.kind not in NOT_ARTIFACTS
        ]
        known.add(link.digest)
    if release.model.digest not in known:
        problems.append(f"chain: lacks the released model {short_digest(release.model.digest)}")
    problems += _of_another_base(release)
    problems += [
        f"gate {gate.name}: its source {short_digest(source.digest)} is not in the chain"
        for gate in release.gates
        for source in gate.sources
        if source.digest not in known
    ]
    return problems


def _of_another_base(release: Release) -> list[str]:
    """Return the measurements of a served adapter that do not name the base of the release."""
    if release.model.form != "adapter":
        return []
    served = {release.model.digest, release.base.digest}
    return [
        f"chain: {link.stage} was not measured on the released adapter and its base model"
        for link in release.chain
        if link.stage in SERVED_STAGES and not served <= {entry.digest for entry in link.inputs}
    ]


def _check_links(directory: Path, release: Release) -> int:
    """Compare the artifacts of the chain that are next to the release; return how many are."""
    found, problems = 0, []
    for link in release.chain:
        path = directory / link.directory
        if not path.is_dir():
            continue
        found += 1
        artifact = open_artifact(path, kind=link.kind, check_sizes=False)
        verify_artifact(artifact)
        if artifact.digest != link.digest:
            problems.append(
                f"{link.directory}: digest {short_digest(artifact.digest)}, expected "
                f"{short_digest(link.digest)}"
            )
        elif file_sha256(path / MANIFEST) != link.manifest_sha256:
            problems.append(f"{link.directory}/{MANIFEST}: was changed after the release")
    _raise(directory, problems)
    return found


def _neighbour(path: Path, release: Release) -> Path | None:
    folder = path.absolute().parent / release.model.directory
    return folder if folder.is_dir() else None


def _check_model(copy: Path, release: Release) -> None:
    """Compare every file of a copy of the model with the release, which needs no manifest."""
    if not copy.is_dir():
        raise TamperedError(f"{copy}: no such directory; expected the released model")
    expected: list[FileEntry] = release.model.files
    problems = difference_lines(copy, expected)
    _raise(copy, problems, f"is not the released model {short_digest(release.model.digest)}")


def _check_base(folder: Path, release: Release) -> None:
    """Read the base model, and compare its digest with the one that everything was measured on."""
    found = read_digest(resolve_model(str(folder), download=False))
    if found != release.base.digest:
        raise TamperedError(
            f"{folder}: is not the base model of the release: digest {short_digest(found)}, "
            f"expected {short_digest(release.base.digest)}",
            hint=f"Fetch {release.base.id} again, at the revision that run.yaml names.",
        )


def _raise(path: Path, problems: list[str], what: str = "differs from the release") -> None:
    if problems:
        lines = "\n".join(f"  {problem}" for problem in problems)
        raise TamperedError(
            f"{path}: {what}:\n{lines}",
            hint="Fetch the release and the model again, or release again: "
            "tuneline release RUN.yaml",
        )

"""The files of a release: written for a new release, and compared with those of an earlier one."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tuneline.core.artifact import Artifact, Input, remove_command
from tuneline.core.documents import write_document
from tuneline.core.errors import ArtifactError, TamperedError
from tuneline.core.files import file_sha256, payload_files, relative_name
from tuneline.core.release import (
    BOM_FILE,
    CARD_FILE,
    MODEL_SIGNATURE,
    RELEASE_FILE,
    RELEASE_SIGNATURE,
    ROWS_FILE,
    STATEMENT_FILE,
    Release,
    read_release,
)
from tuneline.pipeline.stage import EVALUATION_SERVED
from tuneline.release.bom import bom_text
from tuneline.release.card import card_text
from tuneline.release.parties import Signer
from tuneline.release.proofs import Proofs
from tuneline.release.rows import read_rows
from tuneline.release.sign import check_own_signature
from tuneline.release.statement import statement_text
from tuneline.report import write_report

SIGNATURES = (MODEL_SIGNATURE, RELEASE_SIGNATURE)


def write_files(proofs: Proofs, release: Release, folder: Path) -> None:
    """Write the files of a release, except for signatures; equal releases have equal files."""
    write_document(release, folder / RELEASE_FILE)
    texts = {
        BOM_FILE: bom_text(release),
        CARD_FILE: card_text(release),
        STATEMENT_FILE: statement_text(release),
    }
    if EVALUATION_SERVED in proofs.made:
        rows = read_rows(proofs.made[EVALUATION_SERVED].path, proofs.metric)
        texts[ROWS_FILE] = rows.model_dump_json() + "\n"
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    write_report(folder, proofs.run.dir)


def manifest_facts(
    proofs: Proofs, release: Release, *, is_signed: bool
) -> tuple[dict[str, Any], list[Input], dict[str, Any]]:
    """Return the configuration, the inputs and the figures of a release's manifest."""
    figures = {
        "verdict": release.verdict,
        "problems": [f"{gate.name}: {gate.words}" for gate in release.failed()],
        "model": release.model.digest,
        "waived": release.waived,
        "is_signed": is_signed,
    }
    inputs = [proofs.made[link.stage].as_input(link.stage) for link in release.chain]
    return proofs.config.model_dump(mode="json"), inputs, figures


def check_equal(earlier: Artifact, proofs: Proofs, release: Release, signer: Signer | None) -> None:
    """Check that an earlier release is what a new one of the same proofs would be, byte by byte.

    A manifest that fits a forged file proves nothing: anyone can write both. The time of the
    release is taken from the earlier one.

    Args:
        earlier: The earlier release; its files equal its manifest.
        proofs: The proofs.
        release: The new release of these proofs.
        signer: Who signs the new release.

    Raises:
        TamperedError: A file, a signature or the manifest differs; the message names each.
    """
    found = read_release(earlier.path)
    own, there = (one.model_dump(mode="json", exclude={"created_at"}) for one in (release, found))
    problems = [f"{RELEASE_FILE}: {key}" for key in own if own[key] != there[key]]
    manifest = earlier.manifest
    facts = manifest_facts(proofs, found, is_signed=signer is not None)
    if (manifest.config, manifest.inputs, manifest.metrics) != facts:
        problems.append("manifest.json")
    with TemporaryDirectory(prefix=".release-", dir=proofs.run.dir) as temporary:
        scratch = Path(temporary)
        folder = scratch / earlier.path.name
        folder.mkdir()
        write_files(proofs, found, folder)
        expected = {relative_name(one, folder): file_sha256(one) for one in payload_files(folder)}
        problems += _other_files(earlier, expected, signer)
        if not problems and signer is not None and not signer.keyless:
            problems += _other_signatures(earlier, proofs, signer, scratch)
    if problems:
        raise TamperedError(
            f"{earlier.path}: differs from a release of the same proofs ({', '.join(problems)})",
            hint=f"Remove it and release again: {remove_command(earlier.path)}",
        )


def _other_files(earlier: Artifact, expected: dict[str, str], signer: Signer | None) -> list[str]:
    """Return the names of the files that differ, are missing, or are too many."""
    signatures = set() if signer is None else set(SIGNATURES)
    there = {entry.path: entry.sha256 for entry in earlier.manifest.files}
    return [
        name
        for name in sorted({*there, *expected, *signatures})
        if (name not in there if name in signatures else there.get(name) != expected.get(name))
    ]


def _other_signatures(
    earlier: Artifact, proofs: Proofs, signer: Signer, scratch: Path
) -> list[str]:
    """Return the names of the signatures that the signer's key did not make of these files."""
    problems = []
    assert proofs.served is not None  # noqa: S101 (a release of it was made)
    for name, folder in zip(SIGNATURES, (proofs.served.path, earlier.path), strict=True):
        try:
            check_own_signature(signer, folder, earlier.path / name, scratch)
        except ArtifactError:
            problems.append(name)
    return problems

"""`tuneline release`: judge a run, and write the folder of its release."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from tuneline.core.artifact import (
    Artifact,
    canonical_digest,
    new_artifact,
    open_artifact,
    verify_artifact,
)
from tuneline.core.digests import short_digest
from tuneline.core.documents import write_document
from tuneline.core.errors import TamperedError, VerdictError
from tuneline.core.release import (
    BOM_FILE,
    CARD_FILE,
    MODEL_SIGNATURE,
    RELEASE_FILE,
    RELEASE_KIND,
    ROWS_FILE,
    STATEMENT_FILE,
    Release,
    Waiver,
    read_release,
)
from tuneline.core.verdict import Verdict
from tuneline.pipeline.keys import KEY_LENGTH
from tuneline.pipeline.run_config import Run
from tuneline.pipeline.up import lock_run
from tuneline.release.bom import bom_text
from tuneline.release.build import build_release
from tuneline.release.card import card_text
from tuneline.release.gates.evaluation import SERVED
from tuneline.release.proofs import Proofs, collect_proofs
from tuneline.release.rows import read_rows
from tuneline.release.sign import Signer, sign_model, sign_release
from tuneline.release.statement import statement_text
from tuneline.report import write_report


def make_release(
    run: Run,
    *,
    waivers: Sequence[Waiver] = (),
    overrides: Sequence[str] = (),
    signer: Signer | None = None,
) -> Artifact:
    """Write the release of a run as an artifact of kind `release`, whatever its verdict.

    The directory is named after what it says: a second call with equal proofs returns the release
    that is there. Only a release whose verdict is PASS is signed.

    Args:
        run: The run.
        waivers: The failed gates that do not stop the release, with the reasons.
        overrides: The `--set` options of the run.
        signer: Who signs the model and the release.

    Raises:
        TamperedError: The release that is there says other things than its proofs.
        ConfigError: A waiver or the signer cannot be used.
        ArtifactError: The served model or the dataset is not made.
        MissingError: A library of the extra `release` is missing.
    """
    if signer is not None:
        signer.config()  # a key that cannot be read is found before the gates
    with lock_run(run):
        proofs = collect_proofs(run)
        release = build_release(proofs, waivers, overrides)
        signer = signer if release.verdict is Verdict.PASS else None
        out = run.dir / f"release-{_key(release, signer)}"
        if out.exists():
            earlier = open_artifact(out, kind=RELEASE_KIND)
            verify_artifact(earlier)
            _check_equal(earlier, release)
            return earlier
        return _write(proofs, release, signer, out)


def require_released(artifact: Artifact) -> Release:
    """Return the release of an artifact whose verdict is PASS.

    Raises:
        VerdictError: Gates failed; the message has each of them in words.
    """
    release = read_release(artifact.path)
    failed = release.failed()
    if not failed:
        return release
    lines = [f"  {gate.name}: {gate.words}" for gate in failed]
    hints = list(dict.fromkeys(gate.hint for gate in failed if gate.hint))
    raise VerdictError(
        f"{release.name}: not released: {len(failed)} of {len(release.gates)} gates failed\n"
        + "\n".join(lines),
        hint="\n  ".join(
            [*hints, f'To release all the same: --waive {failed[0].name} --why "the reason"']
        ),
    )


def _key(release: Release, signer: Signer | None) -> str:
    """Return the key of a release: its content without the time, and how it is signed."""
    content = release.model_dump(mode="json", exclude={"created_at"})
    signed = None
    if signer is not None:
        files = [signer.key, signer.certificate, *signer.chain]
        # The private key itself leaves no trace, not even a hash.
        signed = [str(signer.keyless), *(path.name for path in files if path is not None)]
    return short_digest(canonical_digest([content, signed]))[:KEY_LENGTH]


def _check_equal(earlier: Artifact, release: Release) -> None:
    """Check that an earlier release says what a new one of the same proofs says.

    A manifest that fits a forged document proves nothing: anyone can write both.
    """
    found = read_release(earlier.path)
    own, there = (one.model_dump(mode="json", exclude={"created_at"}) for one in (release, found))
    keys = [key for key in own if own[key] != there[key]]
    texts = {
        BOM_FILE: bom_text(found),
        CARD_FILE: card_text(found),
        STATEMENT_FILE: statement_text(found),
    }
    files = [
        name
        for name, text in texts.items()
        if not (earlier.path / name).is_file()
        or (earlier.path / name).read_text(encoding="utf-8") != text
    ]
    if keys or files:
        where = ", ".join([*(f"{RELEASE_FILE}: {key}" for key in keys), *files])
        raise TamperedError(
            f"{earlier.path}: differs from a release of the same proofs ({where})",
            hint=f"Remove it and release again: rm -r {earlier.path}",
        )


def _write(proofs: Proofs, release: Release, signer: Signer | None, out: Path) -> Artifact:
    inputs = [proofs.made[link.stage].as_input(link.stage) for link in release.chain]
    config = proofs.config.model_dump(mode="json")
    with new_artifact(out, RELEASE_KIND, config=config, inputs=inputs) as draft:
        # The signature names its folder, and a draft has another name than the release.
        with TemporaryDirectory(prefix=".release-", dir=proofs.run.dir) as temporary:
            folder = Path(temporary) / out.name
            folder.mkdir()
            _fill(proofs, release, folder)
            if signer is not None and proofs.served is not None:
                sign_model(signer, proofs.served.path, folder / MODEL_SIGNATURE)
                sign_release(signer, folder)
            shutil.copytree(folder, draft.dir, dirs_exist_ok=True)
        draft.metrics.update(
            verdict=release.verdict,
            problems=[f"{gate.name}: {gate.words}" for gate in release.failed()],
            model=release.model.digest,
            waived=[waiver.gate for waiver in release.waivers],
            is_signed=signer is not None,
        )
    return open_artifact(out, kind=RELEASE_KIND)


def _fill(proofs: Proofs, release: Release, folder: Path) -> None:
    """Write the files of a release, except for signatures."""
    write_document(release, folder / RELEASE_FILE)
    texts = {
        BOM_FILE: bom_text(release),
        CARD_FILE: card_text(release),
        STATEMENT_FILE: statement_text(release),
    }
    if SERVED in proofs.made:
        rows = read_rows(proofs.made[SERVED].path, proofs.config.metric)
        texts[ROWS_FILE] = rows.model_dump_json() + "\n"
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    write_report(folder, proofs.run.dir)

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
    remove_command,
    verify_artifact,
)
from tuneline.core.errors import ArtifactError, VerdictError
from tuneline.core.release import (
    MODEL_SIGNATURE,
    RELEASE_KIND,
    Release,
    Waiver,
    read_release,
)
from tuneline.core.verdict import Verdict
from tuneline.pipeline.keys import key_of
from tuneline.pipeline.released import mark_last_release
from tuneline.pipeline.run_config import Run
from tuneline.pipeline.up import lock_run
from tuneline.release.build import build_release, waive_options
from tuneline.release.folder import check_equal, manifest_facts, write_files
from tuneline.release.parties import Signer
from tuneline.release.proofs import Proofs, collect_proofs
from tuneline.release.sign import sign_model, sign_release


def make_release(
    run: Run,
    *,
    waivers: Sequence[Waiver] = (),
    signer: Signer | None = None,
) -> Artifact:
    """Write the release of a run as an artifact of kind `release`, whatever its verdict.

    The directory is named after what it says and who signs it: a second call with equal proofs and
    the same key returns the release that is there. Only a release whose verdict is PASS is signed.

    Args:
        run: The run.
        waivers: The failed gates that do not stop the release, with the reasons.
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
        release = build_release(proofs, waivers)
        signer = signer if release.verdict is Verdict.PASS else None
        identity = None if signer is None else signer.identity()
        out = run.dir / f"release-{_key(release, signer, identity)}"
        if out.exists():
            if signer is not None and identity is None:
                raise ArtifactError(
                    f"{out}: exists already, and who signed it is not known; expected no release "
                    "of the same proofs before you sign as a person",
                    hint=f"Remove it and release again: {remove_command(out)}",
                )
            artifact = open_artifact(out, kind=RELEASE_KIND)
            verify_artifact(artifact)
            check_equal(artifact, proofs, release, signer)
        else:
            artifact = _write(proofs, release, signer, out)
        mark_last_release(artifact)
        return artifact


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
            [*hints, f"To release all the same: {' '.join(map(waive_options, failed))}"]
        ),
    )


def _key(release: Release, signer: Signer | None, identity: list[str] | None) -> str:
    """Return the key of a release: its content without the time, and who signs it.

    The file name of a key says nothing: a new key may have the name of the old one.
    """
    content = release.model_dump(mode="json", exclude={"created_at"})
    signed = None if signer is None else [signer.keyless, identity]
    return key_of(canonical_digest([content, signed]))


def _write(proofs: Proofs, release: Release, signer: Signer | None, out: Path) -> Artifact:
    config, inputs, figures = manifest_facts(proofs, release, is_signed=signer is not None)
    with new_artifact(out, RELEASE_KIND, config=config, inputs=inputs) as draft:
        # The signature names its folder, and a draft has another name than the release.
        with TemporaryDirectory(prefix=".release-", dir=proofs.run.dir) as temporary:
            folder = Path(temporary) / out.name
            folder.mkdir()
            write_files(proofs, release, folder)
            if signer is not None and proofs.served is not None:
                sign_model(signer, proofs.served.path, folder / MODEL_SIGNATURE)
                sign_release(signer, folder)
            shutil.copytree(folder, draft.dir, dirs_exist_ok=True)
        draft.metrics.update(figures)
    return open_artifact(out, kind=RELEASE_KIND)

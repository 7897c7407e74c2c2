"""The ladder of a run: every form next to the trained model, as one table and one picture."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from tuneline.core.artifact import Artifact, canonical_digest, new_artifact, open_artifact
from tuneline.core.parity import PARITY_FILE, Parity
from tuneline.core.parity_report import draw, markdown, table
from tuneline.core.tolerances import Tolerances
from tuneline.pipeline.keys import key_of


def ladder_lines(proofs: Sequence[Artifact]) -> list[str]:
    """Return the table for people, one line per form."""
    return table([_parity(proof) for proof in proofs])


def write_ladder(runs_dir: Path, proofs: Sequence[Artifact]) -> Artifact:
    """Write the ladder as an artifact of kind `ladder`: `ladder.md`, `ladder.json`, `ladder.png`.

    It is named after the proofs that it shows; one that is there already is not written again.
    """
    key = key_of(canonical_digest([proof.digest for proof in proofs]))
    out = runs_dir / f"ladder-{key}"
    if out.exists():
        return open_artifact(out, kind="ladder")
    parities = [_parity(proof) for proof in proofs]
    inputs = [proof.as_input(proof.path.name.rpartition("-")[0]) for proof in proofs]
    with new_artifact(out, "ladder", config={}, inputs=inputs) as draft:
        document = [parity.model_dump(mode="json") for parity in parities]
        (draft.dir / "ladder.json").write_text(json.dumps(document, indent=2) + "\n", "utf-8")
        (draft.dir / "ladder.md").write_text(markdown(parities), "utf-8")
        allowed = [Tolerances.model_validate(p.manifest.config["tolerances"]) for p in proofs]
        draw(draft.dir / "ladder.png", list(zip(parities, allowed, strict=True)))
        draft.metrics["verdicts"] = {parity.form: parity.verdict for parity in parities}
    return open_artifact(out, kind="ladder")


def _parity(proof: Artifact) -> Parity:
    return Parity.model_validate_json((proof.path / PARITY_FILE).read_text(encoding="utf-8"))

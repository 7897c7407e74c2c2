"""Gate `licenses`: the licences of the models and of the data are recorded."""

from __future__ import annotations

from tuneline.release.gates.finding import Finding, judged
from tuneline.release.licenses import base_license, data_license, teacher_license
from tuneline.release.proofs import Proofs

REQUIRED = "the licences of the models and of the data are known"


def judge_licenses(proofs: Proofs) -> Finding:
    """Check that all licences are known; whether they allow the use is for people to judge."""
    found = {"base": base_license(proofs.run, proofs.base.path)}
    if proofs.run.config.training.method.type == "distillation":
        found["teacher"] = teacher_license(proofs.run)
    found["data"] = data_license(proofs.run)
    absent = [name for name, one in found.items() if one is None]
    known = [f"{name} {one.name} ({one.source})" for name, one in found.items() if one is not None]
    return judged(
        not absent,
        REQUIRED,
        ", ".join([*known, *(f"{name} unknown" for name in absent)]),
        f"The licence of the {' and of the '.join(absent)} is not known."
        if absent
        else f"All licences are recorded: {', '.join(known)}.",
        # `deploy` compares the section of run.yaml with that of the release.
        hint="Write into run.yaml, such as: release: {"
        + ", ".join(f"{name}_license: Apache-2.0" for name in absent)
        + "}",
        reasons=absent,
    )

"""The table of gates. A new gate is one function in this folder and one row here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tuneline.release.gates.chain import judge_chain
from tuneline.release.gates.evaluation import judge_evaluation, judge_served_evaluation
from tuneline.release.gates.finding import Finding
from tuneline.release.gates.forgetting import judge_forgetting
from tuneline.release.gates.heldout import judge_heldout
from tuneline.release.gates.licenses import judge_licenses
from tuneline.release.gates.load import judge_load
from tuneline.release.gates.parity import judge_forms, judge_served_parity
from tuneline.release.gates.regression import judge_regression, judge_speed
from tuneline.release.gates.safe_files import judge_safe_files
from tuneline.release.proofs import Proofs


@dataclass(frozen=True)
class Row:
    """One gate.

    Attributes:
        title: The question that it answers, for people.
        judge: Returns what it found.
    """

    title: str
    judge: Callable[[Proofs], Finding]


GATES: dict[str, Row] = {
    "chain": Row("Is every artifact whole, and made from the one before it?", judge_chain),
    "heldout": Row("Is every held-out prompt new to the model?", judge_heldout),
    "evaluation": Row("Is the tuned model better than the base?", judge_evaluation),
    "forgetting": Row("Does the tuned model keep the base's skills?", judge_forgetting),
    "parity": Row("Is every form the trained model?", judge_forms),
    "parity-served": Row("Is the served model the trained model?", judge_served_parity),
    "evaluation-served": Row(
        "Does the served model answer as well as the tuned model?", judge_served_evaluation
    ),
    "load": Row("Does the endpoint meet its objectives under load?", judge_load),
    "regression": Row("Is it as good as the earlier release?", judge_regression),
    "speed": Row("Is it as fast as the earlier release?", judge_speed),
    "licenses": Row("Are the licences of the models and of the data recorded?", judge_licenses),
    "safe-files": Row("Can every file be loaded without running code?", judge_safe_files),
}

"""Twenty sabotages of a finished line: the command that a user types, and how it refuses each.

A row damages a copy of the line's own run. The command is the same with and without the damage;
{names} in it are the places of the copy (`Scene.places`). docs/sabotages.md has the table in words.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial

from tests.e2e.line import damages
from tests.e2e.line.damages import Scene, stopped_clients

RUN = ("{run}", "--runs-dir", "{runs}", "{settings}")
PROVE = ("prove", "--reference", "{reference}", "--candidate", "{model}", "--out", "{out}")
MERGE = ("export", "merge", "--base", "{base}", "--adapter", "{adapter}", "--out", "{out}")
VERIFY = ("verify", "{release}", "--key", "{key}")
RELEASE = ("release", *RUN)
COMPARED = (
    *RELEASE, "--set", "release.previous={previous}", "--set", "release.max_regression=0.03",
    "--waive", "speed:missing", "--why", "the canary measures it",
)  # fmt: skip
LOADTEST = (
    "loadtest", "--url", "{known}", "--model", "known", "--rate", "20", "--requests", "80",
    "--max-tokens", "8", "--set", "loadtest.calibrate=false",
    "--set", "loadtest.max_client_lag_s=0.25", "--out", "{out}",
)  # fmt: skip
CACHED = (
    "loadtest", "--url", "{url}", "--model", "support-tickets", "--prompts", "{prompts}",
    "--concurrency", "2", "--requests", "16", "--max-tokens", "4",
    "--set", "loadtest.workload.prefix_hit_rate=0", "--set", "loadtest.calibrate=false",
    "--set", "loadtest.max_client_lag_s=5", "--out", "{out}",
)  # fmt: skip
DATA_CHECK = (
    "data", "check", "{data}/train.jsonl", "--eval", "{data}/heldout.jsonl",
    "--set", "data.checks.leakage.action=refuse",
)  # fmt: skip
SERVE = (
    "serve", *RUN, "--print", "--set", "serving.mode=adapter", "--set", "base_model={base}",
)  # fmt: skip


def _nothing(_: Scene) -> None:
    return


@dataclass(frozen=True)
class Sabotage:
    """One row.

    Attributes:
        command: The words after `tuneline`.
        code: The exit code of the refusal.
        words: A part of the message; it names the check or the gate.
        damage: Changes the copy.
        meanwhile: Disturbs the command while it runs.
    """

    command: tuple[str, ...]
    code: int
    words: str
    damage: Callable[[Scene], None] = _nothing
    meanwhile: Callable[[], AbstractContextManager[None]] = nullcontext


SABOTAGES: dict[str, Sabotage] = {
    "LoRA scale": Sabotage(PROVE, 6, "max_logprob_difference is", damages.lora_scale),
    "delta twice": Sabotage(PROVE, 6, "max_logprob_difference is", damages.delta_twice),
    "lost tensor": Sabotage(MERGE, 3, "lora_", damages.lost_tensor),
    "other base": Sabotage(MERGE, 3, "was trained on", damages.other_base),
    "other template": Sabotage(
        PROVE, 6, "the chat template or the tokenizer differs", damages.other_template
    ),
    "lost stop token": Sabotage(PROVE, 6, "greedy_agreement", damages.lost_stop_token),
    "vocabulary cut": Sabotage(
        PROVE, 3, "a tokenizer of another model", damages.vocabulary_cut
    ),
    "coarse quantizer": Sabotage(
        PROVE, 6, "max_logprob_difference is", damages.coarse_quantizer
    ),
    "NaN": Sabotage(MERGE, 3, "holds NaN or infinity", damages.nan),
    "tampered artifact": Sabotage(
        ("verify", *RUN), 3, "model.safetensors: sha256", damages.tampered_artifact
    ),
    "tampered release": Sabotage(
        VERIFY, 3, "differs from the signed files", damages.tampered_release
    ),
    "wrong key": Sabotage(VERIFY, 3, "release.sig: is not a signature by", damages.wrong_key),
    "saturated load client": Sabotage(
        LOADTEST, 8, "the client sent late: p99 of its send lag",
        meanwhile=partial(stopped_clients, 0.1, 0.5),
    ),
    "clumped arrivals": Sabotage(
        LOADTEST, 8, "as index of dispersion, scheduled",
        meanwhile=partial(stopped_clients, 0.2, 1.6),
    ),
    "cache-inflated run": Sabotage(
        CACHED, 8, "of the prompt tokens; 0% is declared", damages.repeated_prompts
    ),
    "another digest served": Sabotage(
        RELEASE, 6, "load: The load test does not hold: the server named the artifact 0123456789ab",
        damages.another_digest,
    ),
    "regression inside the noise": Sabotage(
        COMPARED, 6, "regression: This release may be worse: the noise hides it",
        damages.regression,
    ),
    "leaked held-out rows": Sabotage(
        DATA_CHECK, 2, "train.jsonl: line 1795: prompt: equal prompts", damages.leaked_rows
    ),
    "forgotten skill": Sabotage(
        (*RELEASE, "--set", "evaluation.forgetting=true"), 6,
        "forgetting: The tuned model lost a skill: json", damages.forgotten_skill,
    ),
    "adapter on the wrong base at run time": Sabotage(
        SERVE, 3, "its configuration or an input changed", damages.other_base
    ),
}  # fmt: skip

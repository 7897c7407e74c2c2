"""Train each case straight, and ended by SIGKILL and by SIGTERM at seeded moments and continued.

The libraries are imported once; each run is a forked process, and no process that computes is
forked. <folder>/<case>/ has the artifacts `straight` and `killed`, and
`kills.json` says where each process ended.
"""

from __future__ import annotations

import gc
import json
import os
import random
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

MOMENTS = ("step", "accumulation", "save", "write", "measurement")
"""Where SIGKILL comes. SIGTERM comes at the end of a step, so that its step is known."""
ENDS = (signal.SIGKILL, signal.SIGTERM)
"""The signals that end a run, in order; the run continues after each."""
COMMON: dict[str, Any] = {
    "num_train_epochs": 2, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 1,
    "learning_rate": 3e-3, "logging_steps": 1, "save_steps": 2, "gradient_checkpointing": False,
    "max_length": 128, "report_to": [],
}  # fmt: skip
IN_SHARES = {"best": 2}
"""Threads of a case without dropout, each of which computes rows of its own."""
DROPOUT = {"lora_dropout": 0.1}
TWICE = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("answer", {
        **DROPOUT, **TWICE, "eval_steps": 3, "dataloader_num_workers": 2, "save_minutes": 1e-9,
        "save_total_limit": 1,
    }),
    "packing": ("answer", {**DROPOUT, "packing": True, "per_device_train_batch_size": 1}),
    "dora": ("answer", {"use_dora": True, "logging_steps": 4}),
    # A rank of 64: matrices below 4,096 values keep moments of 32 bits.
    "qlora": ("answer", {"load_in_4bit": True, "optim": "adamw_8bit", "r": 64}),
    "full": ("answer", {
        "finetuning_type": "full", "learning_rate": 1e-3, "max_steps": 7, "adam_beta2": 0.95,
        "lr_scheduler_type": "inverse_sqrt",
    }),
    "best": ("answer", {
        "load_best_model_at_end": True, "metric_for_best_model": "eval_exact_match",
        "early_stopping_patience": 2, "eval_steps": 2, "num_eval_prompts": 4,
    }),
    "dpo": ("long_pair", {"method": {"type": "dpo"}}),
    "moving-reference": ("preference", {
        "finetuning_type": "full", "learning_rate": 1e-3,
        "method": {"type": "dpo", "sync_ref_model": True, "ref_model_sync_steps": 1},
    }),
    "orpo": ("long_pair", {**TWICE, "dataloader_num_workers": 2, "method": {"type": "orpo"}}),
    "reward": ("preference", {"method": {"type": "reward"}}),
    "embedding": ("query", {
        **DROPOUT, **TWICE, "dataloader_num_workers": 2, "method": {"type": "embedding"},
    }),
    "reranker": ("candidates", {
        **DROPOUT, **TWICE, "dataloader_num_workers": 2, "method": {"type": "reranker"},
    }),
    "kto": ("label", {**TWICE, "method": {"type": "kto"}}),
    "grpo": ("long_prompt", {
        "per_device_train_batch_size": 8, "gradient_accumulation_steps": 2,
        "method": {"type": "grpo", "reward_funcs": "rewards.py:lower", "num_generations": 4,
                   "max_completion_length": 8},
    }),
    "distillation": ("long_prompt", {
        **TWICE, "eval_steps": 3,
        "method": {"type": "distillation", "teacher_model_name_or_path": "teacher",
                   "max_completion_length": 8},
    }),
}  # fmt: skip


def in_child(run: Callable[[], None]) -> int:
    """Run a function in a forked process, and return its exit status, negative for a signal."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            run()
            status = 0
        finally:
            if status:
                traceback.print_exc()
            sys.stderr.flush()
            os._exit(status)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def end_at(moment: str, step: int, number: signal.Signals) -> None:
    """Let this process send itself a signal once, at a moment of the first step from `step` on."""
    import torch

    from training.loop.checkpoints import CheckpointMarks
    from training.loop.progress import ShowProgress
    from training.loop.proof import ProofOfTraining

    sent: list[int] = []

    def now() -> None:
        if not sent:  # a second SIGTERM would not wait for the checkpoint
            sent.append(step)
            os.kill(os.getpid(), number)

    def before(owner: Any, name: str) -> None:
        own = getattr(owner, name, None)

        def method(self: Any, args: Any, state: Any, control: Any, **rest: Any) -> Any:
            if state.global_step >= step:
                now()
            return own(self, args, state, control, **rest) if own is not None else None

        setattr(owner, name, method)

    if moment == "step":
        before(ShowProgress, "on_step_end")
    elif moment == "accumulation":
        before(ProofOfTraining, "on_pre_optimizer_step")
    elif moment == "measurement":
        before(ShowProgress, "on_evaluate")
    elif moment == "save":  # every file is written, the mark is not
        before(CheckpointMarks, "on_save")
    else:  # half of a file is written
        save = torch.save

        def torn(value: Any, file: Any, *args: Any, **kwargs: Any) -> None:
            save(value, file, *args, **kwargs)
            if _step_of(file) >= step:
                os.truncate(file, Path(file).stat().st_size // 2)
                now()

        torch.save = torn


def _step_of(file: Any) -> int:
    """Return the step of the checkpoint that a file belongs to; -1 for another file."""
    step = str(file).rpartition("checkpoint-")[2].partition("/")[0]
    return int(step) if step.isdecimal() else -1


def prepare_forks(folder: Path) -> None:
    """Fill, before a process is forked, what each fork would work out anew and no run changes:
    versions of libraries, the fonts of pictures, the names of a family's tensors."""
    import torch
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    from training.loop.loss_curve import write_curve
    from tuneline.core.environment import environment_facts

    torch.set_num_threads(1)
    environment_facts()
    write_curve([{"step": 1, "loss": 1.0, "eval_loss": 1.0}], folder)
    get_checkpoint_conversion_mapping("llama")
    # A collection in each run would visit all imported objects: a quarter of its time.
    gc.freeze()


def main(folder: Path, names: Sequence[str] = tuple(CASES)) -> None:
    """Run the cases of these names."""
    os.environ["OMP_NUM_THREADS"] = "1"
    import bitsandbytes  # noqa: F401 (a forked process has what its parent has imported)
    import matplotlib.figure  # noqa: F401
    import torch
    from transformers.models.llama import modeling_llama  # noqa: F401

    from tests.integration.training.methods.datasets import REWARD_FILE, write_dataset
    from tests.integration.training.tiny import make_base
    from training.config import TrainingConfig
    from training.loop import shared_rows
    from training.methods import (  # noqa: F401
        distillation,
        dpo,
        embedding,
        grpo,
        kto,
        orpo,
        reranker,
        reward,
        sft,
    )
    from training.train import train_adapter
    from tuneline.models.source import resolve_model

    prepare_forks(folder)

    def setting_up() -> None:
        make_base(folder / "base")
        make_base(folder / "teacher", seed=1)
        (folder / "rewards.py").write_text(REWARD_FILE)
        for kind in {kind for kind, _ in CASES.values()}:
            write_dataset(folder / f"data-{kind}", kind, 13, 5)

    assert in_child(setting_up) == 0
    for name in names:
        kind, changes = CASES[name]
        config = TrainingConfig.model_validate({**COMMON, **changes})
        draw = random.Random(name)

        def train(out: str, moment: str = "", step: int = 0, number: Any = None) -> None:
            from tuneline.core.artifact import open_artifact

            if name in IN_SHARES:  # noqa: B023
                torch.set_num_threads(IN_SHARES[name])  # noqa: B023
                shared_rows.SHARE_LEAST = 16
            if number is not None:
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                end_at(moment, step, number)
            train_adapter(
                config,  # noqa: B023 (run before the loop goes on)
                open_artifact(folder / f"data-{kind}"),  # noqa: B023
                resolve_model("base", relative_to=folder),
                folder / name / out,  # noqa: B023
                relative_to=folder,
            )

        (folder / name).mkdir()
        assert in_child(lambda: train("straight")) == 0, name
        manifest = json.loads((folder / name / "straight" / "manifest.json").read_text())
        last = manifest["metrics"]["num_steps"]
        kills, step = [], 2
        for place, number in enumerate(ENDS):
            moment = draw.choice(MOMENTS) if number == signal.SIGKILL else "step"
            # From the third step on, so that there is a checkpoint to continue from; after the
            # step of the end before, and before the last step.
            step = draw.randint(step + 1, last - len(ENDS) + place)
            status = in_child(lambda m=moment, s=step, n=number: train("killed", m, s, n))  # type: ignore[misc]
            work = folder / name / ".killed.work"
            files = sorted(str(path.relative_to(work)) for path in work.glob("checkpoint-*/*"))
            kills.append({"moment": moment, "step": step, "status": status, "files": files})
        assert in_child(lambda: train("killed")) == 0, name
        (folder / name / "kills.json").write_text(json.dumps(kills))

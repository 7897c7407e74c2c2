"""Train each case straight, and killed by SIGKILL at seeded moments and continued.

`python killed_runs.py FOLDER`. The libraries are imported once; each run is a forked process, and
no process that computes is forked. FOLDER/<case>/ has the artifacts `straight` and `killed`, and
`kills.json` says where each process died.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

MOMENTS = ("step", "accumulation", "save", "write", "measurement")
NUM_KILLS = 1
COMMON: dict[str, Any] = {
    "num_train_epochs": 2, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 1,
    "learning_rate": 3e-3, "logging_steps": 1, "save_steps": 2, "gradient_checkpointing": False,
    "max_length": 128, "report_to": [],
}  # fmt: skip
DROPOUT = {"lora_dropout": 0.1}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("answer", {
        **DROPOUT, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2,
        "eval_steps": 3, "dataloader_num_workers": 2, "save_minutes": 1e-9, "save_total_limit": 1,
    }),
    "packing": ("answer", {**DROPOUT, "packing": True, "per_device_train_batch_size": 1}),
    "dora": ("answer", {"use_dora": True, "logging_steps": 4}),
    "qlora": ("answer", {"load_in_4bit": True, "optim": "adamw_8bit"}),
    "full": ("answer", {"finetuning_type": "full", "learning_rate": 1e-3}),
    "best": ("answer", {
        **DROPOUT, "load_best_model_at_end": True, "metric_for_best_model": "eval_exact_match",
        "early_stopping_patience": 2, "eval_steps": 2, "num_eval_prompts": 4,
    }),
    "dpo": ("preference", {"method": {"type": "dpo"}}),
    "orpo": ("preference", {"method": {"type": "orpo"}}),
    "reward": ("preference", {"method": {"type": "reward"}}),
    "kto": ("label", {"method": {"type": "kto"}}),
    "grpo": ("prompt", {
        "per_device_train_batch_size": 16,
        "method": {"type": "grpo", "reward_funcs": "rewards.py:lower", "num_generations": 4,
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


def die_at(moment: str, step: int) -> None:
    """Let this process kill itself at a moment of a training, at the first step from `step` on."""
    import torch

    from training.loop.checkpoints import CheckpointMarks
    from training.loop.progress import ShowProgress
    from training.loop.proof import ProofOfTraining

    def now(*_: Any, **__: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

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


def main(folder: Path, names: list[str]) -> None:
    import bitsandbytes  # noqa: F401 (a forked process has what its parent has imported)
    import matplotlib.figure  # noqa: F401
    import torch
    from transformers.models.llama import modeling_llama  # noqa: F401

    from tests.integration.training.methods.datasets import REWARD_FILE, write_dataset
    from tests.integration.training.tiny import make_base
    from training.config import TrainingConfig
    from training.methods import dpo, grpo, kto, orpo, reward, sft  # noqa: F401
    from training.train import train_adapter
    from tuneline.models.source import resolve_model

    torch.set_num_threads(1)

    def setting_up() -> None:
        make_base(folder / "base")
        (folder / "rewards.py").write_text(REWARD_FILE)
        for kind in ("answer", "preference", "label", "prompt"):
            write_dataset(folder / f"data-{kind}", kind, 13, 5)

    assert in_child(setting_up) == 0
    for name in names:
        kind, changes = CASES[name]
        config = TrainingConfig.model_validate({**COMMON, **changes})
        draw = random.Random(name)

        def train(out: str, moment: str | None = None, step: int = 0) -> None:
            from tuneline.core.artifact import open_artifact

            if moment is not None:
                die_at(moment, step)
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
        kills = []
        for _ in range(NUM_KILLS):
            moment = draw.choice(MOMENTS)
            # From the third step on, so that there is a checkpoint to continue from.
            step = draw.randint(3, last - 1)
            status = in_child(lambda m=moment, s=step: train("killed", m, s))  # type: ignore[misc]
            work = folder / name / ".killed.work"
            files = sorted(str(path.relative_to(work)) for path in work.glob("checkpoint-*/*"))
            kills.append({"moment": moment, "step": step, "status": status, "files": files})
        assert in_child(lambda: train("killed")) == 0, name
        (folder / name / "kills.json").write_text(json.dumps(kills))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:] or list(CASES))

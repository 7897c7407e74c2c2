"""Train each case in one process and in two, from one process that has imported the libraries.

Each run is a forked process or two, and no process that computes is forked. <folder>/<case>/ has an
artifact for each run, and `status.json` says how each process ended.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.integration.training.loop.killed_runs import COMMON, end_at, prepare_forks

# 13 rows in batches of 2: seven batches, the last with one row, in steps of two batches. The last
# step of an epoch has one batch, so that one of two processes has none.
SHARED = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "save_steps": 2}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("uneven", SHARED),
    "full": ("uneven", {
        **SHARED, "finetuning_type": "full", "learning_rate": 1e-3,
        "train_sampling_strategy": "random",
    }),
    "packing": ("uneven", {**SHARED, "packing": True, "per_device_train_batch_size": 1}),
    # Both sides of a pair share its prompt, which is computed once.
    "dpo": ("long_pair", {**SHARED, "method": {"type": "dpo"}}),
    # No loss is 10 lower than the first one: the run ends early, and its first checkpoint is best.
    "best": ("uneven", {
        **SHARED, "load_best_model_at_end": True, "early_stopping_patience": 2, "eval_steps": 2,
        "early_stopping_threshold": 10.0,
    }),
}  # fmt: skip
STRATEGIES = {
    "lora": ("ddp", "fsdp2"), "full": ("fsdp2",), "packing": ("ddp",), "dpo": ("ddp",),
    "best": ("fsdp2",),
}  # fmt: skip
INTERRUPTED_AT = 3


def in_children(number: int, run: Callable[[int], None], store: Path) -> list[int]:
    """Run a function in forked processes as ranks of one training, and return their statuses."""
    children = []
    for rank in range(number):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                if number > 1:
                    os.environ |= {
                        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(number),
                        "TUNELINE_RENDEZVOUS_FILE": str(store), "GLOO_SOCKET_IFNAME": "lo",
                    }  # fmt: skip
                run(rank)
                status = 0
            finally:
                if status:
                    traceback.print_exc()
                sys.stderr.flush()
                os._exit(status)
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def stop_at(step: int) -> None:
    """Let this process send itself SIGTERM at the end of a step."""
    from training.loop.progress import ShowProgress

    shown = ShowProgress.on_step_end

    def on_step_end(self: Any, args: Any, state: Any, control: Any, **rest: Any) -> None:
        shown(self, args, state, control, **rest)
        if state.global_step == step:
            os.kill(os.getpid(), signal.SIGTERM)

    ShowProgress.on_step_end = on_step_end  # type: ignore[method-assign, assignment]


def main(folder: Path) -> None:
    """Run all cases."""
    os.environ["OMP_NUM_THREADS"] = "1"
    # A forked process has what its parent has imported.
    import torch.distributed.fsdp  # noqa: F401
    from transformers.models.llama import modeling_llama  # noqa: F401

    from tests.integration.training.methods.datasets import write_dataset
    from tests.integration.training.tiny import make_base
    from training.config import TrainingConfig
    from training.methods import dpo, sft  # noqa: F401
    from training.train import train_adapter
    from tuneline.core.artifact import open_artifact
    from tuneline.models.source import resolve_model

    prepare_forks(folder)

    def setting_up(_rank: int) -> None:
        make_base(folder / "base")
        for kind in ("uneven", "long_pair"):
            write_dataset(folder / f"data-{kind}", kind, 13, 5)

    assert in_children(1, setting_up, folder) == [0]
    statuses: dict[str, list[int]] = {}

    def run(
        case: str, name: str, strategy: str | None, prepare: Callable[[int], None] | None = None
    ) -> None:
        kind, changes = CASES[case]
        launch = None if strategy is None else {"processes": 2, "strategy": strategy}
        config = TrainingConfig.model_validate({**COMMON, **changes, "launch": launch})

        def train(rank: int) -> None:
            if prepare is not None:
                prepare(rank)
            train_adapter(
                config, open_artifact(folder / f"data-{kind}"),
                resolve_model("base", relative_to=folder), folder / case / name,
            )  # fmt: skip

        attempt = f"{case}/{name}" + ("" if f"{case}/{name}" not in statuses else " again")
        store = folder / f"store-{len(statuses)}"
        statuses[attempt] = in_children(1 if strategy is None else 2, train, store)

    for case, strategies in STRATEGIES.items():
        (folder / case).mkdir()
        run(case, "one", None)
        for strategy in strategies:
            run(case, strategy, strategy)
    # A signal that only rank 1 gets stops both; one process continues.
    run("lora", "stopped", "ddp", lambda rank: stop_at(INTERRUPTED_AT) if rank == 1 else None)
    run("lora", "stopped", None)
    # A kill of both; the same processes continue.
    run("full", "killed", "fsdp2", lambda _rank: end_at("step", INTERRUPTED_AT, signal.SIGKILL))
    run("full", "killed", "fsdp2")
    # A kill of one process; two processes continue.
    run("lora", "moved", None, lambda _rank: end_at("step", INTERRUPTED_AT, signal.SIGKILL))
    run("lora", "moved", "fsdp2")
    (folder / "status.json").write_text(json.dumps(statuses))

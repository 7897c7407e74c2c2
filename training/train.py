"""Fine-tuning: the frame around every method.

The rows are rendered and checked before the model is loaded. The frame owns the artifact, the
checkpoints, signals and metrics; the method owns its rows and its trainer.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback

from training.adapters.reach import reach_table
from training.adapters.servable import unservable
from training.adapters.trainable import four_bit_figures, write_trained
from training.config import TrainingConfig
from training.config.checkpoints import EXACT_MATCH
from training.hardware import require_hardware
from training.launch.place import is_placed
from training.launch.processes import train_in_processes
from training.launch.together import gather_training, joined, share_training
from training.loop.arguments import evaluate_each_epoch, require_schedule, trainer_arguments
from training.loop.best import KeepBest, load_best
from training.loop.checkpoints import (
    CheckpointMarks,
    checkpoint_step,
    open_checkpoints,
    require_room,
)
from training.loop.exact_match import ExactMatchInTraining
from training.loop.loss_curve import loss_points, write_curve
from training.loop.memory import peak_memory_bytes
from training.loop.progress import OnHeldout, ReportHeldout, ShowProgress
from training.loop.proof import ProofOfTraining, by_pattern, proof_table, write_proof
from training.loop.ranks import is_first, is_seen, largest, wait_for_all
from training.loop.signals import StopOnSignal
from training.model import quiet_libraries, require_one_gpu
from training.prepared import Prepared, prepare_training
from training.tracking.curves import draw_curves
from training.tracking.figures import FiguresOfTraining
from training.tracking.reporting import Reporting, chosen_trackers, opened_trackers
from training.tracking.tracker import TRACKING, TrackedRun
from tuneline.core.artifact import Artifact, file_input, new_artifact, open_artifact
from tuneline.core.config import keyed_values
from tuneline.core.dataset import HELDOUT_FILE, TRAIN_FILE
from tuneline.core.errors import GpuMemoryError
from tuneline.core.progress import logger
from tuneline.core.python_file import imported_files
from tuneline.models.chat import date_facts
from tuneline.models.source import ModelSource, computed_dtype


def train_adapter(
    config: TrainingConfig,
    dataset: Artifact,
    base: ModelSource,
    out: Path,
    *,
    relative_to: Path = Path(),
    on_heldout: OnHeldout | None = None,
) -> Artifact:
    """Fine-tune an adapter on a dataset's training rows and write it with all that serving needs.

    An interrupted run continues from its newest checkpoint when it is called again with the same
    configuration, dataset and base. On SIGINT, SIGTERM and SIGHUP a checkpoint is written first.

    With `config.launch` this process starts the processes that train. Where the environment says
    that it is one of several already (RANK and WORLD_SIZE), it joins the others.

    Args:
        relative_to: The directory that the paths of the method's files start from.
        on_heldout: Is called with step and figures after each held-out measurement; what it raises
            ends the run.

    Raises:
        ConfigError: The chat template does not train a stop token or cannot be used, a target
            module does not exist, the loss is no longer a number, or the method does not measure
            `metric_for_best_model`.
        DataError: Rows are longer than `max_length`, cannot be rendered, or are not rows that the
            method trains on.
        ArtifactError: `out` exists, or the base model cannot be loaded.
        DiskFullError: Checkpoints and adapter would not fit.
        GpuMemoryError: The GPU has too little memory for a step.
        MissingError: The package of a tracker is not installed, or a process of several does not
            arrive or is killed.
    """
    quiet_libraries()
    require_hardware(config)
    require_schedule(config)
    opened_trackers(chosen_trackers(config))
    placed = is_placed(config.launch)
    if not placed and config.launch is not None and config.launch.world_size > 1:
        return train_in_processes(
            config, dataset, base, out, relative_to=relative_to, on_heldout=on_heldout
        )
    try:
        with joined(config, dataset, base) if placed else nullcontext():
            return _train(config, dataset, base, out, relative_to, on_heldout)
    except torch.OutOfMemoryError as error:
        raise GpuMemoryError(
            f"training: the GPU has too little memory: {str(error).splitlines()[0]}",
            hint="Set training.per_device_train_batch_size: 1 and gradient_checkpointing: true. "
            "`tuneline plan` estimates the memory of other settings.",
        ) from error


def _train(
    config: TrainingConfig,
    dataset: Artifact,
    base: ModelSource,
    out: Path,
    relative_to: Path,
    on_heldout: OnHeldout | None,
) -> Artifact:
    """Train, by itself or together with other processes; only rank 0 writes files."""
    # Over 60 lines: the frame of every training run, which reads from top to bottom.
    require_one_gpu()
    trackers = opened_trackers(chosen_trackers(config)) if is_first() else {}
    settings = config.model_dump(mode="json")
    inputs = [dataset.as_input("dataset"), base.as_input("base")]
    files = [relative_to / name for name in config.method.files()]
    files += [found for file in files for found in imported_files(file)]
    inputs += [file_input("method", file) for file in files]
    inputs += [model.as_input("teacher") for model in config.method.models(relative_to)]
    facts = {f"training.{name}": value for name, value in keyed_values(config).items()}
    facts |= {f"{entry.role} {number}": entry.digest for number, entry in enumerate(inputs)}
    config = config.model_copy(update={"method": config.method.resolved(relative_to)})
    kind = "model" if config.finetuning_type == "full" else "adapter"
    with ExitStack() as stack:
        draft = None
        if is_first():
            draft = stack.enter_context(new_artifact(out, kind, config=settings, inputs=inputs))
        prepared = prepare_training(config, dataset, base)
        method, model = prepared.method, prepared.model
        for text in reach_table(prepared.reached, prepared.without):
            logger.info("  %s", text)
        num_trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
        if is_first():
            require_room(config, model, base.path, out)

        # A changed save_steps or logging_steps keeps the checkpoints: the result is the same.
        work, checkpoint = open_checkpoints(out, facts)
        arguments = trainer_arguments(prepared.chosen, work, resumed=checkpoint is not None)
        trainer = prepared.trainer(config, arguments)
        shared = share_training(trainer, config, checkpoint)
        about = {"base_model": base.name, "dataset": dataset.digest, **settings}
        tracked = TrackedRun(
            f"{out.absolute().parent.name}/{out.name}", out.parent / TRACKING / out.name, about,
            checkpoint_step(checkpoint), config.prometheus_port,
        )  # fmt: skip
        reporting = stack.enter_context(Reporting(tracked, trackers))
        marks = CheckpointMarks(config, checkpoint)
        proof = ProofOfTraining(checkpoint, loss_must_change=method.loss_must_change)
        figures = FiguresOfTraining(reporting)
        figures.watch(trainer)
        proof.watch(trainer)
        callbacks = [proof, figures, ShowProgress(stack)]
        callbacks += [ReportHeldout(on_heldout, method)] if on_heldout is not None else []
        log = _run(config, prepared, trainer, checkpoint, marks, callbacks)
        # The last step shows whether every parameter was trained; the best one may be an early one.
        moved = proof.finish(trainer.state.global_step)
        peak_bytes = int(largest(peak_memory_bytes()))
        gather_training(trainer, config)
        if draft is None:
            wait_for_all()
            is_seen(out)  # rank 0 may have made it on another host
            return open_artifact(out, kind=kind)
        proof.read_parameters(trainer.model)
        best = load_best(trainer) if config.load_best_model_at_end else None
        moved = moved if best is None else proof.moved()
        last = best or trainer.state.global_step
        if trackers:
            draw_curves(log, tracked.folder, [f"eval_{name}" for name in method.columns])

        points = loss_points(log, method.columns)
        trained = by_pattern(moved)
        for text in proof_table(trained):
            logger.info("  %s", text)
        write_proof(moved, draft.dir)
        write_curve(points, draft.dir, method.columns[0] if method.draws_columns else "loss")
        write_trained(config, trainer.model, base, draft.dir, prepared.template, prepared.stop_ids)
        reasons = unservable(config, base.path, trainer.model)
        num_epochs = trainer.state.epoch or 0.0
        if config.max_steps is None:
            num_epochs = min(config.num_train_epochs, num_epochs)
        num_tokens = num_epochs * sum(row.num_trained_tokens for row in prepared.train_rows)
        # A method that trains on the model's own answers counts their tokens.
        num_tokens = getattr(trainer, "num_sampled_tokens", num_tokens)
        estimate = prepared.estimate
        draft.metrics.update(
            {
                **method.metrics([point for point in points if point["step"] <= last]),
                **_best_figures(config, log, best),
                **shared,
                "num_steps": trainer.state.global_step,
                "num_steps_resumed": checkpoint_step(checkpoint),
                "setup_changes": marks.setup_changes,
                "num_train_rows": len(prepared.train_rows),
                "saved_token_share": trainer.saved_token_share,
                "num_trainable_parameters": num_trainable,
                "num_trained_tokens": round(num_tokens),
                "trained_tokens_per_s": num_tokens / marks.wall_s,
                "wall_s": marks.wall_s,
                "peak_memory_bytes": peak_bytes,
                "training_memory_bytes": peak_bytes - prepared.memory_before,
                "estimated_training_memory_bytes": None if estimate is None else estimate.total,
                "dtype": str(model.dtype).removeprefix("torch."),
                "servable_as_adapter": not reasons,
                "merged_only_because": reasons,
                "trained": trained,
                "left_out": prepared.without,
                "base_dtype": computed_dtype("auto", base),
                **_date_facts(prepared),
            }
        )  # fmt: skip
        if config.load_in_4bit:
            draft.metrics.update(four_bit_figures(trainer.model))
    shutil.rmtree(work)
    wait_for_all()
    if reasons and kind == "adapter":
        logger.warning("  this adapter can be served merged only: %s", "; ".join(reasons))
    return open_artifact(out, kind=kind)


def _date_facts(prepared: Prepared) -> dict[str, Any]:
    """Return the day that the chat template writes; nothing without a template."""
    if prepared.template is None:
        return {}
    prompts = [row.prompt for row in prepared.rows[TRAIN_FILE]]
    return date_facts(prepared.tokenizer, prepared.template, prompts, prepared.rendering.date)


def _run(
    config: TrainingConfig,
    prepared: Prepared,
    trainer: Any,
    checkpoint: Path | None,
    marks: CheckpointMarks,
    callbacks: Sequence[Any],
) -> list[dict[str, Any]]:
    """Train from a checkpoint or from the start, and return the Trainer's log."""
    stop = StopOnSignal()
    trainer.remove_callback(PrinterCallback)
    # Exact match adds a figure that the others read. The marks come last: a checkpoint is whole
    # when every callback has written into it.
    if config.metric_for_best_model == EXACT_MATCH:
        trainer.add_callback(
            ExactMatchInTraining(
                config, prepared.tokenizer, prepared.stop_ids, prepared.rows[HELDOUT_FILE],
                stop.require_running,
            )
        )  # fmt: skip
    for callback in (*callbacks, KeepBest(config), stop, marks):
        trainer.add_callback(callback)
    if config.eval_steps is None:
        evaluate_each_epoch(trainer)
    if checkpoint is not None:
        logger.info("  continuing after step %d from %s", checkpoint_step(checkpoint), checkpoint)
    with stop.listening(Path(trainer.args.output_dir)):
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    marks.stop()
    log: list[dict[str, Any]] = trainer.state.log_history
    if not any("eval_loss" in e and e["step"] == trainer.state.global_step for e in log):
        trainer.evaluate()
    return trainer.state.log_history  # type: ignore[no-any-return]


def _best_figures(
    config: TrainingConfig, log: Sequence[dict[str, Any]], best: int | None
) -> dict[str, Any]:
    """Return which step the result is, and its figure; {} if the result is the last step."""
    if best is None:
        return {}
    name = config.metric_for_best_model
    value = next(entry[name] for entry in log if name in entry and entry["step"] == best)
    return {"best_step": best, f"best_{name}": value}

"""Fine-tuning: the frame around every method.

The rows are rendered and checked before the model is loaded. The frame owns the artifact, the
checkpoints, signals and metrics; the method owns its rows and its trainer.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from transformers import PrinterCallback, set_seed

from training.adapters.reach import reach_table
from training.adapters.servable import unservable
from training.adapters.trainable import (
    four_bit_figures,
    load_trainable,
    train_in_float32,
    write_trained,
)
from training.config import TrainingConfig
from training.data.prepare import TRAIN_FILE, dataset_rows, file_input
from training.estimates.step import estimate_step
from training.hardware import require_hardware
from training.loop.arguments import evaluate_each_epoch, trainer_arguments
from training.loop.checkpoints import CheckpointMarks, newest_checkpoint, open_work_dir
from training.loop.loss_curve import loss_points, write_curve
from training.loop.memory import peak_memory_bytes, start_measurement
from training.loop.progress import ShowProgress
from training.loop.proof import ProofOfTraining, by_pattern, proof_table, write_proof
from training.loop.signals import StopOnSignal
from training.methods import find_method, require_kinds
from training.model import quiet_libraries, require_one_gpu
from tuneline.core.artifact import (
    Artifact,
    canonical_digest,
    new_artifact,
    open_artifact,
    require_disk_space,
)
from tuneline.core.config import keyed_values
from tuneline.core.dataset import HELDOUT_FILE
from tuneline.core.progress import logger
from tuneline.models.chat import date_facts, set_template
from tuneline.models.context import require_context
from tuneline.models.source import ModelSource, computed_dtype
from tuneline.models.stop_tokens import served_stop_ids
from tuneline.models.template import dataset_settings
from tuneline.models.tokenizer import load_tokenizer


def train_adapter(
    config: TrainingConfig,
    dataset: Artifact,
    base: ModelSource,
    out: Path,
    *,
    relative_to: Path = Path(),
) -> Artifact:
    """Fine-tune an adapter on a dataset's training rows and write it with all that serving needs.

    An interrupted run continues from its newest checkpoint when it is called again with the same
    configuration, dataset and base. On SIGINT and SIGTERM a checkpoint is written first.

    Args:
        relative_to: The directory that the paths of the method's files start from.

    Raises:
        ConfigError: The chat template does not train a stop token or cannot be used, a target
            module does not exist, or the loss is no longer a number.
        DataError: Rows are longer than `max_length`, cannot be rendered, or are not rows that the
            method trains on.
        ArtifactError: `out` exists, or the base model cannot be loaded.
        DiskFullError: Checkpoints and adapter would not fit.
    """
    # Over 60 lines: the frame of every training run, which reads from top to bottom.
    quiet_libraries()
    require_one_gpu()
    require_hardware(config)
    settings = config.model_dump(mode="json")
    inputs = [dataset.as_input("dataset"), base.as_input("base")]
    inputs += [file_input("method", relative_to / name) for name in config.method.files()]
    key = canonical_digest([keyed_values(config), [entry.digest for entry in inputs]])
    config = config.model_copy(update={"method": config.method.resolved(relative_to)})
    method = find_method(config.method)
    kind = "model" if config.finetuning_type == "full" else "adapter"
    with (
        new_artifact(out, kind, config=settings, inputs=inputs) as draft,
        ExitStack() as stack,
    ):
        tokenizer = load_tokenizer(base.path)
        rendering = dataset_settings(dataset)
        template = set_template(tokenizer, base.name, rendering)
        stop_ids = served_stop_ids(base.path, tokenizer, config.eos_token)
        rows = {file: dataset_rows(dataset, file) for file in (TRAIN_FILE, HELDOUT_FILE)}
        for file, found in rows.items():
            require_kinds(config.method, found, file)
        method.check(config, rows[TRAIN_FILE], TRAIN_FILE)
        train_rows, heldout_rows = (
            method.render(config, tokenizer, found, stop_ids, file) for file, found in rows.items()
        )
        set_seed(config.seed)
        lengths = [len(ids) for row in train_rows for ids in method.sequences(row)]
        require_context(base, max(lengths, default=0))
        chosen, estimate = estimate_step(config, base.path, lengths)
        memory_before = start_measurement()
        model, reached, without = load_trainable(
            config, base, chosen.attn_implementation, method.task_type
        )
        for text in reach_table(reached, without):
            logger.info("  %s", text)
        num_trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
        # A checkpoint is the adapter and AdamW's two moments, in float32; two are kept while a
        # third is written.
        require_disk_space(out.parent, 3 * 3 * 4 * num_trainable + 4 * num_trainable)

        # A changed save_steps or logging_steps keeps the checkpoints: the result is the same.
        work = open_work_dir(out, key)
        checkpoint = newest_checkpoint(work)
        arguments = trainer_arguments(chosen, work, resumed=checkpoint is not None)
        trainer = method.trainer(config, model, tokenizer, arguments, train_rows, heldout_rows)
        train_in_float32(trainer.model)
        marks = CheckpointMarks(checkpoint)
        proof = ProofOfTraining(checkpoint, loss_must_change=method.loss_must_change)
        points = _run(config, trainer, checkpoint, marks, proof, stack, method.columns)

        moved = proof.finish(trainer.state.global_step)
        trained = by_pattern(moved)
        for text in proof_table(trained):
            logger.info("  %s", text)
        write_proof(moved, draft.dir)
        write_curve(points, draft.dir, method.columns[0] if method.draws_columns else "loss")
        write_trained(config, trainer.model, base, draft.dir, template, stop_ids)
        reasons = unservable(config, base.path, trainer.model)
        num_tokens = config.num_train_epochs * sum(row.num_trained_tokens for row in train_rows)
        # A method that trains on the model's own answers counts their tokens.
        num_tokens = getattr(trainer, "num_sampled_tokens", num_tokens)
        draft.metrics.update(
            {
                **method.metrics(points),
                "num_steps": trainer.state.global_step,
                "num_steps_resumed": _step(checkpoint),
                "num_train_rows": len(train_rows),
                "num_trainable_parameters": num_trainable,
                "num_trained_tokens": round(num_tokens),
                "trained_tokens_per_s": num_tokens / marks.wall_s,
                "wall_s": marks.wall_s,
                "peak_memory_bytes": peak_memory_bytes(),
                "training_memory_bytes": peak_memory_bytes() - memory_before,
                "estimated_training_memory_bytes": None if estimate is None else estimate.total,
                "dtype": str(model.dtype).removeprefix("torch."),
                "servable_as_adapter": not reasons,
                "merged_only_because": reasons,
                "trained": trained,
                "left_out": without,
                "base_dtype": computed_dtype("auto", base),
                **date_facts(
                    tokenizer, template, [row.prompt for row in rows[TRAIN_FILE]], rendering.date
                ),
            }
        )
        if config.load_in_4bit:
            draft.metrics.update(four_bit_figures(trainer.model))
    shutil.rmtree(work)
    if reasons and kind == "adapter":
        logger.warning("  this adapter can be served merged only: %s", "; ".join(reasons))
    return open_artifact(out, kind=kind)


def _run(
    config: TrainingConfig,
    trainer: Any,
    checkpoint: Path | None,
    marks: CheckpointMarks,
    proof: ProofOfTraining,
    stack: ExitStack,
    columns: Sequence[str],
) -> Sequence[dict[str, Any]]:
    """Train from a checkpoint or from the start, and return the points of the loss curve."""
    stop = StopOnSignal()
    trainer.remove_callback(PrinterCallback)
    proof.watch(trainer)
    # The marks come last: a checkpoint is whole when every callback has written into it.
    for callback in (proof, marks, stop, ShowProgress(stack)):
        trainer.add_callback(callback)
    if config.eval_steps is None:
        evaluate_each_epoch(trainer)
    if checkpoint is not None:
        logger.info("  continuing after step %d", _step(checkpoint))
    with stop.listening():
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    marks.stop()
    points = loss_points(trainer.state.log_history, columns)
    if "eval_loss" not in points[-1]:
        trainer.evaluate()
        points = loss_points(trainer.state.log_history, columns)
    return points


def _step(checkpoint: Path | None) -> int:
    return int(checkpoint.name.partition("-")[2]) if checkpoint else 0

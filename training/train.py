"""LoRA fine-tuning with peft and TRL's SFTTrainer: the loss is on the answers alone.

The rows are rendered and checked before the model is loaded, and the trainer is given exactly the
token ids that were checked. TRL renders nothing itself, so the chat template that is trained is
the one that is exported and served.
"""

from __future__ import annotations

import json
import math
import resource
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import PrinterCallback, TrainerCallback, set_seed
from trl import SFTConfig, SFTTrainer

from training.adapters.serving_files import write_serving_files
from training.config import TrainingConfig
from training.data.prepare import TRAIN_FILE, dataset_rows
from training.loop.checkpoints import (
    CheckpointMarks,
    StopOnSignal,
    newest_checkpoint,
    open_work_dir,
)
from training.loop.loss_curve import loss_points, write_curve
from training.model import load_base, quiet_libraries, require_one_gpu, resolve_dtype
from training.rendering.chat import Rendered, render_rows
from tuneline.core.artifact import (
    Artifact,
    canonical_digest,
    new_artifact,
    open_artifact,
    require_disk_space,
)
from tuneline.core.config import keyed_values
from tuneline.core.dataset import HELDOUT_FILE
from tuneline.core.errors import ConfigError
from tuneline.core.progress import logger, progress
from tuneline.core.vllm_limits import MAX_LORA_RANK
from tuneline.models.adapter_config import ADAPTER_CONFIG
from tuneline.models.chat import require_chat_template
from tuneline.models.source import ModelSource
from tuneline.models.stop_tokens import served_stop_ids
from tuneline.models.tokenizer import load_tokenizer


def train(config: TrainingConfig, dataset: Artifact, base: ModelSource, out: Path) -> Artifact:
    """Fine-tune an adapter on a dataset's training rows and write it with all that serving needs.

    An interrupted run continues from its newest checkpoint when it is called again with the same
    configuration, dataset and base. On SIGINT and SIGTERM a checkpoint is written first.

    Raises:
        ConfigError: The chat template does not train a stop token or cannot be used, a target
            module does not exist, or the loss is no longer a number.
        DataError: Rows are longer than `max_length` or cannot be rendered.
        ArtifactError: `out` exists, or the base model cannot be loaded.
        DiskFullError: Checkpoints and adapter would not fit.
    """
    quiet_libraries()
    require_one_gpu()
    settings = config.model_dump(mode="json")
    inputs = [dataset.as_input("dataset"), base.as_input("base")]
    with (
        new_artifact(out, "adapter", config=settings, inputs=inputs) as draft,
        ExitStack() as stack,
    ):
        tokenizer = load_tokenizer(base.path)
        template = require_chat_template(tokenizer, base.name)
        stop_ids = served_stop_ids(base.path, tokenizer, config.eos_token)
        train_rows, heldout_rows = (
            render_rows(
                tokenizer,
                dataset_rows(dataset, file),
                stop_ids=stop_ids,
                max_length=config.max_length,
                file=file,
            )
            for file in (TRAIN_FILE, HELDOUT_FILE)
        )
        set_seed(config.seed)
        model = _with_adapter(config, load_base(base, resolve_dtype(config.dtype)))
        num_trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
        # A checkpoint is the adapter and AdamW's two moments, in float32; two are kept, and one is
        # written while they are there.
        require_disk_space(out.parent, 3 * 3 * 4 * num_trainable + 4 * num_trainable)

        # A changed save_steps or logging_steps keeps the checkpoints: the result is the same.
        key = canonical_digest([keyed_values(config), [entry.digest for entry in inputs]])
        work = open_work_dir(out, key)
        checkpoint = newest_checkpoint(work)
        marks, stop = CheckpointMarks(checkpoint), StopOnSignal()
        trainer = SFTTrainer(
            model=model,
            args=_arguments(config, work, resumed=checkpoint is not None),
            train_dataset=_as_dataset(train_rows),
            eval_dataset=_as_dataset(heldout_rows),
            processing_class=tokenizer,
            callbacks=[marks, stop, _ShowProgress(stack)],
        )
        trainer.remove_callback(PrinterCallback)
        if config.eval_steps is None:
            # Not eval_strategy="epoch": that evaluates after the checkpoint of the same step, and a
            # run that continues from it would have other random numbers and no such loss.
            batches = len(trainer.get_train_dataloader())
            trainer.args.eval_steps = math.ceil(batches / config.gradient_accumulation_steps)
        if checkpoint is not None:
            logger.info("  continuing after step %s", checkpoint.name.partition("-")[2])
        steps_before = int(checkpoint.name.partition("-")[2]) if checkpoint else 0
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        with stop.listening():
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        wall_s = marks.wall_s
        points = loss_points(trainer.state.log_history)
        if "eval_loss" not in points[-1]:
            trainer.evaluate()
            points = loss_points(trainer.state.log_history)
        write_curve(points, draft.dir)
        _write_adapter(trainer.model, base.name, draft.dir)
        write_serving_files(base.path, draft.dir, template, stop_ids)
        num_tokens = config.num_train_epochs * sum(row.num_trained_tokens for row in train_rows)
        draft.metrics.update(
            {
                "train_loss": _last(points, "loss"),
                "eval_loss": _last(points, "eval_loss"),
                "eval_loss_before": next(
                    (p["eval_loss"] for p in points if "eval_loss" in p), None
                ),
                "num_steps": trainer.state.global_step,
                "num_steps_resumed": steps_before,
                "num_train_rows": len(train_rows),
                "num_trainable_parameters": num_trainable,
                "num_trained_tokens": round(num_tokens),
                "trained_tokens_per_s": num_tokens / wall_s,
                "wall_s": wall_s,
                "peak_memory_bytes": _peak_memory_bytes(),
                "dtype": str(model.dtype).removeprefix("torch."),
                "servable_as_adapter": config.r <= MAX_LORA_RANK,
            }
        )
    shutil.rmtree(work)
    if config.r > MAX_LORA_RANK:
        logger.warning(
            "  r=%d is above vLLM's largest --max-lora-rank, %d: this adapter can be served merged "
            "only", config.r, MAX_LORA_RANK,
        )  # fmt: skip
    return open_artifact(out, kind="adapter")


def _with_adapter(config: TrainingConfig, model: Any) -> Any:
    lora = LoraConfig(
        r=config.r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=config.target_modules,
        use_rslora=config.use_rslora,
        task_type="CAUSAL_LM",
    )
    try:
        return get_peft_model(model, lora)
    except ValueError as error:
        linear = {
            name.rpartition(".")[2]
            for name, module in model.named_modules()
            if isinstance(module, torch.nn.Linear)
        }
        raise ConfigError(
            f"training.target_modules: {config.target_modules!r} cannot be used on this model "
            f"({str(error).splitlines()[0]})",
            hint=f"Its linear layers: {', '.join(sorted(linear - {'lm_head'}))}; or all-linear.",
        ) from None


def _arguments(config: TrainingConfig, work: Path, *, resumed: bool) -> SFTConfig:
    return SFTConfig(
        output_dir=str(work),
        learning_rate=config.learning_rate,
        num_train_epochs=config.num_train_epochs,
        per_device_train_batch_size=config.per_device_train_batch_size,
        per_device_eval_batch_size=config.per_device_train_batch_size,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        max_length=config.max_length,
        completion_only_loss=True,
        warmup_steps=config.warmup_steps,
        lr_scheduler_type=config.lr_scheduler_type,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        seed=config.seed,
        bf16=resolve_dtype(config.dtype) is torch.bfloat16,
        packing=config.packing,
        gradient_checkpointing=config.gradient_checkpointing,
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
        eval_strategy="steps",
        eval_steps=config.eval_steps or 1,  # without it, set once the length of an epoch is known
        eval_on_start=not resumed,
        save_strategy="steps",
        save_steps=config.save_steps,
        save_total_limit=2,
        logging_steps=config.logging_steps,
        logging_first_step=True,
        logging_nan_inf_filter=False,
        disable_tqdm=True,
        report_to="none",
    )


def _as_dataset(rows: Sequence[Rendered]) -> Dataset:
    return Dataset.from_dict(
        {"input_ids": [row.input_ids for row in rows], "labels": [row.labels for row in rows]}
    )


class _ShowProgress(TrainerCallback):  # type: ignore[misc]
    """Steps and loss on the progress display; ends a run whose loss is no longer a number."""

    def __init__(self, stack: ExitStack) -> None:
        self.stack = stack
        self.note = ""

    def on_train_begin(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
        self.advance = self.stack.enter_context(progress("training", state.max_steps, "steps"))

    def on_log(self, args: Any, state: Any, _control: Any, *, logs: Any, **_: Any) -> None:
        for name in ("loss", "eval_loss"):
            if name in logs and not math.isfinite(logs[name]):
                raise ConfigError(
                    f"training: {name} is {logs[name]} at step {state.global_step}",
                    hint=f"Lower training.learning_rate (now {args.learning_rate:g}), or check the "
                    "base model's weights.",
                )
        if "loss" in logs:
            self.note = f"loss {logs['loss']:.3f}"

    def on_step_end(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
        self.advance(state.global_step, self.note)


def _write_adapter(model: Any, base_name: str, folder: Path) -> None:
    # The embeddings are not trained: their copy is not needed, and peft would ask the Hub.
    model.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)
    config_path = folder / ADAPTER_CONFIG
    config = json.loads(config_path.read_text(encoding="utf-8"))
    # A machine's path would mean nothing elsewhere, and peft writes sets in no fixed order.
    config["base_model_name_or_path"] = (
        Path(base_name).name if Path(base_name).is_absolute() else base_name
    )
    if isinstance(config["target_modules"], list):
        config["target_modules"].sort()
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    config_path.write_text(text, encoding="utf-8")


def _last(points: Sequence[dict[str, Any]], name: str) -> float | None:
    return next((point[name] for point in reversed(points) if name in point), None)


def _peak_memory_bytes() -> int:
    """Of the GPU where there is one, else of this process."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

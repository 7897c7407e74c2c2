"""Evaluation of a model in this process: greedy answers to the held-out prompts."""

from __future__ import annotations

import time
from pathlib import Path

from training.config import EvaluationConfig
from training.data.prepare import dataset_rows
from training.evaluation.results import write_results
from training.evaluation.scoring import Prediction, predict
from tuneline.core.artifact import Artifact, new_artifact, open_artifact
from tuneline.core.dataset import HELDOUT_FILE
from tuneline.core.progress import progress
from tuneline.models.source import ModelSource


def evaluate_model(
    config: EvaluationConfig,
    dataset: Artifact,
    base: ModelSource,
    adapter: Artifact | None,
    out: Path,
) -> Artifact:
    """Answer the held-out prompts with base and adapter, or the base only, and score them.

    Weights are bfloat16 on a GPU that computes in it and float32 elsewhere.

    Raises:
        ArtifactError: `out` exists, or the model or adapter cannot be loaded.
        ConfigError: `config.fields` does not fit the expected answers, or the model has no chat
            template.
    """
    from training import model as models
    from training.evaluation.decoding import (
        batches_by_length,
        fitting_batch_size,
        greedy_answers,
    )
    from tuneline.models.chat import prompt_token_ids, set_template
    from tuneline.models.stop_tokens import served_stop_ids
    from tuneline.models.template import dataset_settings
    from tuneline.models.tokenizer import load_tokenizer

    models.quiet_libraries()
    inputs = [dataset.as_input("dataset"), base.as_input("base")]
    inputs += [adapter.as_input("adapter")] if adapter else []
    with new_artifact(
        out, "evaluation", config=config.model_dump(mode="json"), inputs=inputs
    ) as draft:
        rows = dataset_rows(dataset, HELDOUT_FILE, config.num_rows)
        folder = adapter.path if adapter else base.path
        tokenizer = load_tokenizer(folder)
        set_template(tokenizer, base.name, dataset_settings(dataset))
        stop_ids = frozenset(served_stop_ids(folder, tokenizer))
        dtype = models.resolve_dtype("auto")
        model = (
            models.load_tuned(base, adapter, dtype) if adapter else models.load_base(base, dtype)
        )
        start_s = time.monotonic()
        prompts = [prompt_token_ids(tokenizer, row.prompt, row.tools) for row in rows]
        longest = max(len(prompt) for prompt in prompts) + config.max_new_tokens
        batch_size = config.batch_size or fitting_batch_size(model, longest)
        predictions: list[Prediction | None] = [None] * len(rows)
        num_done = 0
        with progress("evaluating", len(rows), "prompts") as advance:
            for batch in batches_by_length([len(prompt) for prompt in prompts], batch_size):
                answers = greedy_answers(
                    model, [prompts[i] for i in batch], stop_ids, config.max_new_tokens
                )
                for index, ids in zip(batch, answers, strict=True):
                    row = rows[index]
                    predictions[index] = predict(
                        row.prompt,
                        row.answer,
                        tokenizer.decode(ids, skip_special_tokens=True),
                        "stop" if ids[-1] in stop_ids else "length",
                    )
                num_done += len(batch)
                advance(num_done)
        measured = [prediction for prediction in predictions if prediction is not None]
        write_results(draft.dir, draft.metrics, measured, config, time.monotonic() - start_s)
    return open_artifact(out, kind="evaluation")

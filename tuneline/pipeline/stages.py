"""The stages of a line, in order: one row each, and one plain step that calls its room."""

from __future__ import annotations

from pathlib import Path

from export.config import ParityConfig
from tuneline.core.artifact import Artifact
from tuneline.core.errors import ConfigError
from tuneline.models.template import dataset_settings
from tuneline.pipeline.form_stages import form_stages
from tuneline.pipeline.heldout import (
    require_answers,
    require_compared,
    require_measured,
    require_prompts,
)
from tuneline.pipeline.products.table import product_of
from tuneline.pipeline.run_config import Run, RunConfig, resolve_base
from tuneline.pipeline.served_stages import evaluation_config, served_stages
from tuneline.pipeline.server import (
    model_source,
    require_served_weights,
)
from tuneline.pipeline.stage import (
    ADAPTER,
    DATASET,
    EVALUATION_BASE,
    EVALUATION_REPORT,
    EVALUATION_SERVED,
    EVALUATION_TUNED,
    FORGETTING,
    LOADTEST,
    MODEL,
    PARITY_MERGED,
    PARITY_SERVED,
    PREFERENCES,
    REFERENCE,
    Group,
    Line,
    Made,
    Stage,
)
from tuneline.pipeline.stage_inputs import (
    data_inputs,
    evaluation_inputs,
    forgetting_inputs,
    training_inputs,
)
from tuneline.pipeline.targets import require_targets


def _dataset(line: Line, _made: Made, out: Path) -> Artifact:
    from training import prepare_dataset

    config, limit = line.run.config, None
    if config.data.checks.length.action == "fix":
        limit = (line.base, config.training)
    return prepare_dataset(config.data, relative_to=line.run.path.parent, out=out, limit=limit)


def _adapter(line: Line, made: Made, out: Path) -> Artifact:
    from training import train_adapter

    config, folder = line.run.config.training, line.run.path.parent
    return train_adapter(
        config, made[DATASET], line.base, out, relative_to=folder, on_heldout=line.on_heldout
    )


def _evaluation_preferences(line: Line, made: Made, out: Path) -> Artifact:
    from training import evaluate_preferences

    config = line.run.config
    return evaluate_preferences(
        config.evaluation, config.training, made[DATASET], line.base, made[ADAPTER], out,
        relative_to=line.run.path.parent,
    )  # fmt: skip


def _reference(line: Line, made: Made, out: Path) -> Artifact:
    from training import build_reference

    config = line.run.config.reference
    return build_reference(config, made[DATASET], line.base, made[ADAPTER], out)


def _evaluation_base(line: Line, made: Made, out: Path) -> Artifact:
    from training import evaluate_model

    return evaluate_model(evaluation_config(line.run), made[DATASET], line.base, None, out)


def _evaluation_tuned(line: Line, made: Made, out: Path) -> Artifact:
    from training import evaluate_model

    config = evaluation_config(line.run)
    return evaluate_model(config, made[DATASET], line.base, made[ADAPTER], out)


def _evaluation_report(line: Line, made: Made, out: Path) -> Artifact:
    from training import report_evaluations

    config = evaluation_config(line.run)
    return report_evaluations(config, made[EVALUATION_BASE], made[EVALUATION_TUNED], out)


def _forgetting(line: Line, made: Made, out: Path) -> Artifact:
    from training import measure_forgetting

    batch_size = line.run.config.evaluation.batch_size
    settings = dataset_settings(made[DATASET])
    return measure_forgetting(
        line.base, made[ADAPTER], out, batch_size=batch_size, settings=settings
    )


def _model(line: Line, made: Made, out: Path) -> Artifact:
    from export import merge_adapter

    config, trained = line.run.config.export.merge, made[ADAPTER]
    if trained.kind == "model":
        return merge_adapter(config, model_source(trained), (), out)
    return merge_adapter(config, line.base, trained, out)


def _parity_merged(line: Line, made: Made, out: Path) -> Artifact:
    from export import prove_model

    config, model = _merged_parity(line.run.config), model_source(made[MODEL])
    return prove_model(config, made[REFERENCE], model, out, form="merged")


def _require_targets(run: Run) -> None:
    require_targets(run.config, resolve_base(run, download=True))


def stages(run: Run) -> list[Stage]:
    """Return the stages of a run, in order; the training method decides how its model is judged."""
    method, judged_by = run.config.training.method, product_of(run.config).known_by
    left_out = set() if method.compares else {PREFERENCES}
    if not method.has_expected_answers:
        left_out |= {EVALUATION_BASE, EVALUATION_TUNED, EVALUATION_REPORT, EVALUATION_SERVED}
    made = [stage for stage in _all_stages(run) if stage.name not in left_out]
    if method.answers_prompts:
        return made
    # A model of scores or vectors is merged, proven and load-tested if the run serves them.
    last = (MODEL, PARITY_SERVED, LOADTEST) if run.config.serving.pools else ()
    return [stage for stage in made if stage.name in (DATASET, ADAPTER, judged_by, *last)]


def _all_stages(run: Run) -> list[Stage]:
    config = run.config
    whole = config.training.finetuning_type == "full"
    tuned = "the whole model" if whole else "base + adapter"
    return [
        Stage(
            DATASET, "Check, clean and split the data", "data", "dataset", (config.data,), (),
            _dataset, inputs=data_inputs, version=9,
        ),
        Stage(
            EVALUATION_BASE, "Evaluate the base model", "evaluation", "evaluation",
            (config.evaluation,), (DATASET,), _evaluation_base, inputs=evaluation_inputs,
            accepts=(require_answers,), label="base model", version=6,
        ),
        Stage(
            ADAPTER, "Fine-tune the whole model" if whole else "Fine-tune a LoRA adapter",
            "training", "model" if whole else "adapter", (config.training,), (DATASET,), _adapter,
            inputs=training_inputs, prepare=(_require_targets,), accepts=(require_measured,),
            # Reward models are trained on all that the template writes.
            version=12 if config.training.method.makes == "scores" else 11,
        ),
        Stage(
            EVALUATION_TUNED, f"Evaluate {tuned}", "evaluation", "evaluation",
            (config.evaluation,), (DATASET, ADAPTER), _evaluation_tuned, inputs=evaluation_inputs,
            accepts=(require_answers,), label=tuned, version=6,
        ),
        Stage(
            EVALUATION_REPORT, "Compare base and tuned answers", "evaluation",
            "evaluation-report", (config.evaluation,), (EVALUATION_BASE, EVALUATION_TUNED),
            _evaluation_report, version=4,
        ),
        Stage(
            PREFERENCES, "Compare preferences with the base", "evaluation", "preferences",
            (config.evaluation, config.training), (DATASET, ADAPTER), _evaluation_preferences,
            inputs=training_inputs, accepts=(require_compared,), label=tuned, version=8,
        ),
        *product_of(config).judged(config, tuned),
        *_forgetting_stage(config),
        Stage(
            REFERENCE, "Record the trained model's answers", "training", "reference",
            (config.reference,), (DATASET, ADAPTER), _reference, accepts=(require_prompts,),
            version=5,
        ),
        Stage(
            MODEL, "Cast the trained model" if whole else "Merge adapter and base", "export",
            "model", (config.export.merge,), (ADAPTER,), _model, prepare=(require_served_weights,),
            version=5,
        ),
        Stage(
            PARITY_MERGED, "Prove the merged model", "parity", "parity", (_merged_parity(config),),
            (REFERENCE, MODEL), _parity_merged, version=2,
        ),
        *form_stages(run),
        *served_stages(config),
    ]  # fmt: skip


def _forgetting_stage(config: RunConfig) -> list[Stage]:
    """Return the stage of the forgetting suite, if the run asks for it."""
    if not config.evaluation.forgetting:
        return []
    return [
        Stage(
            FORGETTING, "Ask the forgetting suite", "evaluation", "forgetting", (),
            (DATASET, ADAPTER),
            _forgetting, inputs=forgetting_inputs, version=5,
        )
    ]  # fmt: skip


def stage_names(
    run: Run, *, groups: tuple[Group, ...] = (), kinds: tuple[str, ...] = ()
) -> tuple[str, ...]:
    """Return the names of the stages in any of `groups`, and of those that make one of `kinds`.

    Raises:
        ConfigError: The line has no such stage. No name would mean all stages.
    """
    names = tuple(s.name for s in stages(run) if s.group in groups or s.kind in kinds)
    if not names:
        raise ConfigError(
            f"{run.path}: training.method {run.config.training.method.type} makes a model that "
            "answers no prompt; expected a line that goes on after its evaluation",
            hint=f"Try: {run.command('up')}",
        )
    return names


def _merged_parity(config: RunConfig) -> ParityConfig:
    """Return the part of the section that judges the merged model."""
    return ParityConfig(tolerances=config.export.parity.tolerances)

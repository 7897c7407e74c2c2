"""The stages that ask the running server: one row each, and one plain step that calls its room."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

from loadtest.config import LoadTestConfig
from training.config import EvaluationConfig
from tuneline.core.artifact import Artifact
from tuneline.core.tolerances import ARITHMETIC_TOLERANCES, add_tolerances
from tuneline.models.source import computed_dtype
from tuneline.pipeline.lengths import require_prompts_fit
from tuneline.pipeline.load_route import require_route
from tuneline.pipeline.products.product import Product, ServedProof
from tuneline.pipeline.products.table import load_prompts, product_of
from tuneline.pipeline.run_config import Run, RunConfig
from tuneline.pipeline.server import (
    served,
    served_formats,
    served_stage,
    serving_config,
)
from tuneline.pipeline.stage import (
    DATASET,
    EVALUATION_SERVED,
    LOADTEST,
    PARITY_SERVED,
    REFERENCE,
    Line,
    Made,
    Stage,
)
from tuneline.pipeline.stage_inputs import (
    evaluation_served_inputs,
    loadtest_inputs,
    served_inputs,
    workload_inputs,
)


def loadtest_config(run: Run) -> LoadTestConfig:
    """Return the section `loadtest`, with the workload file's path as this process sees it."""
    config = run.config.loadtest
    if config.workload.path is None:
        return config
    path = run.resolve(config.workload.path)
    workload = config.workload.model_copy(update={"path": path})
    return config.model_copy(update={"workload": workload})


def evaluation_config(run: Run) -> EvaluationConfig:
    """Return the section `evaluation`, with paths of files as this process sees them."""
    config = run.config.evaluation
    paths = {name: getattr(config, name) for name in ("json_schema", "python")}
    return config.model_copy(
        update={name: str(run.resolve(path)) for name, path in paths.items() if path is not None}
    )


def served_stages(config: RunConfig) -> list[Stage]:
    """Return the stages that ask the running server."""
    served_by, serving = served_stage(config), config.serving
    answers_by: tuple[str, ...] = (DATASET, served_by)
    if config.loadtest.answers is not None:
        answers_by = (*answers_by, REFERENCE)
    loadtest = Stage(
        LOADTEST, "Load-test the endpoint", "served", "load-report",
        (serving, config.loadtest), answers_by, _loadtest,
        inputs=loadtest_inputs, prepare=(_require_server, _require_workload),
        accepts=(_fits("loadtest.max_tokens"),), version=6,
    )  # fmt: skip
    product = product_of(config)
    if product.proof is not None and serving.pools:
        return [_numbers_served(config, product, product.proof), loadtest]
    return [
        Stage(
            PARITY_SERVED, "Prove the served model", "served", "parity",
            (serving, serving.parity), (REFERENCE, served_by), _parity_served,
            inputs=served_inputs, prepare=(_require_server,),
            accepts=(_fits("reference.max_new_tokens"),), version=2,
        ),
        Stage(
            EVALUATION_SERVED, "Evaluate through the API", "served", "evaluation",
            (serving, config.evaluation), (DATASET, served_by), _evaluation_served,
            inputs=evaluation_served_inputs, prepare=(_require_server,),
            accepts=(_fits("evaluation.max_new_tokens"),), label="served by vLLM", version=6,
        ),
        loadtest,
    ]  # fmt: skip


def _parity_served(line: Line, made: Made, out: Path) -> Artifact:
    from export import weight_tolerances
    from serving import prove_served

    serving = line.run.config.serving
    what = served(line.run, line.base, made)
    dtype = computed_dtype(serving.dtype, what.model)
    # The reference has the same base weights, so only merged weights add a rounding of their own.
    rounding = weight_tolerances(what.model, dtype) if what.adapter is None else None
    return prove_served(
        serving.parity,
        made[REFERENCE],
        line.endpoint(made),
        out,
        inputs=what.inputs,
        dtype=dtype,
        weights=rounding,
    )


def _numbers_served(config: RunConfig, product: Product, proof: ServedProof) -> Stage:
    """Return the stage that proves the served scores or vectors."""

    def prove(line: Line, made: Made, out: Path) -> Artifact:
        serving = line.run.config.serving
        what = served(line.run, line.base, made)
        return proof.prove(
            serving.parity, made[product.known_by], line.endpoint(made), out,
            formats=served_formats(serving, what.model), inputs=what.inputs,
            **proof.options(serving),
        )  # fmt: skip

    return Stage(
        PARITY_SERVED, f"Prove the served {proof.routes.gives}", "served", proof.kind,
        (config.serving, config.serving.parity), (product.known_by, served_stage(config)), prove,
        inputs=served_inputs, prepare=(_require_server,), version=proof.version,
    )  # fmt: skip


def _evaluation_served(line: Line, made: Made, out: Path) -> Artifact:
    from training import evaluate_endpoint

    what = served(line.run, line.base, made)
    return evaluate_endpoint(
        evaluation_config(line.run),
        made[DATASET],
        line.endpoint(made),
        out,
        inputs=what.inputs,
        tokenizer_folder=what.model.path if what.adapter is None else what.adapter.path,
    )


def _loadtest(line: Line, made: Made, out: Path) -> Artifact:
    from export import weight_tolerances
    from loadtest import run_loadtest

    config = loadtest_config(line.run)
    what = served(line.run, line.base, made)
    tolerances = None
    if config.answers is not None:
        dtype = computed_dtype(line.run.config.serving.dtype, what.model)
        tolerances = ARITHMETIC_TOLERANCES[dtype]
        if what.adapter is None and (rounding := weight_tolerances(what.model, dtype)) is not None:
            tolerances = add_tolerances(rounding, tolerances)
    return run_loadtest(
        config,
        line.endpoint(made),
        out,
        prompts=load_prompts(line.run, made[DATASET]),
        inputs=what.inputs,
        reference=made[REFERENCE] if config.answers is not None else None,
        tolerances=tolerances,
    )


def _require_server(run: Run) -> None:
    from serving import require_server

    require_server(serving_config(run))


def _require_workload(run: Run) -> None:
    require_route(run)
    workload_inputs(run)


def _fits(key: str) -> Callable[[Run, Artifact], None]:
    return functools.partial(require_prompts_fit, key)

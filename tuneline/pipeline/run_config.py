"""`run.yaml`: one file for a whole line, one section per room. No machine-learning imports."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator

from export.config import ExportConfig
from k8s.config import DeployConfig
from loadtest.config import LoadTestConfig
from serving.config import ServingConfig
from training.config import DataConfig, EvaluationConfig, ReferenceConfig, TrainingConfig
from training.config.search import SearchConfig
from tuneline.core.config import StrictModel, load_config
from tuneline.core.config_problems import NAME
from tuneline.core.secrets import keys_with_passwords
from tuneline.models.source import EMBEDDED, ModelSource, find_model
from tuneline.pipeline import DEFAULT_RUNS
from tuneline.pipeline.products.routes import ROUTES
from tuneline.release.config import ReleaseConfig

"""Routes by which the scores of a reward model are proven; the first one that is open is asked."""


class RunConfig(StrictModel):
    """A whole line, from a data file to a load-tested endpoint."""

    name: str = Field(pattern=NAME)
    """Names the run's directory, the served model and the Kubernetes objects: a lower-case letter,
    then lower-case letters, digits and hyphens, at most 42 characters."""
    base_model: str = EMBEDDED
    """`tiny-base`, a model folder (relative to this file), or a Hugging Face id."""
    base_revision: str | None = None
    """Branch, tag or commit, for a Hugging Face id."""
    data: DataConfig
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    reference: ReferenceConfig = ReferenceConfig()
    export: ExportConfig = ExportConfig()
    serving: ServingConfig = ServingConfig()
    loadtest: LoadTestConfig = LoadTestConfig()
    k8s: DeployConfig = DeployConfig()
    release: ReleaseConfig = ReleaseConfig()
    search: SearchConfig = Field(default=SearchConfig(), json_schema_extra={"keyed": False})

    @model_validator(mode="before")
    @classmethod
    def _check_passwords(cls, values: Any) -> Any:
        # Releases, reports and manifests repeat run.yaml. A system prompt is text, which may quote.
        if found := [key for key in keys_with_passwords(values) if key != "data.system_prompt"]:
            raise ValueError(
                f"{', '.join(found)}: a URL has a password or a signature, which every release and "
                "report would show; expected a URL without one, and the credentials in the "
                "environment or in a Secret of the cluster"
            )
        return values

    @model_validator(mode="before")
    @classmethod
    def _set_route_of_scores(cls, values: Any) -> Any:
        """Let the load test ask the route of the scores or vectors, unless the run names one."""
        routes = _section(_section(values, "serving"), "routes")
        load = _section(values, "loadtest")
        workload = _section(load, "workload")
        if not isinstance(routes, list) or not isinstance(workload, dict):
            return values
        found = [{"route": one} for one in ("embeddings", "pooling", "classify") if one in routes]
        found += [{"route": "rerank"}] if "score" in routes else []
        if not found:
            return values
        return {**values, "loadtest": {**load, "workload": {**found[0], **workload}}}

    @model_validator(mode="after")
    def _check_served(self) -> Self:
        reasons = self.training.merged_only()
        if self.serving.mode == "adapter" and reasons:
            raise ValueError(
                f"serving.mode: adapter cannot serve what training makes ({', '.join(reasons)}); "
                "set serving.mode: merged"
            )
        return self

    @model_validator(mode="after")
    def _check_scores(self) -> Self:
        if not self.serving.pools:
            return self
        if self.training.method.answers_prompts:
            raise ValueError(
                "serving.routes has vectors or scores, and the proofs of this line ask for text; "
                "serve them with: tuneline serve DIR --set 'serving.routes=[embeddings]'"
            )
        if problem := ROUTES[self.training.method.makes].problem(set(self.serving.routes)):
            raise ValueError(problem)
        return self

    @model_validator(mode="after")
    def _check_judge(self) -> Self:
        if self.evaluation.judge is not None and not self.training.method.answers_prompts:
            raise ValueError(
                "evaluation.judge compares answers, and this method's model gives none; remove "
                "evaluation.judge, or set training.method: {type: dpo}"
            )
        return self


def _section(values: Any, key: str) -> Any:
    """Return the value of a key that is not validated yet; an empty section if it has none."""
    return values.get(key, {}) if isinstance(values, dict) else None


@dataclass(frozen=True)
class Run:
    """A validated run.yaml and where its artifacts lie."""

    path: Path
    config: RunConfig
    dir: Path
    """`runs/<name>` below the current directory, unless told otherwise."""
    overrides: tuple[str, ...] = ()
    """The values of `--set` that it was read with."""

    def command(self, *words: str) -> str:
        """Return a command of Tuneline on this run, with the options that make it this run."""
        sets = [part for one in self.overrides for part in ("--set", one)]
        runs_dir = self.dir.parent
        place = [] if runs_dir == DEFAULT_RUNS else ["--runs-dir", str(runs_dir)]
        return shlex.join(["tuneline", *words, str(self.path), *sets, *place])

    def resolve(self, path: str | Path) -> Path:
        """Return the place of a path of run.yaml, which starts from the directory of that file."""
        return self.path.parent / path


def load_run(
    path: Path,
    overrides: Sequence[str] = (),
    runs_dir: Path = DEFAULT_RUNS,
    *,
    values: Mapping[str, Any] | None = None,
) -> Run:
    """Read and validate a run.yaml.

    Args:
        values: More overrides, by the path of their key.

    Raises:
        ConfigError: Every problem in it, each with its key.
    """
    config = load_config(path, RunConfig, overrides, values)
    return Run(path, config, runs_dir / config.name, tuple(overrides))


def training_config(run: Run) -> TrainingConfig:
    """Return the section `training`, with the method's paths as this process sees them."""
    config = run.config.training
    method = config.method.resolved(run.path.parent)
    return config.model_copy(update={"method": method})


def resolve_trained(run: Run) -> ModelSource:
    """Return the base model, and have the models that the method reads here too.

    Raises:
        MissingError: A model cannot be had.
    """
    run.config.training.method.models(run.path.parent, download=True)
    return resolve_base(run, download=True)


def resolve_base(run: Run, *, download: bool) -> ModelSource:
    """Return the base model as it is cached, so that a second `up` asks the network nothing.

    Raises:
        MissingError: The model is not cached, and `download` is false or does not find it.
    """
    return find_model(
        run.config.base_model,
        relative_to=run.path.parent,
        revision=run.config.base_revision,
        download=download,
    )

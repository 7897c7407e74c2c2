"""The model that the line serves, and the server, which starts when a stage first asks it."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Any

from serving.config import ServingConfig
from tuneline.core.artifact import Artifact, Input
from tuneline.core.endpoint import Endpoint
from tuneline.core.environment import hardware_facts
from tuneline.core.errors import ConfigError
from tuneline.core.reference import reference_date
from tuneline.models.companion_files import chat_template
from tuneline.models.source import ModelSource, computed_dtype
from tuneline.models.template import with_date
from tuneline.pipeline.run_config import Run, RunConfig
from tuneline.pipeline.stage import ADAPTER, MODEL, REFERENCE, Made
from tuneline.pipeline.stage_inputs import drafter, served_files, with_drafter

DATED = (REFERENCE, ADAPTER)
"""Stages whose artifacts record the day that the chat template writes in place of today."""


@dataclass(frozen=True)
class Served:
    """The model that the server loads, and the adapter that it applies, if any."""

    model: ModelSource
    adapter: Artifact | None

    @property
    def inputs(self) -> list[Input]:
        """Return the inputs for the manifest of a measurement of this server."""
        if self.adapter is None:
            return [self.model.as_input("model")]
        return [self.model.as_input("base"), self.adapter.as_input("adapter")]


def require_served_weights(run: Run) -> None:
    """Check that vLLM can compute with the merged weights on this machine.

    Raises:
        ConfigError: INT8 weights are served in float32 on a CPU.
    """
    export, serving = run.config.export, run.config.serving
    is_int8 = export.merge.quantize == "int8" and serving.mode == "merged"
    if is_int8 and serving.dtype == "float32" and not hardware_facts()["gpus"]:
        raise ConfigError(
            f"{run.path}: serving.dtype: float32 with export.merge.quantize: int8: vLLM's INT8 "
            "product on a CPU takes bfloat16 or float16, and fails at the first prompt",
            hint="Try: --set serving.dtype=bfloat16, or --set export.merge.quantize=null",
        )


def serves_adapter(config: RunConfig) -> bool:
    """Return whether the line serves the base model with its adapter, not the merged model."""
    return config.serving.mode == "adapter"


def served_stage(config: RunConfig) -> str:
    """Return the name of the stage whose artifact is served."""
    return ADAPTER if serves_adapter(config) else MODEL


def serving_config(run: Run) -> ServingConfig:
    """Return the section `serving`, with its paths as this process sees them."""
    config = run.config.serving
    paths: dict[str, Any] = {}
    if config.keys_file is not None:
        paths["keys_file"] = str(run.resolve(config.keys_file))
    if config.compile_cache is not None:
        paths["compile_cache"] = str(run.resolve(config.compile_cache))
    if config.adapters is not None:
        root = str(run.resolve(config.adapters.root))
        paths["adapters"] = config.adapters.model_copy(update={"root": root})
    if config.recording is not None:
        recorded = {"folder": str(run.resolve(config.recording.folder))}
        paths["recording"] = config.recording.model_copy(update=recorded)
    named: dict[str, Any] = {name: str(path.resolve()) for name, path in served_files(run).items()}
    if (found := drafter(run)) is not None:
        name, folder = found
        named[name] = with_drafter(name, config.extra_args[name], folder)
    if named:
        paths["extra_args"] = {**config.extra_args, **named}
    return config.model_copy(update=paths)


def measured_serving(run: Run) -> ServingConfig:
    """Return the section of the server that the stages ask: for the run's own model only."""
    return serving_config(run).model_copy(update={"adapters": None})


def served(run: Run, base: ModelSource, made: Made) -> Served:
    """Return what the run serves, from the artifacts that are made."""
    artifact = made[served_stage(run.config)]
    if serves_adapter(run.config):
        return Served(base, artifact)
    return Served(model_source(artifact), None)


def model_source(model: Artifact) -> ModelSource:
    """Return a model artifact as a model that any room reads."""
    return ModelSource(model.path.name, model.path, model.digest, model.kind)


@dataclass
class LazyServer:
    """A server that starts on the first request for its endpoint and ends with `stack`."""

    run: Run
    base: ModelSource
    stack: ExitStack
    started: Endpoint | None = None

    def endpoint(self, made: Made) -> Endpoint:
        """Return the endpoint of the running server.

        Raises:
            ServerError: The server does not start.
        """
        if self.started is None:
            self.started = self.stack.enter_context(self._running(made)).endpoint
        return self.started

    def _running(self, made: Made) -> AbstractContextManager[Any]:
        from serving import running_server

        config = self.run.config
        what = served(self.run, self.base, made)
        return running_server(
            self._with_date(measured_serving(self.run), what, made),
            what.model,
            name=config.name,
            adapter=what.adapter,
            log_path=self.run.dir / "vllm.log",
            port=config.serving.port,
        )

    def _with_date(self, config: ServingConfig, what: Served, made: Made) -> ServingConfig:
        """Return the section with a template that writes the run's date in place of today's.

        The stages compare with a reference of that day. `tuneline serve` uses the model's own
        template.
        """
        folder = what.model.path if what.adapter is None else what.adapter.path
        template = chat_template(folder)
        date = next((reference_date(made[name]) for name in DATED if name in made), None)
        if not isinstance(template, str) or date is None or "chat_template" in config.given_args:
            return config
        dated = with_date(template, date)
        if dated == template:
            return config
        path = self.run.dir / "served_chat_template.jinja"
        path.write_text(dated, encoding="utf-8")
        extra_args = {**config.extra_args, "chat_template": str(path.resolve())}
        return config.model_copy(update={"extra_args": extra_args})


def served_formats(serving: ServingConfig, model: ModelSource) -> list[str]:
    """Return the number formats of a model's weights and of its server's arithmetic."""
    return sorted({computed_dtype("auto", model), computed_dtype(serving.dtype, model)})

"""The target of a load test: a run that is served for it, or any URL."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuneline.commands.option_values import endpoint_of, open_run, refuse, required
from tuneline.core.progress import logger

if TYPE_CHECKING:
    from loadtest.config import LoadTestConfig
    from tuneline.pipeline.finished_run import LoadTarget


@dataclass(frozen=True)
class Chosen:
    """The options that say what is sent, and to which endpoint.

    Attributes:
        run_file: A run.yaml, whose section `loadtest` is taken.
        overrides: Values of `--set`.
        runs_dir: Where runs keep their artifacts.
        url: An endpoint, in place of the one that the run serves.
        model: The model's name at `url`.
        api_key_env: The environment variable with the key for `url`.
        prompts: A file of prompts for `url`.
        quick: Options of one scenario, by their names in `loadtest.config.quick_config`.
    """

    run_file: Path | None
    overrides: list[str] | None
    runs_dir: Path
    url: str | None = None
    model: str | None = None
    api_key_env: str | None = None
    prompts: Path | None = None
    quick: dict[str, Any] = field(default_factory=dict)

    def config(self) -> LoadTestConfig:
        """Return the section `loadtest` of the run, or one scenario from options."""
        from loadtest.config import quick_config
        from tuneline.pipeline.served_stages import loadtest_config

        if self.run_file is None:
            return quick_config(**self.quick, overrides=self.overrides or ())
        self.refuse_quick()
        return loadtest_config(open_run(self.run_file, self.overrides, self.runs_dir))

    def refuse_quick(self) -> None:
        """Check that no option of a scenario is given with a run, which has its own."""
        refuse("with RUN.yaml; use --set loadtest...", flags(self.quick))

    def url_options(self) -> dict[str, Any]:
        """Return the options that do nothing without `--url`."""
        return {
            "--model": self.model,
            "--api-key-env": self.api_key_env,
            "--prompts": self.prompts,
        }


@contextmanager
def load_target(chosen: Chosen) -> Iterator[LoadTarget]:
    """Return the endpoint at the URL, or serve the run's model for as long as the block lasts.

    Raises:
        ConfigError: The options do not go together.
        NotAnArtifactError: The run's model is not made yet.
        ServerError: The server does not start.
    """
    from loadtest import read_prompts
    from tuneline.pipeline.finished_run import LoadTarget, serve_for_loadtest
    from tuneline.pipeline.plan import current
    from tuneline.pipeline.products.table import load_prompts
    from tuneline.pipeline.stage import DATASET

    run_file, prompts = chosen.run_file, chosen.prompts
    if chosen.url is None and run_file is not None:
        chosen.refuse_quick()
        refuse("without --url", chosen.url_options())
        with serve_for_loadtest(open_run(run_file, chosen.overrides, chosen.runs_dir)) as target:
            yield target
        return
    url = required(chosen.url, "RUN.yaml or --url")
    endpoint = endpoint_of(url, chosen.model, chosen.api_key_env)
    config = chosen.config()
    source = config.workload.source
    if source != "prompts":
        refuse(f"with workload.source: {source}", {"--prompts": prompts})
    if run_file is not None and prompts is None and config.workload.source == "prompts":
        run = open_run(run_file, chosen.overrides, chosen.runs_dir)
        (dataset,) = current(run, DATASET)
        messages = load_prompts(run, dataset)
    else:
        messages = read_prompts(prompts)
        if prompts is None and config.workload.source == "prompts":
            logger.info("  %d built-in questions; give your own with --prompts", len(messages))
    yield LoadTarget(config, endpoint, messages, [], f"{endpoint.model} at {endpoint.url}")


def flags(quick: dict[str, Any]) -> dict[str, Any]:
    """Return the options of a scenario by their names on the command line."""
    names = {"rate_rps": "--rate", "num_requests": "--requests", "duration_s": "--duration"}
    return {names.get(key, f"--{key.replace('_', '-')}"): value for key, value in quick.items()}

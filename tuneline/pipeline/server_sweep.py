"""`tuneline loadtest sweep RUN.yaml --servers FILE`: a run under several server settings."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError

from tuneline.core.artifact import Artifact
from tuneline.core.bounded_yaml import load_yaml
from tuneline.core.config import StrictModel, first_problem
from tuneline.core.endpoint import Endpoint
from tuneline.core.errors import ConfigError
from tuneline.pipeline.finished_run import checked
from tuneline.pipeline.products.table import load_prompts
from tuneline.pipeline.run_config import Run, load_run, resolve_base
from tuneline.pipeline.served_stages import loadtest_config
from tuneline.pipeline.server import LazyServer, served, served_stage
from tuneline.pipeline.stage import DATASET
from tuneline.pipeline.up import lock_run

EXAMPLE = "- {name: few, set: {serving.max_num_seqs: 8}}"


class ServerEntry(StrictModel):
    """One entry of the list."""

    name: str = Field(min_length=1, max_length=40)
    set: dict[str, Any] = Field(default_factory=dict)
    """Keys of run.yaml below `serving`, by their path."""


def sweep_run(
    run_file: Path,
    overrides: Sequence[str],
    runs_dir: Path,
    servers: Path,
    out: Path,
    *,
    concurrencies: Sequence[int],
    num_requests: int,
) -> Artifact:
    """Serve a finished run with each of the listed settings, and measure it; write a `load-pareto`.

    Raises:
        ConfigError: The list cannot be used; every problem names its entry.
        NotAnArtifactError: The run is not finished.
    """
    from loadtest import Contender, sweep_servers

    run = load_run(run_file, overrides, runs_dir)
    settings = read_servers(servers)
    runs = {
        name: load_run(run_file, overrides, runs_dir, values=values)
        for name, values in settings.items()
    }
    made = checked(run, DATASET, served_stage(run.config))
    base = resolve_base(run, download=True)

    @contextlib.contextmanager
    def serve(other: Run) -> Iterator[Endpoint]:
        with ExitStack() as stack:
            yield LazyServer(other, base, stack).endpoint(made)

    with lock_run(run):
        return sweep_servers(
            loadtest_config(run),
            {
                name: Contender(settings[name], functools.partial(serve, other))
                for name, other in runs.items()
            },
            out,
            prompts=load_prompts(run, made[DATASET]),
            concurrencies=concurrencies,
            inputs=served(run, base, made).inputs,
            num_requests=num_requests,
        )


def read_servers(path: Path) -> dict[str, Mapping[str, Any]]:
    """Return the settings of each server of a list, by name.

    Raises:
        ConfigError: The file is not such a list; every problem names its entry.
    """
    try:
        entries = load_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is not YAML: {error}") from None
    if not isinstance(entries, list) or not entries:
        raise ConfigError(f"{path}: expected a list of servers", hint=f"Try: {EXAMPLE}")
    problems: list[str] = []
    found: dict[str, Mapping[str, Any]] = {}
    for number, entry in enumerate(entries):
        where = f"{path}: entry {number + 1}"
        try:
            server = ServerEntry.model_validate(entry)
        except ValidationError as error:
            problems.append(f"{where}: {first_problem(error, 'the entry')}")
            continue
        others = [key for key in server.set if not key.startswith("serving.")]
        if others:
            problems.append(f"{where}: {', '.join(others)}: expected keys below serving")
        if server.name in found:
            problems.append(f"{where}: name {server.name} is there twice")
        found[server.name] = server.set
    if problems:
        raise ConfigError(problems, hint=f"Try: {EXAMPLE}")
    return found

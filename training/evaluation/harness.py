"""Tasks of lm-evaluation-harness, asked of a served model through `/v1/completions`.

The harness runs as a program of its own: it logs, keeps caches and reads its key from the
environment. Only OPENAI_API_KEY of our environment's secrets reaches it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from tuneline.core.artifact import Artifact, new_artifact, open_artifact
from tuneline.core.endpoint import Endpoint
from tuneline.core.environment import require
from tuneline.core.errors import ConfigError, ServerError
from tuneline.core.progress import logger
from tuneline.core.secrets import without_secrets

RESULTS_FILE = "harness.json"
NUM_CONCURRENT = 4
LAST_LINES = 15

# The harness reads all its task files (14,000 in 0.4.13) before it looks for one of them. Its
# command line has no option against that.
ONLY_THE_FOLDERS_TASKS = """
import functools
from lm_eval.__main__ import cli_evaluate
from lm_eval.tasks import TaskManager
TaskManager.__init__ = functools.partialmethod(TaskManager.__init__, include_defaults=False)
cli_evaluate()
"""


def run_harness(
    endpoint: Endpoint,
    tokenizer_folder: Path,
    tasks: Sequence[str],
    out: Path,
    *,
    include_path: Path | None = None,
    limit: int | None = None,
) -> Artifact:
    """Write the harness's results of `tasks` as a `harness` artifact.

    Tasks that compare the likelihood of choices need a server that gives log-probabilities of
    prompt tokens (`echo`), as vLLM does.

    Args:
        endpoint: The served model.
        tokenizer_folder: Its tokenizer.
        tasks: Names of tasks or groups.
        out: The artifact's directory.
        include_path: A folder with further task files.
        limit: The first documents of each task; all if not given.

    Raises:
        MissingError: lm-eval is not installed.
        ConfigError: The harness does not know a task, or has no result.
        ServerError: The harness failed.
    """
    require("lm_eval", "harness")
    config = {"tasks": list(tasks), "limit": limit, "model": endpoint.model}
    with new_artifact(out, "harness", config=config) as draft:
        with tempfile.TemporaryDirectory() as folder:
            command = _command(endpoint, tokenizer_folder, tasks, include_path, limit, folder)
            logger.info("  lm-evaluation-harness: %s", ", ".join(tasks))
            environment = without_secrets(os.environ)
            environment["OPENAI_API_KEY"] = endpoint.api_key or "none"
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, check=False
            )
            found = sorted(Path(folder).rglob("results*.json"))
            # A table comes after the results, and a perplexity of 100 digits breaks it.
            if not found:
                raise _failure(done, endpoint, tasks)
            text = found[-1].read_text(encoding="utf-8")
            results = json.loads(text, parse_constant=lambda _: None)
        parts = ("results", "versions", "n-shot", "n-samples")
        kept = {part: results[part] for part in parts if part in results}
        text = json.dumps(kept, indent=2, ensure_ascii=False) + "\n"
        (draft.dir / RESULTS_FILE).write_text(text, encoding="utf-8")
        draft.metrics["served_model"] = endpoint.model
        draft.metrics["tasks"] = {
            name: {key: value for key, value in row.items() if isinstance(value, int | float)}
            for name, row in results["results"].items()
        }
    return open_artifact(out, kind="harness")


def _command(
    endpoint: Endpoint,
    tokenizer_folder: Path,
    tasks: Sequence[str],
    include_path: Path | None,
    limit: int | None,
    folder: str,
) -> list[str]:
    model: dict[str, Any] = {
        "model": endpoint.model,
        "base_url": f"{endpoint.url}/completions",
        "tokenizer": str(tokenizer_folder.resolve()),
        "tokenizer_backend": "huggingface",
        "num_concurrent": NUM_CONCURRENT,
    }
    own = include_path is not None and set(tasks) <= task_names(include_path)
    program = ["-c", ONLY_THE_FOLDERS_TASKS] if own else ["-m", "lm_eval"]
    command = [sys.executable, "-P", *program, "run", "--model", "local-completions"]
    command += ["--model_args", ",".join(f"{key}={value}" for key, value in model.items())]
    command += ["--tasks", ",".join(tasks), "--output_path", folder]
    command += [] if include_path is None else ["--include_path", str(include_path)]
    return command + ([] if limit is None else ["--limit", str(limit)])


def task_names(folder: Path) -> set[str]:
    """Return the names of the tasks that files of `folder` define without a group."""
    names = set()
    for path in folder.rglob("*.yaml"):
        try:
            found = yaml.load(path.read_text(encoding="utf-8"), _TaskLoader)  # noqa: S506 (is safe)
        except (OSError, UnicodeDecodeError, yaml.YAMLError):
            continue  # the harness skips it too
        if isinstance(found, dict) and isinstance(found.get("task"), str) and "group" not in found:
            names.add(found["task"])
    return names


class _TaskLoader(yaml.SafeLoader):
    """A loader that reads the harness's own tags, such as `!function`, as None."""


_TaskLoader.add_multi_constructor("!", lambda *_: None)


def _failure(
    done: subprocess.CompletedProcess[str], endpoint: Endpoint, tasks: Sequence[str]
) -> ConfigError | ServerError:
    last = "\n".join(f"  {line}" for line in done.stderr.strip().splitlines()[-LAST_LINES:])
    if "Tasks not found" in done.stderr:
        return ConfigError(
            f"--tasks {','.join(tasks)}: the harness does not know a task\n{last}",
            hint="Try: python -m lm_eval ls tasks",
        )
    return ServerError(
        f"{endpoint.url}: lm-evaluation-harness ended with code {done.returncode}\n{last}"
    )

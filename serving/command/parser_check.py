"""Give the flags of a run to the installed vLLM's own parser, before anything is trained.

The parser takes seconds to import, so it runs in a process of its own, and flags that it has
accepted are remembered by vLLM's version.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from serving.command.environment import inherited
from serving.command.flags import Flag, configured_flags
from serving.command.vllm_version import judge_version, vllm_version
from serving.config import ServingConfig
from tuneline.core.artifact import canonical_digest
from tuneline.core.errors import ConfigError, ServerError

MOST_REMEMBERED = 200
TIMEOUT_S = 300.0


def check_flags(config: ServingConfig) -> str:
    """Check that vLLM takes every flag that `serving:` sets; return what was found.

    Raises:
        ConfigError: vLLM refuses flags; each problem names its key of run.yaml.
        MissingError: vLLM is a version with known holes.
        ServerError: vLLM's parser cannot be started.
    """
    version = vllm_version()
    if version is None:
        return "not checked: vLLM is not installed here"
    warning = judge_version(version)
    flags = configured_flags(config)
    key = canonical_digest([version, [flag.words for flag in flags]])
    accepted = _accepted()
    if key not in accepted:
        problems = flag_problems(flags)
        if problems:
            raise ConfigError(
                problems, hint=f"vLLM {version} refuses them. Try: vllm serve --help=all"
            )
        _remember([*accepted, key])
    return f"vLLM {version} takes all {len(flags)}" + (f"; {warning}" if warning else "")


def flag_problems(flags: Sequence[Flag]) -> list[str]:
    """Return what vLLM's parser refuses, each with the key that sets the flag.

    Raises:
        ServerError: The parser cannot be started.
    """
    root = str(Path(__file__).resolve().parents[2])
    env = inherited(os.environ)
    env |= {"PYTHONPATH": root, "VLLM_LOGGING_LEVEL": "ERROR", "HF_HUB_OFFLINE": "1"}
    try:
        worker = subprocess.run(
            [sys.executable, "-P", "-m", "serving.command.parser_worker"],
            input=json.dumps([flag.words for flag in flags]), env=env, capture_output=True,
            text=True, check=False, timeout=TIMEOUT_S,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise _not_started(str(error)) from None
    try:
        found: list[str | None] = json.loads("[" + worker.stdout.rpartition("\n[")[2])
    except ValueError:
        last = next(iter(worker.stderr.strip().splitlines()[-1:]), "no error message")
        raise _not_started(f"it ended with status {worker.returncode}: {last}") from None
    reasons = [*(flag.reason for flag in flags), "serving"]
    return [
        f"{reason}: {problem}"
        for reason, problem in zip(reasons, found, strict=False)
        if problem is not None
    ]


def _not_started(why: str) -> ServerError:
    return ServerError(
        f"vLLM's parser of flags cannot be started: {why}",
        hint="Try: python -c 'import vllm.entrypoints.launchers.cli_args'",
    )


def cache_file() -> Path:
    """Return the file that remembers accepted flags.

    Raises:
        RuntimeError: The user has no home directory.
    """
    return Path.home() / ".cache" / "tuneline" / "vllm_flags.json"


def _accepted() -> list[str]:
    try:
        found = json.loads(cache_file().read_text(encoding="utf-8"))
    except (OSError, ValueError, RuntimeError):
        return []
    return [str(key) for key in found] if isinstance(found, list) else []


def _remember(keys: Sequence[str]) -> None:
    try:
        cache = cache_file()
        cache.parent.mkdir(parents=True, exist_ok=True)
        draft = cache.with_suffix(f".{os.getpid()}")
        draft.write_text(json.dumps(list(keys)[-MOST_REMEMBERED:]), encoding="utf-8")
        draft.replace(cache)
    except (OSError, RuntimeError):
        pass  # the next check asks vLLM again

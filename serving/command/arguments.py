"""vLLM's command line, from the configuration and the model that is served.

Pure calculation, apart from reading `adapter_config.json`.
"""

from __future__ import annotations

import json
import site
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from serving.command.environment import api_key, artifact_facts, inherited, server_env
from serving.command.keys import readable_keys
from serving.command.lora import adapter_args
from serving.config import ServingConfig
from tuneline.core.artifact import Artifact
from tuneline.core.digests import short_digest
from tuneline.core.errors import ConfigError
from tuneline.models.source import ModelSource
from tuneline.models.template import folder_defaults

MIDDLEWARE = "serving.middleware.TunelineMiddleware"

DEFAULT_KWARGS = "default_chat_template_kwargs"

# Flags that have no `--no-` form; `false` leaves them out.
FLAGS_WITHOUT_NEGATION = frozenset({
    "aggregate-engine-logging", "data-parallel-multi-port-external-lb", "disable-log-stats",
    "grpc", "headless",
})  # fmt: skip

# Flags whose value is one JSON text; a list of words is refused by vLLM's parser.
JSON_FLAGS = frozenset({"allowed-headers", "allowed-methods", "allowed-origins"})

# vLLM's default lets the first structured request choose the grammar backend for all clients, and
# allows white space without end between fields, which a small model may never leave.
STRUCTURED_OUTPUTS = {"backend": "xgrammar", "disable_any_whitespace": True}


@dataclass(frozen=True)
class Command:
    """How to start the server as a process of this machine."""

    argv: list[str]
    env: dict[str, str] = field(repr=False)
    """The whole environment of the process; holds the key, so it is never shown."""
    key: str | None = field(repr=False)
    """The key by which this process asks the server."""


def vllm_command(
    config: ServingConfig,
    *,
    model: ModelSource,
    adapter: Artifact | Path | None,
    served_names: Sequence[str],
    host: str,
    port: int,
    environ: Mapping[str, str],
) -> Command:
    """Return the process that serves `model`, with `adapter` next to it in adapter mode.

    Args:
        served_names: The names that clients ask for; the first is the run's name.
        environ: The environment to start from; it holds the key, if there is one.

    Raises:
        ConfigError: `host` is reachable from other machines and there is no key; or the mode and
            the adapter do not fit each other.
        ArtifactError: The adapter cannot be served next to its base.
    """
    key = api_key(config, host, environ)
    adapter_path = adapter.path if isinstance(adapter, Artifact) else adapter
    args = server_args(
        config,
        model=str(model.path.resolve()),
        adapter=None if adapter_path is None else adapter_path.resolve(),
        served_names=served_names,
        host=host,
        port=port,
        template_defaults=_template_defaults(model.path, adapter_path),
    )
    env = inherited(environ)
    env.update(server_env(config, artifact_facts(model, adapter, served_names[0])))
    here = str(Path(__file__).resolve().parents[2])
    if here not in site.getsitepackages():
        env["PYTHONPATH"] = ":".join(filter(None, [here, environ.get("PYTHONPATH")]))
    if key is not None:
        env["VLLM_API_KEY"] = key
    if config.keys_file is not None:
        env["TUNELINE_KEYS_FILE"] = str(readable_keys(Path(config.keys_file)))
    # -P: the current directory, which may hold a folder named like a library, stays off the path.
    return Command([sys.executable, "-P", "-m", "serving.supervisor.launch", *args], env, key)


def server_args(
    config: ServingConfig,
    *,
    model: str,
    adapter: Path | None,
    served_names: Sequence[str],
    host: str,
    port: int,
    adapter_at: str | None = None,
    template_defaults: Mapping[str, Any] = MappingProxyType({}),
) -> list[str]:
    """Return the arguments of `vllm serve`, the same in a process here and in a container.

    Args:
        model: The model's folder as the server sees it.
        adapter: The adapter's folder as this process sees it, in adapter mode.
        adapter_at: The adapter's folder as the server sees it, if that is another path.
        template_defaults: The variables that the chat template sets itself. The reasoning parsers
            of vLLM read the variables of a request and never the template.

    Raises:
        ConfigError: The mode and the adapter do not fit each other.
        ArtifactError: The adapter cannot be served next to its base.
    """
    if config.mode == "merged" and adapter is not None:
        raise ConfigError(
            f"serving.mode is merged and an adapter is given ({adapter})",
            hint="Set serving.mode to adapter, or leave the adapter out.",
        )
    if config.mode == "adapter" and adapter is None:
        raise ConfigError("serving.mode is adapter and no adapter is given")
    args = [model, "--host", host, "--port", str(port)]
    if adapter is None:
        args += ["--served-model-name", *served_names]
    else:
        args += adapter_args(adapter, adapter_at or str(adapter), served_names)
    for name in (
        "dtype",
        "max_model_len",
        "max_num_seqs",
        "max_num_batched_tokens",
        "gpu_memory_utilization",
        "tensor_parallel_size",
    ):
        args += _flag(name, getattr(config, name))
    if config.enforce_eager:
        args += ["--enforce-eager"]
    args += ["--shutdown-timeout", str(config.shutdown_timeout)]
    args += ["--disable-fastapi-docs", "--middleware", MIDDLEWARE]
    args += ["--disable-uvicorn-access-log"]
    given = config.given_args
    if template_defaults and DEFAULT_KWARGS not in given:
        args += _flag(DEFAULT_KWARGS, dict(template_defaults))
    if "structured_outputs_config" not in given:
        args += ["--structured-outputs-config", json.dumps(STRUCTURED_OUTPUTS)]
    for name, value in config.extra_args.items():
        args += _flag(name, value)
    return args


def served_names(name: str, digest: str) -> list[str]:
    """Return `[name, name@digest12]`: the second name fixes the artifact that answers."""
    return [name, f"{name}@{short_digest(digest)}"]


def _template_defaults(model: Path, adapter: Path | None) -> dict[str, Any]:
    """Return the defaults in the template that the server uses: the adapter's, if it has one."""
    if adapter is not None and (adapter / "tokenizer_config.json").is_file():
        return folder_defaults(adapter)
    return folder_defaults(model)


def _flag(name: str, value: Any) -> list[str]:
    flag = name.removeprefix("--").replace("_", "-")
    if value is None:
        return []
    if value is True:
        return [f"--{flag}"]
    if value is False:
        return [] if flag in FLAGS_WITHOUT_NEGATION else [f"--no-{flag}"]
    if isinstance(value, dict) or (flag in JSON_FLAGS and isinstance(value, list)):
        return [f"--{flag}", json.dumps(value)]
    if isinstance(value, list):
        return [f"--{flag}", *(_text(item) for item in value)]
    # Joined, so that a value that begins with a hyphen is not taken for a flag.
    return [f"--{flag}={_text(value)}"]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def plan_container(
    config: ServingConfig, model: ModelSource, *, model_dir: str, host: str, port: int
) -> tuple[list[str], dict[str, str]]:
    """Return the arguments of `vllm serve` and the variables of a container that serves `model`.

    Args:
        model_dir: Where the container has the model's folder.

    Raises:
        ConfigError: `serving.mode` is adapter.
    """
    args = server_args(
        config, model=model_dir, adapter=None, served_names=served_names(model.name, model.digest),
        host=host, port=port, template_defaults=folder_defaults(model.path),
    )  # fmt: skip
    return args, server_env(config, artifact_facts(model, None, model.name))

"""vLLM's command line, from the configuration and the model that is served.

Pure calculation, apart from reading `adapter_config.json`.
"""

from __future__ import annotations

import site
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from serving.command.adapters_env import adapter_variables, adapters_env
from serving.command.environment import api_key, artifact_facts, inherited, server_env
from serving.command.flags import Flag, configured_flags, flatten, source
from serving.command.keys import list_keys, readable_keys
from serving.command.lora import lora_flags
from serving.command.recording_env import recording_env, recording_variable
from serving.config import ServingConfig
from tuneline.core.artifact import Artifact
from tuneline.core.digests import short_digest
from tuneline.core.environment import gpu_names
from tuneline.core.errors import ConfigError
from tuneline.models.source import ModelSource, is_float32
from tuneline.models.template import folder_defaults


@dataclass(frozen=True)
class Command:
    """How to start the server as a process of this machine."""

    argv: list[str]
    flags: list[Flag]
    """The arguments of `vllm serve` among them, each with its reason."""
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
    state_dir: Path | None = None,
) -> Command:
    """Return the process that serves `model`, with `adapter` next to it in adapter mode.

    Args:
        served_names: The names that clients ask for; the first is the run's name.
        environ: The environment to start from; it holds the key, if there is one.
        state_dir: Where adapters that are added later are kept; needed for `serving.adapters`.

    Raises:
        ConfigError: `host` is reachable from other machines and there is no key; the mode and the
            adapter do not fit each other; `serving.adapters` has no admin key or no folder; or
            nothing can be recorded.
        ArtifactError: The adapter cannot be served next to its base.
    """
    key = api_key(config, host, environ)
    flags = _flags_here(config, model, adapter, served_names, host, port)
    env = inherited(environ)
    env.update(server_env(config, artifact_facts(model, adapter, served_names[0])))
    if adapter is not None:
        (env["TUNELINE_BASE_NAME"],) = base_names(served_names, adapter)
        env["TUNELINE_BASE_DIGEST"] = model.digest
    here = str(Path(__file__).resolve().parents[2])
    if here not in site.getsitepackages():
        env["PYTHONPATH"] = ":".join(filter(None, [here, environ.get("PYTHONPATH")]))
    if key is not None:
        env["VLLM_API_KEY"] = key
    if config.keys_file is not None:
        env["TUNELINE_KEYS_FILE"] = str(readable_keys(Path(config.keys_file)))
    if config.adapters is not None and state_dir is not None:
        names = base_names(served_names, adapter)
        run_digest = adapter.digest if isinstance(adapter, Artifact) else None
        env |= adapters_env(config, model, names, served_names, state_dir, run_digest)
    if config.recording is not None:
        env |= recording_env(config.recording)
    # -P: the current directory, which may hold a folder named like a library, stays off the path.
    argv = [sys.executable, "-P", "-m", "serving.supervisor.launch", *flatten(flags)]
    return Command(argv, flags, env, key)


def explain_server(
    config: ServingConfig, model: ModelSource, *, name: str, adapter: Artifact | Path | None = None
) -> list[Flag]:
    """Return the variables and the flags of the server that `serve_model` starts, with reasons.

    Without `serving.port` the server takes a free port; the flag then has port 0.

    Raises:
        ConfigError: The mode and the adapter do not fit each other.
        ArtifactError: The adapter cannot be served next to its base.
    """
    digest = adapter.digest if isinstance(adapter, Artifact) else model.digest
    names = served_names(name, digest, config.aliases)
    variables = []
    if not gpu_names():
        space = f"VLLM_CPU_KVCACHE_SPACE={config.cpu_kvcache_space_gib}"
        reason = f"{source(config, 'cpu_kvcache_space_gib')}; this machine has no GPU"
        variables.append(Flag((space,), reason))
    return variables + _flags_here(config, model, adapter, names, config.host, config.port or 0)


def _flags_here(
    config: ServingConfig, model: ModelSource, adapter: Artifact | Path | None,
    names: Sequence[str], host: str, port: int,
) -> list[Flag]:  # fmt: skip
    """Return the flags of a server that is a process of this machine."""
    adapter_path = adapter.path if isinstance(adapter, Artifact) else adapter
    flags = server_flags(
        config,
        model=str(model.path.resolve()),
        adapter=None if adapter_path is None else adapter_path.resolve(),
        served_names=names,
        host=host,
        port=port,
        is_cpu=not gpu_names(),
        template_defaults=_template_defaults(model.path, adapter_path),
        keeps_float32=is_float32(model.path),
    )
    return flags + _priority_flags(config)


def _priority_flags(config: ServingConfig) -> list[Flag]:
    """Return the flag without which vLLM computes requests in the order in which they came."""
    if config.keys_file is None or "scheduling_policy" in config.given_args:
        return []
    file = Path(config.keys_file)
    if not file.exists() or all(key.priority is None for key in list_keys(file)):
        return []
    return [Flag(("--scheduling-policy", "priority"), f"a key of {file.name} has a priority")]


def server_flags(
    config: ServingConfig,
    *,
    model: str,
    adapter: Path | None,
    served_names: Sequence[str],
    host: str,
    port: int,
    adapter_at: str | None = None,
    is_cpu: bool = False,
    template_defaults: Mapping[str, Any] = MappingProxyType({}),
    keeps_float32: bool = False,
) -> list[Flag]:
    """Return the flags of `vllm serve`, the same in a process here and in a container.

    Args:
        model: The model's folder as the server sees it.
        adapter: The adapter's folder as this process sees it, in adapter mode.
        adapter_at: The adapter's folder as the server sees it, if that is another path.
        is_cpu: Whether the server is known to compute on a CPU.
        template_defaults: The variables that the chat template sets itself.
        keeps_float32: Whether the weights are float32, which `dtype: auto` then means too.

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
    flags = [
        Flag((model,), "the base model" if adapter is not None else "the model that is served"),
        Flag(("--host", host), "serving.host"),
        Flag(
            ("--port", str(port)), "serving.port" if config.port == port else "a port that is free"
        ),
    ]
    reason = "the run's name; serving.aliases; the artifact's digest, from its manifest"
    flags.append(Flag(("--served-model-name", *base_names(served_names, adapter)), reason))
    if adapter is not None or config.adapters is not None:
        flags += lora_flags(config, adapter, adapter_at or str(adapter), served_names)
        if is_cpu and config.enforce_eager is None:
            # vLLM 0.32 chooses functions for a compiler, and then leaves the compiler out.
            reason = "LoRA on a CPU: vLLM compiles nothing, and eager functions are the faster ones"
            flags.append(Flag(("--enforce-eager",), reason))
    return flags + configured_flags(config, template_defaults, keeps_float32=keeps_float32)


def server_args(config: ServingConfig, **place: Any) -> list[str]:
    """Return the words of `server_flags`."""
    return flatten(server_flags(config, **place))


def base_names(served_names: Sequence[str], adapter: object | None) -> list[str]:
    """Return the names of the model that vLLM loads, which is the base next to an adapter."""
    return list(served_names) if adapter is None else [f"{served_names[0]}-base"]


def served_names(name: str, digest: str, aliases: Sequence[str] = ()) -> list[str]:
    """Return `[name, *aliases, name@digest12]`: the last name fixes the artifact that answers."""
    return [*dict.fromkeys([name, *aliases]), f"{name}@{short_digest(digest)}"]


def _template_defaults(model: Path, adapter: Path | None) -> dict[str, Any]:
    """Return the defaults in the template that the server uses: the adapter's, if it has one."""
    if adapter is not None and (adapter / "tokenizer_config.json").is_file():
        return folder_defaults(adapter)
    return folder_defaults(model)


def plan_container(
    config: ServingConfig,
    model: ModelSource,
    *,
    model_dir: str,
    host: str,
    port: int,
    adapters_dir: str | None = None,
    recording_dir: str | None = None,
) -> tuple[list[str], dict[str, str]]:
    """Return the arguments of `vllm serve` and the variables of a container that serves `model`.

    Args:
        model_dir: Where the container has the model's folder.
        adapters_dir: Where it has the folder of adapters, for `serving.adapters`. It keeps its list
            and its copies there too, in a folder with the run's name.
        recording_dir: Where it records requests, for `serving.recording`.

    Raises:
        ConfigError: `serving.mode` is adapter, or a section has no folder.
    """
    if (config.adapters is None) != (adapters_dir is None):
        raise ConfigError(
            "serving.adapters and k8s.adapters go together: the server takes adapters, and the "
            "claim has them",
            hint="Try: --set serving.adapters=null --set k8s.adapters=null",
        )
    if (config.recording is None) != (recording_dir is None):
        raise ConfigError(
            "serving.recording and k8s.recording_claim go together: the server records requests, "
            "and the claim keeps them",
            hint="Try: --set serving.recording=null --set k8s.recording_claim=null",
        )
    names = served_names(model.name, model.digest, config.aliases)
    env = server_env(config, artifact_facts(model, None, model.name))
    if config.recording is not None and recording_dir is not None:
        env |= recording_variable(config.recording, recording_dir)
    if adapters_dir is not None:
        env |= adapter_variables(
            config, model, names, names, root=Path(adapters_dir), base_dir=Path(model_dir),
            state_dir=Path(adapters_dir, f"state-{model.name}"),
        )  # fmt: skip
    args = server_args(
        config, model=model_dir, adapter=None,
        served_names=names,
        host=host, port=port, template_defaults=folder_defaults(model.path),
        keeps_float32=is_float32(model.path),
    )  # fmt: skip
    return args, env

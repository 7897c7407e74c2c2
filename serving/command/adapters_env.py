"""The environment of a server that takes adapters at run time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from serving.adapters.settings import VARIABLE, AdapterSettings
from serving.command.keys import list_keys
from serving.config import ServingConfig
from tuneline.core.errors import ConfigError
from tuneline.core.tolerances import ARITHMETIC_TOLERANCES
from tuneline.models.source import ModelSource, computed_dtype


def adapters_env(
    config: ServingConfig,
    model: ModelSource,
    base_names: Sequence[str],
    served_names: Sequence[str],
    state_dir: Path,
    run_digest: str | None = None,
) -> dict[str, str]:
    """Return the variables for `serving.adapters`.

    Args:
        base_names: The names of the model that vLLM loads.
        served_names: The names of the run's own artifact.
        state_dir: Where desired adapters and their copies are kept.
        run_digest: The digest of the run's own adapter.

    Raises:
        ConfigError: No key is an admin key, or `root` is not a folder.
    """
    assert config.adapters is not None and config.keys_file is not None  # noqa: S101 (the caller looks)
    keys_file = Path(config.keys_file)
    if not any(key.admin for key in list_keys(keys_file)):
        raise ConfigError(
            f"{keys_file}: has no admin key; serving.adapters needs one",
            hint=f"Try: tuneline keys add ops --file {keys_file} --admin",
        )
    root = Path(config.adapters.root)
    if not root.is_dir():
        raise ConfigError(f"serving.adapters.root: no such folder: {root}")
    return adapter_variables(
        config, model, base_names, served_names, root=root.resolve(),
        state_dir=state_dir.resolve(), base_dir=model.path.resolve(), run_digest=run_digest,
    )  # fmt: skip


def adapter_variables(
    config: ServingConfig,
    model: ModelSource,
    base_names: Sequence[str],
    served_names: Sequence[str],
    *,
    root: Path,
    state_dir: Path,
    base_dir: Path,
    run_digest: str | None = None,
) -> dict[str, str]:
    """Return the variables for `serving.adapters`, with folders as the server sees them."""
    adapters = config.adapters
    assert adapters is not None  # noqa: S101 (the caller looks)
    dtype = computed_dtype(config.dtype, model)
    settings = AdapterSettings(
        root=root,
        state_dir=state_dir,
        base_dir=base_dir,
        base_digest=model.digest,
        base_name=base_names[0],
        own_names=tuple(dict.fromkeys([*base_names, *served_names])),
        run_digest=run_digest,
        # A later version may take over the name of the run's adapter, and never its digest.
        reserved_names=tuple(dict.fromkeys([*base_names, *served_names[1:]])),
        # The last of the served names has the digest, which no later version takes over.
        aliases={name: served_names[0] for name in served_names[1:-1] if name not in base_names},
        max_adapters=adapters.max_adapters,
        max_lora_rank=adapters.max_lora_rank,
        tolerances=config.parity.tolerances or ARITHMETIC_TOLERANCES[dtype],
    )
    # vLLM then has routes that load any folder; the middleware closes them to clients.
    return {
        VARIABLE: settings.model_dump_json(),
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
    }

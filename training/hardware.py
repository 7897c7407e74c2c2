"""Refusals of settings that this machine cannot run, before anything is loaded."""

from __future__ import annotations

import importlib.util

from training.config import TrainingConfig
from tuneline.core.environment import gpu_names
from tuneline.core.errors import ConfigError, MissingError


def require_hardware(config: TrainingConfig) -> None:
    """Check that the kernels that the configuration names can run here.

    Raises:
        ConfigError: They need a GPU, and none is here; or there are fewer GPUs than processes.
        MissingError: Their package is not installed.
    """
    launch, gpus = config.launch, gpu_names()
    if launch is not None and gpus and launch.processes > len(gpus):
        raise ConfigError(
            f"training.launch.processes: {launch.processes} processes need a GPU each; "
            f"{len(gpus)} are here",
            hint=f"Try: --set training.launch.processes={len(gpus)}",
        )
    kernels = (
        ("use_liger_kernel", True, "false", "liger_kernel", "liger-kernel"),
        ("attn_implementation", "flash_attention_2", "sdpa", "flash_attn", "flash-attn"),
    )
    for key, value, instead, module, package in kernels:
        if getattr(config, key) != value:
            continue
        if not gpu_names():
            raise ConfigError(
                f"training.{key}: {str(value).lower()} needs a GPU; none is here",
                hint=f"Try: training.{key}: {instead}",
            )
        if importlib.util.find_spec(module) is None:
            raise MissingError(
                f"training.{key}: {str(value).lower()} needs the package {package}, which is not "
                "installed",
                hint=f"Try: pip install {package}",
            )

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import training.hardware as hardware
import training.train as train
from training.config import TrainingConfig
from tuneline.core.errors import ConfigError, GpuMemoryError, MissingError

KERNELS = [{"use_liger_kernel": True}, {"attn_implementation": "flash_attention_2"}]


@pytest.mark.parametrize("setting", KERNELS)
def test_kernels_of_a_gpu_are_refused_without_one(
    setting: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "gpu_names", list)
    with pytest.raises(ConfigError, match="needs a GPU; none is here") as caught:
        hardware.require_hardware(TrainingConfig(**setting))
    assert caught.value.exit_code == 2
    key = next(iter(setting))
    assert key in str(caught.value) and key in str(caught.value.hint)


@pytest.mark.parametrize("setting", KERNELS)
def test_a_missing_package_is_named(
    setting: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "gpu_names", lambda: ["NVIDIA H100"])
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(MissingError, match="which is not installed") as caught:
        hardware.require_hardware(TrainingConfig(**setting))
    assert caught.value.exit_code == 4


def test_the_defaults_need_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "gpu_names", list)
    hardware.require_hardware(TrainingConfig())


def test_a_gpu_with_too_little_memory_is_an_error_with_a_hint(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nAdvice.")

    monkeypatch.setattr(train, "_train", full)
    nothing: Any = None
    with pytest.raises(GpuMemoryError, match=r"memory: CUDA out of memory.*2 GiB") as caught:
        train.train_adapter(TrainingConfig(), nothing, nothing, tmp_path / "adapter")
    assert caught.value.exit_code == 4
    assert "per_device_train_batch_size: 1" in str(caught.value.hint)

from __future__ import annotations

from typing import Any

import pytest

import training.hardware as hardware
from training.config import TrainingConfig
from tuneline.core.errors import ConfigError, MissingError

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

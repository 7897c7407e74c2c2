"""The schemes of quantization, against compressed-tensors' own arithmetic, packing and presets."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig, QuantizationScheme
from compressed_tensors.quantization.quant_scheme import preset_name_to_scheme
from compressed_tensors.quantization.utils.helpers import calculate_qparams

from export.quantize.schemes import FORMATS, Scheme, quantization_config, quantize_rows

SCHEMES: dict[str, Any] = {
    "fp8": Scheme("fp8"), "int8": Scheme("int8"), "w4a16": Scheme("w4a16", 128),
}  # fmt: skip
PRESETS = {"fp8": "FP8_DYNAMIC", "int8": "W8A8", "w4a16": "W4A16"}


def library_scheme(name: str) -> QuantizationScheme:
    return preset_name_to_scheme(PRESETS[name], ["Linear"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", SCHEMES)
def test_codes_and_scales_are_the_library_s(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    weight = (torch.randn(96, 512) * torch.logspace(-3, 1, 96).unsqueeze(1)).to(dtype)
    weight[3] = 0
    weight[4, :128] = 0
    weight[5] = weight[5].abs()
    codes, scales = quantize_rows(weight.clone(), SCHEMES[name])

    scheme = library_scheme(name)
    assert isinstance(scheme.weights, QuantizationArgs)
    groups = weight.float().reshape(96, -1, scheme.weights.group_size or 512)
    exact, _ = calculate_qparams(groups.amin(2), groups.amax(2), scheme.weights)
    filled = groups.abs().amax(2) > 0
    assert filled.sum() > 90
    assert scales.dtype == dtype
    assert torch.equal(scales[filled], exact.to(dtype)[filled])

    compressor = BaseCompressor.get_value_from_registry(FORMATS[name])
    state = {"weight": weight.float(), "weight_scale": scales.float()}
    compressed = compressor.compress(state, scheme)
    theirs = compressed["weight_packed" if name == "w4a16" else "weight"]
    assert codes.dtype == theirs.dtype
    assert torch.equal(codes.view(torch.uint8), theirs.view(torch.uint8))
    decompressed = compressor.decompress(compressed, scheme)["weight"].reshape(groups.shape)
    # Half a step to either side, and at the ends of the range what rounding the scale clips;
    # float8 keeps three bits after the leading one.
    step = scales.float().unsqueeze(2)
    clipped = {"fp8": 0.0, "int8": 127.5, "w4a16": 7.5}[name] / 256
    bound = groups.abs() / 16 + step / 512 if name == "fp8" else step * (0.5 + clipped)
    assert ((decompressed - groups).abs() <= bound + 1e-9).all()


@pytest.mark.parametrize("name", SCHEMES)
def test_the_configuration_is_the_library_s_preset(name: str) -> None:
    values = quantization_config(SCHEMES[name], ["lm_head"])
    parsed = QuantizationConfig.model_validate(values)
    group = parsed.config_groups["group_0"]
    assert isinstance(group, QuantizationScheme)
    preset = library_scheme(name)
    for field in ("num_bits", "type", "symmetric", "strategy", "group_size", "dynamic"):
        assert getattr(group.weights, field) == getattr(preset.weights, field), field
        if preset.input_activations is not None:
            ours, theirs = group.input_activations, preset.input_activations
            assert getattr(ours, field) == getattr(theirs, field), field
    assert (group.input_activations is None) is (preset.input_activations is None)
    assert parsed.ignore == ["lm_head"]

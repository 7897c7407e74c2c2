from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.layer import Linear

from training.adapters.lora_linear import use_lora_linear


def _model(**options: Any) -> Any:
    torch.manual_seed(0)
    layers = torch.nn.Sequential(
        torch.nn.Linear(24, 40), torch.nn.ReLU(), torch.nn.Linear(40, 16, bias=False)
    )
    lora = LoraConfig(r=4, lora_alpha=12, target_modules=["0", "2"], **options)
    model = get_peft_model(layers, lora)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    return model


@pytest.mark.parametrize("shape", [(7, 24), (2, 5, 24), (64, 24)])
@pytest.mark.parametrize("options", [{}, {"use_rslora": True}], ids=["lora", "rslora"])
def test_output_and_gradients_are_pefts(shape: tuple[int, ...], options: dict[str, Any]) -> None:
    plain, ours = _model(**options), _model(**options)
    assert use_lora_linear(ours) == 2
    results = []
    for model in (plain, ours):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).requires_grad_()
        output = model(x)
        output.square().sum().backward()
        trained = [p.grad for p in model.parameters() if p.requires_grad]
        results.append([output.detach(), x.grad, *trained])
    assert len(results[0]) == 6
    for expected, found in zip(*results, strict=True):
        tolerance = 1e-6 * float(expected.abs().max())
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=tolerance)


@pytest.mark.parametrize("shape", [(7, 64), (2, 5, 64), (200, 64)])
def test_on_a_base_in_4_bits_output_and_gradients_are_pefts(shape: tuple[int, ...]) -> None:
    plain, ours = _model_in_4bit(), _model_in_4bit()
    assert use_lora_linear(ours) == 2
    results = []
    for model in (plain, ours):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).requires_grad_()
        saved: list[torch.Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(saved.append, lambda _: None):
            model(x)
        assert all(tensor.shape != (96, 64) for tensor in saved)  # no whole weight stays
        output = model(x)
        output.square().sum().backward()
        trained = [p.grad for p in model.parameters() if p.requires_grad]
        results.append([output.detach(), x.grad, *trained])
    assert len(results[0]) == 6
    for expected, found in zip(*results, strict=True):
        tolerance = 1e-6 * float(expected.abs().max())
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=tolerance)


def _model_in_4bit() -> Any:
    bnb = pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    options = {"compute_dtype": torch.float32, "compress_statistics": True, "quant_type": "nf4"}
    layers = torch.nn.Sequential(
        bnb.nn.Linear4bit(64, 96, **options), torch.nn.ReLU(),
        bnb.nn.Linear4bit(96, 64, bias=False, **options),
    ).to("cpu")  # fmt: skip
    layers.is_loaded_in_4bit = True  # as transformers does
    model = get_peft_model(layers, LoraConfig(r=4, lora_alpha=12, target_modules=["0", "2"]))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    return model


@pytest.mark.parametrize(
    "options", [{"lora_dropout": 0.1}, {"use_dora": True}, {"lora_bias": True}]
)
def test_layers_with_more_to_them_keep_pefts_forward(options: dict[str, Any]) -> None:
    assert use_lora_linear(_model(**options)) == 0


def test_a_disabled_adapter_leaves_the_base() -> None:
    model = _model()
    base = model.get_base_model()
    assert use_lora_linear(model) == 2
    x = torch.randn(3, 24)
    with model.disable_adapter():
        found = model(x)
    expected = base[2].base_layer(torch.relu(base[0].base_layer(x)))
    assert torch.equal(found, expected)
    assert not torch.allclose(model(x), expected)


@pytest.mark.parametrize("shape", [(7, 24), (2, 5, 24), (64, 24)])
def test_with_a_base_in_bfloat16_the_result_is_as_near_to_float32_as_pefts(
    shape: tuple[int, ...],
) -> None:
    exact, plain, ours = _model(), _model(), _model()
    for model in (exact, plain, ours):
        for module in model.modules():
            if isinstance(module, Linear):
                base = module.base_layer.bfloat16()
                if model is exact:
                    base.float()
    assert use_lora_linear(ours) == 2
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).bfloat16()
    results = []
    for model in (exact, plain, ours):
        half = model is not exact
        given = x.clone() if half else x.float()
        given.requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            output = model(given)
        assert output.dtype is given.dtype
        output.float().square().sum().backward()
        trained = [p.grad for p in model.parameters() if p.requires_grad]
        assert all(gradient.dtype is torch.float32 for gradient in trained)
        results.append([output.detach().float(), given.grad.float(), *trained])
    assert len(results[0]) == 6
    for expected, theirs, found in zip(*results, strict=True):
        error = float((found - expected).norm())
        assert 0 < error <= 1.2 * float((theirs - expected).norm())


def test_a_small_update_is_not_rounded_into_a_base_in_bfloat16() -> None:
    """1/2048 of a weight is below the last bit that bfloat16 has for the weight."""
    layers = torch.nn.Sequential(torch.nn.Linear(64, 64, bias=False))
    model = get_peft_model(layers, LoraConfig(r=1, lora_alpha=1, target_modules=["0"]))
    assert use_lora_linear(model) == 1
    layer = model.get_base_model()[0]
    layer.base_layer.bfloat16().weight.data.fill_(1.0)
    layer.lora_A["default"].weight.data.zero_()[0, 0] = 1.0
    layer.lora_B["default"].weight.data.fill_(1 / 2048)
    x = torch.ones(256, 64, dtype=torch.bfloat16)
    x[:, 1::2] = -1.0  # the base's part of an output is 0
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        output = model(x)
    assert torch.equal(output.float(), torch.full((256, 64), 1 / 2048))

"""The loss of trained tokens leaves out what does not change it, and only that."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as T

from training.loop.answer_loss import add_answer_loss
from training.loop.last_layer import limit_last_layer

SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
}
GROUPED = SMALL | {"num_key_value_heads": 1, "head_dim": 16}
FAMILIES = {
    "llama": (lambda: T.LlamaForCausalLM(T.LlamaConfig(**GROUPED)), 3),
    "qwen3": (lambda: T.Qwen3ForCausalLM(T.Qwen3Config(**GROUPED)), 3),
    "phi3": (lambda: T.Phi3ForCausalLM(T.Phi3Config(**GROUPED | {"pad_token_id": 0})), 2),
    "gpt-neox": (lambda: T.GPTNeoXForCausalLM(T.GPTNeoXConfig(**SMALL)), 1),
    "lfm2": (lambda: T.Lfm2ForCausalLM(T.Lfm2Config(**SMALL | {"num_key_value_heads": 1})), 1),
}
IDS = torch.randint(1, 64, (3, 12), generator=torch.Generator().manual_seed(0))


def _model(family: str) -> Any:
    torch.manual_seed(0)
    build: Any = FAMILIES[family][0]
    return build().eval()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_last_layer_is_the_same_at_trained_positions(family: str) -> None:
    decoder = _model(family).base_model
    expected = decoder(input_ids=IDS, use_cache=False).last_hidden_state.flatten(0, 1)
    assert len(limit_last_layer(decoder)) >= FAMILIES[family][1]
    index = torch.tensor([4, 5, 11, 20, 35])
    output = decoder(input_ids=IDS, use_cache=False, trained=index).last_hidden_state
    found = output.flatten(0, 1)
    torch.testing.assert_close(found[index], expected[index], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(found[0], expected[0])
    again = decoder(input_ids=IDS, use_cache=False).last_hidden_state.flatten(0, 1)
    torch.testing.assert_close(again, expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradients_are_those_of_the_padded_batch(family: str) -> None:
    model = _model(family)
    labels, mask = IDS.clone(), torch.ones_like(IDS)
    labels[:, :5] = -100
    mask[1, 9:] = 0
    labels[1, 9:] = -100
    batch = {"input_ids": IDS, "labels": labels, "attention_mask": mask, "use_cache": False}
    num_trained = 7 + 4 + 7
    model(**batch).loss.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    assert add_answer_loss(model, IDS[0].tolist(), labels[0].tolist())
    (model(**batch, answer_loss=True) / num_trained).backward()
    assert len(expected) > 8
    for name, parameter in model.named_parameters():
        tolerance = 1e-4 * float(expected[name].abs().max()) + 1e-6
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-3, atol=tolerance)


def test_a_model_that_attends_to_later_tokens_keeps_its_loss() -> None:
    model = _model("llama")
    for layer in model.model.layers:
        layer.self_attn.is_causal = False  # read only where there is no mask
    forwards = [module.forward for module in model.modules()]
    assert not add_answer_loss(model, IDS[0].tolist(), [-100] * 5 + IDS[0, 5:].tolist())
    assert [module.forward for module in model.modules()] == forwards


def test_an_mlp_that_takes_the_residual_too_is_computed_whole() -> None:
    torch.manual_seed(0)
    model = T.BloomForCausalLM(
        T.BloomConfig(vocab_size=64, hidden_size=32, n_layer=2, n_head=4, initializer_range=0.3)
    ).eval()
    labels = IDS.clone()
    labels[:, :5] = -100
    batch = {"input_ids": IDS, "labels": labels, "use_cache": False}
    own = float(model(**batch).loss.detach())
    assert add_answer_loss(model, IDS[0].tolist(), labels[0].tolist())
    found = float(model(**batch, answer_loss=True).detach()) / (3 * 7)
    assert found == pytest.approx(own, rel=1e-5)


class _MlpOfBatches(torch.nn.Module):  # type: ignore[misc]
    """An MLP that reads batch, position and width, as a convolution does."""

    def __init__(self, mlp: Any) -> None:
        super().__init__()
        self.mlp = mlp

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        batch, length, width = hidden.shape
        found: torch.Tensor = self.mlp(hidden.reshape(batch * length, width))
        return found.view(batch, length, width)


def test_a_model_that_cannot_compute_single_positions_keeps_its_loss() -> None:
    model = _model("llama")
    model.model.layers[-1].mlp = _MlpOfBatches(model.model.layers[-1].mlp)
    forwards = [module.forward for module in model.modules()]
    training = model.train().training
    assert not add_answer_loss(model, IDS[0].tolist(), [-100] * 5 + IDS[0, 5:].tolist())
    assert [module.forward for module in model.modules()] == forwards
    assert model.training is training

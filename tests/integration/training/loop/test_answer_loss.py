"""The loss of trained tokens leaves out what does not change it, and only that."""

from __future__ import annotations

import copy
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
    "qwen3-moe": (
        lambda: T.Qwen3MoeForCausalLM(
            T.Qwen3MoeConfig(
                **GROUPED, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16
            )
        ),
        3,
    ),
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


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt-neox"])
def test_a_frozen_head_in_bfloat16_is_as_near_to_float32_as_the_models_own_loss(
    family: str,
) -> None:
    half = _model(family).bfloat16()
    half.get_output_embeddings().weight.requires_grad_(requires_grad=False)
    exact = copy.deepcopy(half).float()
    labels = IDS.clone()
    labels[:, :5] = -100
    batch = {"input_ids": IDS, "labels": labels, "use_cache": False}
    losses, gradients = [], []
    for model, answer_loss in ((exact, False), (half, False), (half, True)):
        if answer_loss:
            assert add_answer_loss(half, IDS[0].tolist(), labels[0].tolist())
            loss = model(**batch, answer_loss=True) / (3 * 7)
            assert loss.dtype is torch.float32
        else:
            loss = model(**batch).loss
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        found = torch.autograd.grad(loss, trained)
        losses.append(float(loss.detach()))
        gradients.append(torch.cat([gradient.flatten().float() for gradient in found]))
    assert len(trained) > 8
    own, ours = (float((found - gradients[0]).norm()) for found in gradients[1:])
    assert 0 < ours <= 1.2 * own
    assert losses[2] == pytest.approx(losses[0], rel=0.01)


@pytest.mark.parametrize(
    "build",
    [
        lambda: T.Gemma2ForCausalLM(
            T.Gemma2Config(**GROUPED, final_logit_softcapping=30.0, pad_token_id=0)
        ),
        lambda: T.GraniteForCausalLM(T.GraniteConfig(**GROUPED, logits_scaling=1.02)),
    ],
    ids=["soft cap", "scaled logits"],
)
def test_a_misfit_that_bfloat16_hides_is_found_in_float32(build: Any) -> None:
    torch.manual_seed(0)
    model = build().bfloat16().requires_grad_(requires_grad=False)
    model.model.layers[0].mlp.down_proj.weight.requires_grad_()
    state = torch.random.get_rng_state()
    assert not add_answer_loss(model, IDS[0].tolist(), [-100] * 5 + IDS[0, 5:].tolist())
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("trained", [True, False])
def test_a_head_in_bfloat16_that_is_trained_or_has_a_bias_keeps_its_loss(*, trained: bool) -> None:
    model = _model("llama").bfloat16()
    head = torch.nn.Linear(32, 64, bias=not trained).bfloat16()
    model.set_output_embeddings(head.requires_grad_(requires_grad=trained))
    assert not add_answer_loss(model, IDS[0].tolist(), [-100] * 5 + IDS[0, 5:].tolist())


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


class _MlpOfTwo(torch.nn.Module):  # type: ignore[misc]
    """An MLP that also reads the position before, as a convolution does."""

    def __init__(self, mlp: Any) -> None:
        super().__init__()
        self.mlp = mlp

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.mlp(hidden + hidden.roll(1, -2))
        return found


def test_a_model_that_cannot_compute_single_positions_keeps_its_loss() -> None:
    model = _model("llama")
    model.model.layers[-1].mlp = _MlpOfTwo(model.model.layers[-1].mlp)
    forwards = [module.forward for module in model.modules()]
    training = model.train().training
    assert not add_answer_loss(model, IDS[0].tolist(), [-100] * 5 + IDS[0, 5:].tolist())
    assert [module.forward for module in model.modules()] == forwards
    assert model.training is training

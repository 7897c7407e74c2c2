"""The proof of training, on modules whose gradients are known by construction."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from training.loop import proof as loop_proof
from training.loop.proof import PATIENCE_STEPS, SAMPLE, ProofOfTraining, by_pattern, proof_table
from tuneline.core.errors import ConfigError


class Net(torch.nn.Module):  # type: ignore[misc]
    """`used` decides the loss; `unused` and the experts are outside of it."""

    def __init__(self) -> None:
        super().__init__()
        self.used = torch.nn.Linear(4, 3, bias=False)
        self.unused = torch.nn.Linear(4, 3, bias=False)
        self.unused.requires_grad_(False)


def run(
    model: Any, loss_of: Any, num_steps: int, learning_rate: float = 0.1, **options: Any
) -> ProofOfTraining:
    """Take SGD steps with the callbacks of a Trainer around them."""
    proof = ProofOfTraining(None, **options)
    state = SimpleNamespace(global_step=0)
    trainer = SimpleNamespace(
        model=model, state=state, training_step=lambda _m, x, *_: _backward(loss_of(model, x)),
        _tr_loss=torch.tensor(5.25), _globalstep_last_logged=8,
    )  # fmt: skip
    proof.watch(trainer)
    proof.on_train_begin(None, state, None)
    steps(proof, trainer, num_steps, learning_rate)
    return proof


def steps(proof: Any, trainer: Any, num_steps: int, learning_rate: float = 0.1) -> None:
    generator = torch.Generator().manual_seed(0)
    trained = [p for p in trainer.model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, learning_rate)
    for _ in range(num_steps):
        optimizer.zero_grad()
        trainer.training_step(trainer.model, {"x": torch.randn(2, 4, generator=generator)})
        proof.on_pre_optimizer_step(None, trainer.state, None)
        optimizer.step()
        trainer.state.global_step += 1
        proof.on_step_end(None, trainer.state, None)


def _backward(loss: Any) -> Any:
    loss.backward()
    return loss


def used_loss(model: Any, inputs: Any) -> Any:
    return model.used(inputs["x"]).square().sum()


def test_a_trained_parameter_is_reported_with_its_change() -> None:
    model = Net()
    start = model.used.weight.detach().clone()
    proof = run(model, used_loss, 12, 0.01)
    (moved,) = proof.finish(12)
    change = (model.used.weight.detach() - start).square().mean().sqrt()
    assert moved.name == "used.weight" and moved.num_parameters == 12
    assert moved.num_steps_with_gradient == 12 and moved.max_gradient_norm > 0
    assert moved.change == pytest.approx(float(change))
    assert moved.relative_change == pytest.approx(float(change / start.square().mean().sqrt()))
    (row,) = by_pattern([moved])
    assert row["pattern"] == "used" and row["num_without_gradient"] == 0
    assert proof_table([row])[1].startswith("used ")


def test_a_parameter_without_a_gradient_ends_the_run_by_name() -> None:
    model = Net()
    model.unused.requires_grad_(True)
    with pytest.raises(ConfigError, match=r"unused\.weight is zero in all of 10 steps") as error:
        run(model, used_loss, PATIENCE_STEPS)
    assert error.value.exit_code == 2


@pytest.mark.parametrize("num_steps", [2, 3])
def test_a_factor_that_a_warm_up_leaves_without_a_gradient(num_steps: int) -> None:
    """B of LoRA starts at zero, and the first step has a learning rate of 0."""
    model = Net()
    model.unused.requires_grad_(True)  # the factor A: its gradient is B times something
    factor = torch.nn.Parameter(torch.zeros(()))
    model.register_parameter("factor", factor)

    def loss_of(net: Any, inputs: Any) -> Any:
        return (net.used(inputs["x"]) + net.factor * net.unused(inputs["x"])).square().sum()

    proof = ProofOfTraining(None)
    state = SimpleNamespace(global_step=0)
    trainer = SimpleNamespace(
        model=model, state=state, training_step=lambda _m, x, *_: _backward(loss_of(model, x))
    )
    proof.watch(trainer)
    proof.on_train_begin(None, state, None)
    steps(proof, trainer, 1, learning_rate=0.0)
    steps(proof, trainer, num_steps - 1)
    counts = {moved.name: moved.num_steps_with_gradient for moved in proof.finish(num_steps)}
    assert counts["unused.weight"] == num_steps - 2


def test_a_short_run_is_checked_at_its_end() -> None:
    model = Net()
    model.unused.requires_grad_(True)
    proof = run(model, used_loss, 3)
    with pytest.raises(ConfigError, match=r"unused\.weight is zero in all of 3 steps"):
        proof.finish(3)


def test_a_gradient_that_is_not_a_number_ends_the_run_by_name() -> None:
    def loss(model: Any, inputs: Any) -> Any:
        return used_loss(model, inputs) * float("nan")

    with pytest.raises(ConfigError, match=r"gradient of used\.weight is not a number at step 1"):
        run(Net(), loss, 1)


def test_a_loss_that_never_changes_ends_the_run() -> None:
    def loss(model: Any, inputs: Any) -> Any:
        return 0.693147 + (used_loss(model, inputs) - used_loss(model, inputs).detach())

    with pytest.raises(ConfigError, match=r"the loss is 0\.693147 in each of 10 steps"):
        run(Net(), loss, PATIENCE_STEPS)
    assert run(Net(), loss, PATIENCE_STEPS, loss_must_change=False).finish(PATIENCE_STEPS)


def test_a_parameter_that_cannot_move_ends_the_run() -> None:
    proof = run(Net(), used_loss, 12, 1e-12)
    with pytest.raises(ConfigError, match=r"used\.weight had gradients and did not move"):
        proof.finish(12)


def test_a_batch_without_a_trained_token_ends_the_run() -> None:
    trainer = SimpleNamespace(
        model=Net(), state=SimpleNamespace(global_step=4), training_step=lambda *_: None
    )
    ProofOfTraining(None).watch(trainer)
    # The first label is of a token that nothing predicts.
    labels = torch.tensor([[5, -100, -100], [-100, -100, -100]])
    with pytest.raises(ConfigError, match="a batch of step 5 has 2 rows and no trained token"):
        trainer.training_step(trainer.model, {"labels": labels})


def test_an_expert_without_tokens_is_reported_and_not_refused() -> None:
    class Experts(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.experts = torch.nn.ModuleList(torch.nn.Linear(4, 3, bias=False) for _ in range(2))

    def loss(model: Any, inputs: Any) -> Any:
        return model.mlp.experts[0](inputs["x"]).square().sum()

    model = torch.nn.Module()
    model.mlp = Experts()
    proof = run(model, loss, 12, 0.01)
    (row,) = by_pattern(proof.finish(12))
    assert row["num_tensors"] == 2 and row["num_without_gradient"] == 1


def test_a_large_tensor_is_watched_where_its_gradient_is_largest() -> None:
    model = torch.nn.Module()
    model.embed = torch.nn.Embedding(SAMPLE, 4)

    def loss(model: Any, inputs: Any) -> Any:
        # One odd row of 65,536: a sample at regular distances misses it.
        return model.embed(torch.tensor([4097])).square().sum() * inputs["x"].square().sum()

    proof = run(model, loss, 12, 0.01)
    (moved,) = proof.finish(12)
    assert proof.watched["embed.weight"].numel() <= SAMPLE + 1
    assert moved.num_parameters == 4 * SAMPLE and moved.change > 0


@pytest.mark.parametrize("size", [2**20, 5000])
def test_the_largest_gradients_are_found_in_parts(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop_proof, "PART_OF_LARGEST", size)
    gradient = torch.randn(SAMPLE + 12_345, generator=torch.Generator().manual_seed(0))
    model = torch.nn.Module()
    model.wide = torch.nn.Parameter(torch.ones_like(gradient))
    proof = run(model, lambda found, _: (found.wide * gradient).sum(), 1)
    largest = set(gradient.abs().topk(SAMPLE // 2).indices.tolist())
    assert largest <= set(proof.watched["wide"].tolist())


def test_a_resumed_proof_equals_the_uninterrupted_one(tmp_path: Path) -> None:
    def model() -> Any:
        torch.manual_seed(1)
        return Net()

    whole = run(model(), used_loss, 12, 0.01).finish(12)
    net = model()
    first = run(net, used_loss, 12, 0.01)
    checkpoint = tmp_path / "checkpoint-12"
    checkpoint.mkdir()
    args = SimpleNamespace(output_dir=str(tmp_path))
    first.on_save(args, SimpleNamespace(global_step=12), None)
    second = ProofOfTraining(checkpoint)
    trainer = SimpleNamespace(
        model=net, state=None, training_step=None,
        _tr_loss=torch.tensor(0.0), _globalstep_last_logged=12,
    )  # fmt: skip
    second.watch(trainer)
    second.on_train_begin(None, None, None)
    assert second.finish(12) == whole
    # The next logged loss is the mean of all steps since the last log, not since the restart.
    assert (float(trainer._tr_loss), trainer._globalstep_last_logged) == (5.25, 8)

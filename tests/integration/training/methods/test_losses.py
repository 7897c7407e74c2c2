"""The loss of each method is the formula of its paper, computed here row by row without padding."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor
from torch.nn.functional import logsigmoid
from transformers import MixtralConfig, MixtralForCausalLM, TrainerCallback

from tests.integration.training.methods.datasets import KINDS, REWARD_FILE
from tests.integration.training.tiny import make_base
from training.adapters.trainable import load_trainable
from training.config import TrainingConfig
from training.loop.arguments import trainer_arguments
from training.methods import find_method
from tuneline.models.source import ModelSource, resolve_model
from tuneline.models.tokenizer import load_tokenizer

KIND_OF = {
    "dpo": "preference", "orpo": "preference", "reward": "preference", "kto": "label",
    "grpo": "prompt", "sft": "answer",
}  # fmt: skip
NUM_ROWS = 8


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("losses")
    make_base(folder / "base")
    (folder / "rewards.py").write_text(REWARD_FILE)
    return resolve_model("base", relative_to=folder)


def _made(base: ModelSource, work: Path, method: dict[str, Any], **training: Any) -> Any:
    """Return a trainer whose adapter is not zero, and its rows."""
    values = {
        "per_device_train_batch_size": NUM_ROWS, "gradient_accumulation_steps": 1,
        "max_length": 128, "gradient_checkpointing": False, "report_to": [], "method": method,
    }  # fmt: skip
    config = TrainingConfig.model_validate({**values, **training})
    config = config.model_copy(update={"method": config.method.resolved(base.path.parent)})
    found = find_method(config.method)
    tokenizer = load_tokenizer(base.path)
    rows = [KINDS[KIND_OF[config.method.type]](index) for index in range(NUM_ROWS)]
    found.check(config, rows, "rows")
    examples = found.render(config, tokenizer, rows, [tokenizer.eos_token_id], "rows")
    torch.manual_seed(0)
    model, _, _ = load_trainable(config, base, task_type=found.task_type)
    arguments = trainer_arguments(config, work, resumed=True)
    trainer = found.trainer(config, model, tokenizer, arguments, examples, examples)
    for name, parameter in trainer.model.named_parameters():
        if "lora_B.default" in name:  # zeros at first, so that the model is its own reference
            torch.nn.init.normal_(parameter, std=0.05)
    return trainer, examples


def _logprobs(model: Any, prompt: list[int], answer: list[int]) -> Tensor:
    """Return the log-probability of each token of an answer."""
    logits = model(input_ids=torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1).gather(1, torch.tensor(answer)[:, None]).squeeze(1)


def _loss(trainer: Any) -> float:
    trainer.model.train()
    (batch,) = trainer.get_train_dataloader()
    return float(trainer.compute_loss(trainer.model, batch).detach())


def _ratio(model: Any, prompt: list[int], answer: list[int]) -> Tensor:
    """Return the log-probability of an answer under the model minus that under its base."""
    tuned = _logprobs(model, prompt, answer).sum()
    with model.disable_adapter():
        return tuned - _logprobs(model, prompt, answer).sum()


@pytest.mark.parametrize("method", ["dpo", "reward"])
def test_the_rows_of_a_short_last_batch_count_as_the_others(
    base: ModelSource, tmp_path: Path, method: str
) -> None:
    gradients: list[Tensor] = []
    weights: dict[str, Tensor] = {}
    sizes: list[list[int]] = []
    for size in (NUM_ROWS, 3):
        trainer, _ = _made(
            base, tmp_path / str(size), {"type": method}, per_device_train_batch_size=size,
            gradient_accumulation_steps=4,
        )  # fmt: skip
        model = trainer.model.train()
        weights = weights or {name: tensor.clone() for name, tensor in model.state_dict().items()}
        model.load_state_dict(weights)
        loader = trainer.get_train_dataloader()
        samples, number = trainer.get_batch_samples(iter(loader), len(loader), model.device)
        sizes.append([len(batch["input_ids"]) // 2 for batch in samples])
        trainer.current_gradient_accumulation_steps = len(samples)
        for batch in samples:
            trainer.training_step(model, batch, number)
        gradients.append(
            torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])
        )
    assert sizes == [[8], [3, 3, 2]]
    whole, parts = gradients
    assert float(whole.norm()) > 0.01
    assert float((parts - whole).norm() / whole.norm()) < 1e-4


Pairs = list[tuple[Tensor, Tensor, int, int]]
DPO: list[tuple[dict[str, Any], Callable[[Tensor, Tensor, int, int], Tensor]]] = [
    ({}, lambda c, r, *_: -logsigmoid(0.1 * (c - r))),
    ({"beta": 0.5, "precompute_ref_log_probs": True}, lambda c, r, *_: -logsigmoid(0.5 * (c - r))),
    ({"loss_type": "ipo"}, lambda c, r, m, n: (c / m - r / n - 5).square()),
    (
        {"loss_type": "robust", "label_smoothing": 0.2},
        lambda c, r, *_: (-0.8 * logsigmoid(0.1 * (c - r)) + 0.2 * logsigmoid(0.1 * (r - c))) / 0.6,
    ),
    (
        {"loss_type": ["sigmoid", "hinge"], "loss_weights": [1.0, 0.5]},
        lambda c, r, *_: -logsigmoid(0.1 * (c - r)) + 0.5 * (1 - 0.1 * (c - r)).relu(),
    ),
]


@pytest.mark.parametrize(("options", "formula"), DPO, ids=[str(entry[0]) for entry in DPO])
def test_dpo_compares_both_answers_with_the_base(
    base: ModelSource,
    tmp_path: Path,
    options: dict[str, Any],
    formula: Callable[[Tensor, Tensor, int, int], Tensor],
) -> None:
    trainer, pairs = _made(base, tmp_path, {"type": "dpo", **options})
    model = trainer.model
    assert "ref" not in model.peft_config
    found = _loss(trainer)
    model.eval()
    with torch.no_grad():
        ratios = [
            (
                _ratio(model, pair.prompt_ids, pair.chosen_ids),
                _ratio(model, pair.prompt_ids, pair.rejected_ids),
                len(pair.chosen_ids),
                len(pair.rejected_ids),
            )
            for pair in pairs
        ]
    assert max(float(chosen.abs()) for chosen, *_ in ratios) > 0.1
    expected = torch.stack([formula(*ratio) for ratio in ratios]).mean()
    assert found == pytest.approx(float(expected), rel=1e-4)


def test_dpo_reads_the_trained_rows_of_a_tied_head(base: ModelSource, tmp_path: Path) -> None:
    trainer, pairs = _made(base, tmp_path, {"type": "dpo"}, trainable_token_indices=[2])
    model = trainer.model
    (rows,) = [
        parameter
        for name, parameter in model.named_parameters()
        if "trainable_tokens_delta.default" in name
    ]
    with torch.no_grad():
        rows += 0.1 * torch.randn(rows.shape, generator=torch.Generator().manual_seed(0))
    found = _loss(trainer)
    model.eval()
    with torch.no_grad():
        gains = [
            _ratio(model, pair.prompt_ids, pair.chosen_ids)
            - _ratio(model, pair.prompt_ids, pair.rejected_ids)
            for pair in pairs
        ]
    expected = torch.stack([-logsigmoid(0.1 * gain) for gain in gains]).mean()
    assert found == pytest.approx(float(expected), rel=1e-4)


def test_orpo_adds_the_odds_to_the_likelihood_of_the_answers(
    base: ModelSource, tmp_path: Path
) -> None:
    trainer, pairs = _made(base, tmp_path, {"type": "orpo", "beta": 0.3})
    found = _loss(trainer)
    trainer.model.eval()
    with torch.no_grad():
        chosen = [_logprobs(trainer.model, p.prompt_ids, p.chosen_ids) for p in pairs]
        rejected = [_logprobs(trainer.model, p.prompt_ids, p.rejected_ids) for p in pairs]

    def log_odds(logprobs: Tensor) -> Tensor:
        mean = logprobs.mean()
        return mean - torch.log1p(-mean.exp())

    odds = [log_odds(c) - log_odds(r) for c, r in zip(chosen, rejected, strict=True)]
    likelihood = torch.cat(chosen).mean()
    expected = -likelihood - 0.3 * torch.stack([logsigmoid(value) for value in odds]).mean()
    assert found == pytest.approx(float(expected), rel=1e-4)


@pytest.fixture(scope="module")
def mixture(base: ModelSource, tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    """A mixture of experts whose own configuration asks for the router's logits."""
    folder = tmp_path_factory.mktemp("mixture")
    shutil.copytree(base.path, folder / "base")
    config = json.loads((base.path / "config.json").read_text())
    torch.manual_seed(0)
    network = MixtralConfig(
        vocab_size=config["vocab_size"], hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, num_local_experts=4, num_experts_per_tok=2,
        pad_token_id=config["pad_token_id"], eos_token_id=config["eos_token_id"],
        output_router_logits=True,
    )  # fmt: skip
    MixtralForCausalLM(network).save_pretrained(folder / "base")
    return resolve_model("base", relative_to=folder)


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_a_batch_returns_router_logits_only_if_their_loss_is_trained(
    mixture: ModelSource, tmp_path: Path, method: str
) -> None:
    trainer, _ = _made(mixture, tmp_path, {"type": method})
    asked: list[Any] = []
    decoder = trainer.model.get_base_model().model
    decoder.register_forward_pre_hook(
        lambda _, __, given: asked.append(given.get("output_router_logits")), with_kwargs=True
    )
    _loss(trainer)
    assert asked  # a batch that returns them is computed whole
    assert not any(asked)


def test_orpo_weighs_the_routers_loss_by_our_key(mixture: ModelSource, tmp_path: Path) -> None:
    losses, method = [], {"type": "orpo"}
    for weight in (0.0, 0.5):
        torch.manual_seed(1)
        trainer, _ = _made(mixture, tmp_path / "work", method, router_aux_loss_coef=weight)
        # A batch that returns them is computed whole.
        assert trainer.model.config.output_router_logits == (weight > 0)
        losses.append(_loss(trainer))
    (batch,) = trainer.get_train_dataloader()
    both = trainer.concatenated_inputs(batch, padding_value=trainer.padding_value)
    with torch.no_grad():
        routed = trainer.model(
            input_ids=both["concatenated_input_ids"],
            attention_mask=both["concatenated_attention_mask"], output_router_logits=True,
        )  # fmt: skip
    assert losses[1] - losses[0] == pytest.approx(0.5 * float(routed.aux_loss), rel=1e-3)


@pytest.mark.parametrize(
    "options", [{"desirable_weight": 1.5}, {"loss_type": "apo_zero_unpaired", "beta": 0.4}]
)
def test_kto_compares_each_answer_with_the_base_and_the_batch(
    base: ModelSource, tmp_path: Path, options: dict[str, Any]
) -> None:
    trainer, rows = _made(base, tmp_path, {"type": "kto", **options})
    model = trainer.model
    (batch,) = trainer.get_train_dataloader()
    model.train()
    found = float(trainer.compute_loss(model, batch).detach())
    by_ids = {tuple(row.prompt_ids + row.completion_ids): row for row in rows}
    ids, masks = batch["input_ids"].tolist(), batch["attention_mask"].tolist()
    order = [
        by_ids[tuple(i for i, kept in zip(*row, strict=True) if kept)]
        for row in zip(ids, masks, strict=True)
    ]
    model.eval()
    beta = trainer.args.beta
    with torch.no_grad():
        kl = torch.zeros(())
        if trainer.args.loss_type == "kto":
            mismatched = [
                _ratio(model, row.prompt_ids, order[index - 1].completion_ids)
                for index, row in enumerate(order)
            ]
            kl = torch.stack(mismatched).mean().clamp(min=0)
        values = []
        for row in order:
            gain = beta * (_ratio(model, row.prompt_ids, row.completion_ids) - kl)
            weight = trainer.args.desirable_weight if row.label else 1.0
            values.append(weight * (1 - torch.sigmoid(gain if row.label else -gain)))
    assert found == pytest.approx(float(torch.stack(values).mean()), rel=1e-4)


def test_a_reward_model_scores_the_last_token_of_each_answer(
    base: ModelSource, tmp_path: Path
) -> None:
    trainer, pairs = _made(base, tmp_path, {"type": "reward", "center_rewards_coefficient": 0.1})
    found = _loss(trainer)
    model = trainer.model.eval()
    with torch.no_grad():
        chosen, rejected = (
            torch.stack([_score(model, pair.sequences[side]) for pair in pairs]) for side in (0, 1)
        )
    expected = -logsigmoid(chosen - rejected).mean() + 0.1 * (chosen + rejected).square().mean()
    assert float((chosen - rejected).abs().min()) > 0
    assert found == pytest.approx(float(expected), rel=1e-4)


def test_a_stop_token_that_pads_too_is_scored(base: ModelSource, tmp_path: Path) -> None:
    folder = tmp_path / "base"
    shutil.copytree(base.path, folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "pad_token": "<|im_end|>"}))
    padded = resolve_model("base", relative_to=tmp_path)
    trainer, pairs = _made(padded, tmp_path / "work", {"type": "reward"})
    found = _loss(trainer)
    model = trainer.model.eval()
    with torch.no_grad():
        scores = [[_score(model, ids) for ids in pair.sequences] for pair in pairs]
    expected = torch.stack([-logsigmoid(chosen - rejected) for chosen, rejected in scores]).mean()
    assert found == pytest.approx(float(expected), rel=1e-4)


def _score(model: Any, ids: list[int]) -> Tensor:
    """Return the linear score of the last token's hidden state."""
    plain = model.get_base_model()
    hidden = plain.model(input_ids=torch.tensor([ids])).last_hidden_state[0, -1]
    weights = [p for name, p in plain.named_parameters() if "score" in name and p.requires_grad]
    assert len(weights) == 1
    return (weights[0] @ hidden).squeeze()


def test_grpo_weighs_the_tokens_of_an_answer_by_its_advantage(
    base: ModelSource, tmp_path: Path
) -> None:
    options = {
        "type": "grpo", "reward_funcs": "rewards.py:lower", "num_generations": 4, "beta": 0.2,
        "max_completion_length": 6,
    }  # fmt: skip
    trainer, _ = _made(base, tmp_path, options)
    model = trainer.model
    assert "ref" not in model.peft_config
    model.train()
    (batch, *_) = trainer.get_train_dataloader()
    inputs = trainer._prepare_inputs(batch)
    trainer.current_gradient_accumulation_steps = 1
    found = float(trainer.compute_loss(model, inputs).detach())
    model.eval()
    total, number, advantages = torch.zeros(()), 0, []
    prompts, texts, tokenizer = [], [], trainer.processing_class
    for index in range(NUM_ROWS):
        prompt, answer = (
            [i for i, kept in zip(*row, strict=True) if kept]
            for row in (
                (inputs[f"{part}_ids"][index].tolist(), inputs[f"{part}_mask"][index].tolist())
                for part in ("prompt", "completion")
            )
        )
        prompts.append(tuple(prompt))
        text = tokenizer.decode(answer, skip_special_tokens=True)
        texts.append("".join(filter(str.isalnum, text)))
        advantage = inputs["advantages"][index]
        advantages.append(float(advantage))
        with torch.no_grad():
            tuned = _logprobs(model, prompt, answer)
            with model.disable_adapter():
                gap = _logprobs(model, prompt, answer) - tuned
        # On the policy that sampled the answer the ratio is 1; the divergence is Schulman's k3.
        total = total + (-advantage + 0.2 * (gap.exp() - gap - 1)).sum()
        number += len(answer)
    assert found == pytest.approx(float(total) / number, rel=1e-4, abs=1e-6)
    rewards = [sum(map(str.islower, text)) / max(len(text), 1) for text in texts]
    assert sorted(Counter(prompts).values()) == [4, 4]  # in an order that TRL has drawn
    for asked in set(prompts):
        places = [place for place, prompt in enumerate(prompts) if prompt == asked]
        group = torch.tensor([rewards[place] for place in places])
        expected = (group - group.mean()) / (group.std() + 1e-4)
        found_here = [advantages[place] for place in places]
        assert found_here == pytest.approx(expected.tolist(), abs=1e-4)
    assert any(advantages)


@pytest.mark.parametrize(
    ("method", "figure"), [("dpo", "rewards/margins"), ("orpo", "rewards/margins"),
                           ("reward", "margin"), ("kto", "rewards/margins"), ("grpo", "reward")]
)  # fmt: skip
def test_a_short_last_batch_counts_by_its_rows(
    base: ModelSource, tmp_path: Path, method: str, figure: str
) -> None:
    options: dict[str, Any] = {"type": method}
    size = 3
    if method == "grpo":
        options |= {"reward_funcs": "rewards.py:lower", "num_generations": 4}
        options["max_completion_length"], size = 6, 16
    trainer, rows = _made(base, tmp_path, options, per_device_train_batch_size=size)
    # Batches of 3, 3 and 1 row, or of 16 and 12 answers; held-out rows are in order of length.
    rows = sorted(rows, key=lambda row: max(map(len, _sequences(row))))[:7]
    trainer.eval_dataset = trainer.eval_dataset.select(range(7))
    answers: list[float] = []
    if method == "grpo":
        given = trainer.reward_funcs[0]

        def kept(**columns: Any) -> list[float]:
            values: list[float] = given(**columns)
            answers.extend(values)
            return values

        trainer.reward_funcs[0] = kept
    found = trainer.evaluate()[f"eval_{figure}"]
    model = trainer.model.eval()
    with torch.no_grad():
        expected = sum(answers) / len(answers) if method == "grpo" else _margin(model, method, rows)
    assert found == pytest.approx(float(expected), rel=1e-3, abs=1e-6)


def _sequences(row: Any) -> list[list[int]]:
    if hasattr(row, "sequences"):
        return list(row.sequences)
    return [row.prompt_ids + getattr(row, "completion_ids", [])]


def _margin(model: Any, method: str, rows: Any) -> Tensor:
    """Return the mean difference of the rewards of good and bad answers."""
    if method == "kto":
        gains = [(row.label, _ratio(model, row.prompt_ids, row.completion_ids)) for row in rows]
        good, bad = ([gain for found, gain in gains if found is label] for label in (True, False))
        return 0.1 * (torch.stack(good).mean() - torch.stack(bad).mean())
    if method == "reward":
        scores = [_score(model, ids) for row in rows for ids in row.sequences]
        return (torch.stack(scores[::2]) - torch.stack(scores[1::2])).mean()
    sides = [(row.prompt_ids, ids) for row in rows for ids in (row.chosen_ids, row.rejected_ids)]
    if method == "orpo":
        values = [_logprobs(model, *side).mean() for side in sides]
    else:
        values = [_ratio(model, *side) for side in sides]
    return 0.1 * (torch.stack(values[::2]) - torch.stack(values[1::2])).mean()


@pytest.mark.parametrize("loss_type", ["kto", "apo_zero_unpaired"])
def test_kto_measures_the_margin_also_where_no_batch_has_both_labels(
    base: ModelSource, tmp_path: Path, loss_type: str
) -> None:
    # Good answers are shorter than bad ones, and batches have rows of like length.
    size = 1 if loss_type == "apo_zero_unpaired" else 2
    trainer, rows = _made(
        base, tmp_path, {"type": "kto", "loss_type": loss_type}, per_device_train_batch_size=size
    )
    rows = [replace(row, completion_ids=row.completion_ids * (3 - 2 * row.label)) for row in rows]
    ordered = sorted(rows, key=lambda row: row.label, reverse=True)
    columns = {name: [getattr(row, name) for row in ordered] for name in vars(rows[0])}
    trainer.eval_dataset = Dataset.from_dict(columns)
    found = trainer.evaluate()["eval_rewards/margins"]
    model = trainer.model.eval()
    with torch.no_grad():
        gains = {
            label: torch.stack(
                [_ratio(model, r.prompt_ids, r.completion_ids) for r in rows if r.label is label]
            )
            for label in (True, False)
        }
    expected = 0.1 * (gains[True].mean() - gains[False].mean())
    assert found == pytest.approx(float(expected), rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("method", ["sft", "dpo", "orpo", "kto", "reward"])
def test_activations_that_are_computed_again_give_the_same_gradients(
    base: ModelSource, tmp_path: Path, method: str
) -> None:
    found = []
    for again in (False, True):
        training = {"gradient_checkpointing": again, "max_steps": 1, "warmup_steps": 0}
        trainer, _ = _made(base, tmp_path / str(again), {"type": method}, **training)
        seen: dict[str, Tensor] = {}
        trainer.add_callback(_Record(seen))
        computed = _count_forwards(trainer.model)
        trainer.train()
        found.append((seen, computed[0]))
    (plain, few), (checked, many) = found
    assert many > few  # the layers did run again
    assert plain.keys() == checked.keys() and len(plain) == 28 + (method == "reward")
    for name, gradient in plain.items():
        assert float(gradient.abs().max()) > 0, name
        torch.testing.assert_close(checked[name], gradient, rtol=1e-5, atol=1e-9)


def _count_forwards(model: Any) -> list[int]:
    """Count how often the first layer's MLP runs in training mode."""
    computed = [0]
    mlp = next(module for name, module in model.named_modules() if name.endswith("layers.0.mlp"))

    def count(module: Any, *_: Any) -> None:
        computed[0] += module.training

    mlp.register_forward_pre_hook(count)
    return computed


class _Record(TrainerCallback):  # type: ignore[misc]
    """Keeps the gradients of the first step."""

    def __init__(self, seen: dict[str, Tensor]) -> None:
        self.seen = seen

    def on_pre_optimizer_step(self, *_: Any, model: Any, **__: Any) -> None:
        if not self.seen:
            self.seen |= {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}

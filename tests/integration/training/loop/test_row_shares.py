"""Shares of a batch, each a tree of distinct tokens, train as whole rows do."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as T
from peft import LoraConfig, get_peft_model

from training.adapters.lora_linear import use_lora_linear
from training.loop import row_shares, shared_rows
from training.loop.answer_loss import add_answer_loss
from training.loop.distinct_tokens import tree_of
from training.loop.row_shares import (
    class_fits_row_shares,
    divide,
    fits_row_shares,
    loss_in_shares,
    row_threads,
)

SMALL = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "initializer_range": 0.3,
    "pad_token_id": 0,
}  # fmt: skip
COMPUTED: dict[str, Any] = {
    "llama": T.LlamaConfig(**SMALL),
    "qwen3-moe": T.Qwen3MoeConfig(
        **SMALL, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16
    ),
    "mistral, short window": T.MistralConfig(**SMALL | {"sliding_window": 12}),
    "gemma3, short window": T.Gemma3TextConfig(
        **SMALL | {"sliding_window": 12, "num_hidden_layers": 6}
    ),
    "deepseek-v3": T.DeepseekV3Config(
        **{name: value for name, value in SMALL.items() if name != "head_dim"}
        | {"num_key_value_heads": 2, "n_routed_experts": 4, "num_experts_per_tok": 2},
        moe_intermediate_size=16, n_group=1, topk_group=1, first_k_dense_replace=1, q_lora_rank=8,
        kv_lora_rank=8, qk_nope_head_dim=8, qk_rope_head_dim=8, v_head_dim=8,
    ),
}  # fmt: skip
WHOLE: dict[str, Any] = {
    "convolutions": T.Lfm2Config(**SMALL, layer_types=["conv", "full_attention"]),
    "a state": T.Mamba2Config(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, num_heads=4, head_dim=16, n_groups=1,
        state_size=8,
    ),
    "chunks": T.Llama4TextConfig(**SMALL, intermediate_size_mlp=48, num_local_experts=2),
    "no positions": T.BloomConfig(vocab_size=64, hidden_size=32, n_layer=2, n_head=2),
    "a rotation by length": T.LlamaConfig(
        **SMALL, rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    ),
}  # fmt: skip
LENGTHS = (30, 24, 37, 24, 19, 30, 33)
STARTS = ((), (0, 18), (0, 18), (1, 9), (3, 9), (0, 30), (5, 20))
"""For each row the row that it starts like, and the tokens that they share; the sixth is the first
row again, and the seventh goes on where the sixth ends before."""


def _model(config: Any, **options: Any) -> Any:
    torch.manual_seed(0)
    base = T.AutoModelForCausalLM.from_config(config)
    left_out = {"lm_head", "out_proj"}
    if config.model_type == "deepseek_v3":  # peft trains fused experts by these names too
        left_out |= {"gate_proj", "up_proj", "down_proj"}
    linear = {name.rpartition(".")[2] for name, part in base.named_modules()
              if type(part) is torch.nn.Linear} - left_out  # fmt: skip
    model = get_peft_model(base, LoraConfig(r=4, target_modules=sorted(linear), **options))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # zeros at first, which would hide the gradient of lora_A
            torch.nn.init.normal_(parameter, std=0.05)
    use_lora_linear(model)
    return model


def _rows() -> list[list[int]]:
    draw = torch.Generator().manual_seed(0)
    rows: list[list[int]] = []
    for length, start in zip(LENGTHS, STARTS, strict=True):
        row = torch.randint(1, 64, (length,), generator=draw).tolist()
        if start:
            row[: start[1]] = rows[start[0]][: start[1]]
        rows.append(row)
    return rows


def _batch() -> dict[str, Any]:
    rows = _rows()
    ids, mask = torch.zeros(2, len(rows), max(LENGTHS), dtype=torch.long)
    labels = torch.full(ids.shape, -100)
    for index, row in enumerate(rows):
        ids[index, : len(row)], mask[index, : len(row)] = torch.tensor(row), 1
        labels[index, 7 : len(row)] = torch.tensor(row[7:])
    return {"input_ids": ids, "labels": labels, "attention_mask": mask, "use_cache": False}


def _own_gradients(model: Any, batch: dict[str, Any]) -> tuple[float, dict[str, Any]]:
    """Return the summed loss of transformers' own pass over whole rows, and its gradients."""
    logits = model(**{name: value for name, value in batch.items() if name != "labels"}).logits
    loss = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), reduction="sum"
    )
    loss.backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return float(loss.detach()), found


@pytest.mark.parametrize(
    ("family", "num_threads", "num_shares"),
    [
        *((name, number, 4) for name in COMPUTED for number in (1, 2)),
        ("llama", 3, 5),
        ("llama", 9, 5),
    ],
)
def test_loss_and_gradients_are_those_of_whole_rows(
    family: str, num_threads: int, num_shares: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_rows, "SHARE_LEAST", 16)
    monkeypatch.setattr(shared_rows, "SHARE_MOST", 30)
    model, batch = _model(COMPUTED[family]).eval(), _batch()
    own_loss, expected = _own_gradients(model, batch)
    first = (batch["input_ids"][0, : LENGTHS[0]], batch["labels"][0, : LENGTHS[0]])
    assert add_answer_loss(model, *(values.tolist() for values in first))
    COMPUTED[family].save_pretrained(tmp_path)
    assert class_fits_row_shares(tmp_path, 37) and fits_row_shares(model, _rows())
    computed: list[int] = []
    embedding = model.get_input_embeddings()
    embedding.register_forward_hook(lambda *given: computed.append(given[1][0].numel()))
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        with row_threads(model) as threads:
            loss, again = (loss_in_shares(model, batch, threads) for _ in range(2))
        assert loss is not None and again is not None
        assert torch.get_num_threads() == num_threads
    finally:
        torch.set_num_threads(before)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for pair in zip(*(torch.autograd.grad(one, trained) for one in (loss, again)), strict=True):
        assert torch.equal(*pair)  # in whatever order the threads end
    (loss / 3).backward()
    assert float(loss.detach()) == pytest.approx(own_loss, rel=1e-5)
    rows = _rows()
    distinct = {tuple(row[: at + 1]) for row in rows for at in range(len(row))}
    assert len(computed) == 2 * num_shares
    assert len(distinct) <= sum(computed) / 2 < sum(LENGTHS)
    assert len(expected) > 8
    for name, gradient in expected.items():
        found = dict(model.named_parameters())[name].grad * 3
        tolerance = 1e-4 * float(gradient.abs().max()) + 1e-6
        torch.testing.assert_close(found, gradient, rtol=1e-3, atol=tolerance, msg=name)
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("reason", WHOLE)
def test_a_class_that_would_learn_something_else_computes_whole_rows(
    reason: str, tmp_path: Path
) -> None:
    WHOLE[reason].save_pretrained(tmp_path)
    assert not class_fits_row_shares(tmp_path, 37)


def test_a_model_with_dropout_computes_whole_rows() -> None:
    config = T.LlamaConfig(**SMALL, attention_dropout=0.1)
    assert not fits_row_shares(_model(config), _rows())


@pytest.mark.parametrize(
    "options",
    [{"use_dora": True}, {"lora_dropout": 0.1}, {"modules_to_save": ["lm_head"]},
     {"trainable_token_indices": [3]}, {"target_parameters": ["experts.down_proj"]}],
    ids=lambda options: next(iter(options)),
)  # fmt: skip
def test_an_adapter_with_more_than_plain_layers_computes_whole_rows(
    options: dict[str, Any],
) -> None:
    assert fits_row_shares(_model(COMPUTED["qwen3-moe"]), _rows())
    assert not fits_row_shares(_model(COMPUTED["qwen3-moe"], **options), _rows())


@pytest.mark.parametrize("name", ["position_ids", "places"])
def test_a_token_at_another_place_is_seen_before_training(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def moved(rows: Any) -> Any:
        tree = tree_of(rows)
        changed = getattr(tree, name).clone()
        changed[-1, 3] += 1
        return tree._replace(**{name: changed})

    model = _model(COMPUTED["llama"])
    assert fits_row_shares(model, _rows())
    monkeypatch.setattr(row_shares, "tree_of", moved)
    assert not fits_row_shares(model, _rows())


def test_a_tree_has_each_start_once() -> None:
    rows = [[1, 2, 3], [1, 2, 4, 5], [1, 2, 4, 5, 6], [7]]
    tree = tree_of(rows)
    assert tree.input_ids.tolist() == [[1, 2, 3, 4, 5, 6, 7]]
    assert tree.position_ids.tolist() == [[0, 1, 2, 2, 3, 4, 0]]
    assert tree.places.tolist() == [[0, 1, 2, 2, 2], [0, 1, 3, 4, 4], [0, 1, 3, 4, 5], [6] * 5]
    assert tree.firsts.tolist() == [0, 1, 2, 7, 8, 14, 15]


@pytest.mark.parametrize(
    ("num_rows", "num_threads", "num_shares", "num_workers"),
    [(1, 8, 1, 1), (2, 2, 1, 1), (6, 2, 2, 2), (6, 8, 2, 2), (40, 2, 4, 2), (40, 1, 4, 1)],
)
def test_shares_are_neither_small_nor_large(
    num_rows: int, num_threads: int, num_shares: int, num_workers: int
) -> None:
    rows = [([index, *range(99)], [-100] * 100) for index in range(num_rows)]
    shares, found = divide(rows, num_threads)
    assert (len(shares), found) == (num_shares, num_workers)
    assert list(itertools.chain(*shares)) == rows
    sizes = list(map(len, shares))
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("name", ["position_ids", "token_type_ids"])
def test_a_batch_of_another_kind_is_left_to_the_model(name: str) -> None:
    batch = _batch()
    model = _model(COMPUTED["llama"])
    gap = {**batch, "attention_mask": batch["attention_mask"].clone()}
    gap["attention_mask"][0, 0] = 0
    with row_threads(model) as threads:
        for left in ({**batch, name: batch["input_ids"]}, gap):
            assert loss_in_shares(model, left, threads) is None

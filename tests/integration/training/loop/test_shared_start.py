"""The start that all rows share is computed once, and trains as if each row computed it."""

from __future__ import annotations

import functools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as T

from tests.integration.training.methods.datasets import KINDS, REWARD_FILE, write_rows
from tests.integration.training.tiny import make_base
from training.config import TrainingConfig
from training.loop import shared_start
from training.loop.answer_loss import add_answer_loss
from training.loop.shared_rows import Starts
from training.loop.shared_start import fits_shared_starts, share_starts
from training.train import train_adapter
from tuneline.core.artifact import Artifact, new_artifact, open_artifact
from tuneline.models.source import resolve_model

SMALL = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "initializer_range": 0.3,
    "pad_token_id": 0,
}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
FAMILIES: dict[str, Any] = {
    "llama": T.LlamaConfig(**SMALL),
    "qwen3-moe": T.Qwen3MoeConfig(**SMALL | EXPERTS),
    "mistral, short window": T.MistralConfig(**SMALL | {"sliding_window": 12}),
    "gemma3, short window": T.Gemma3TextConfig(
        **SMALL | {"sliding_window": 12, "num_hidden_layers": 6}
    ),
    "gpt-oss": T.GptOssConfig(
        **SMALL, num_local_experts=4, num_experts_per_tok=2, sliding_window=12
    ),
    "lfm2": T.Lfm2Config(**SMALL, layer_types=["conv", "full_attention"]),
    "granite hybrid, short blocks": T.GraniteMoeHybridConfig(
        **SMALL, num_local_experts=4, num_experts_per_tok=2, shared_intermediate_size=16,
        layer_types=["mamba", "attention"], mamba_n_heads=4, mamba_d_head=16, mamba_d_state=8,
        mamba_n_groups=1, mamba_chunk_size=16,
    ),
    "deepseek-v3": T.DeepseekV3Config(
        **{name: value for name, value in SMALL.items() if name != "head_dim"}
        | {"num_key_value_heads": 2, "n_routed_experts": 4, "num_experts_per_tok": 2},
        moe_intermediate_size=16, n_group=1, topk_group=1, first_k_dense_replace=1, q_lora_rank=8,
        kv_lora_rank=8, qk_nope_head_dim=8, qk_rope_head_dim=8, v_head_dim=8,
    ),
}  # fmt: skip
STATEFUL: dict[str, Any] = {
    "mamba2": T.Mamba2Config(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, num_heads=4, head_dim=16, n_groups=1,
        state_size=8,
    ),
    "llama4": T.Llama4TextConfig(**SMALL, intermediate_size_mlp=48, num_local_experts=2),
}  # fmt: skip
START, LENGTH, ROWS = 40, 52, 3
"""Of the batch whose rows all share a start."""
BATCHES: dict[str, tuple[list[tuple[int, int]], list[int]]] = {
    "all": ([(0, START)] * ROWS, [0] * ROWS),
    "pairs": ([(0, 40), (2, 48), (3, 33), (0, 40), (2, 48), (3, 33)], [0] * 6),
    "a part": ([(1, 40), (0, 36), (1, 40), (3, 20), (1, 40)], [0] * 5),
    "padded left": ([(0, 36), (2, 48), (0, 36), (2, 48)], [14, 2, 14, 2]),
}
"""For each row the group and the tokens that it shares with the group, and its padding on the
left."""
SYSTEM = "You answer in one lower-case word and in nothing else, whatever you are asked. " * 2


def _model(config: Any) -> Any:
    torch.manual_seed(0)
    return T.AutoModelForCausalLM.from_config(config).eval()


def _batch(kind: str = "all") -> dict[str, Any]:
    """Return a batch whose rows share starts as `BATCHES` says, with rests of unequal length."""
    starts, before = BATCHES[kind]
    draw = torch.Generator().manual_seed(0)
    words = [torch.randint(1, 64, (length,), generator=draw) for length in (40, 40, 48, 36)]
    lengths = [start + 12 - 3 * (row % 2) for row, (_, start) in enumerate(starts)]
    shape = len(starts), max(a + b for a, b in zip(lengths, before, strict=True))
    ids, mask = torch.zeros(2, *shape, dtype=torch.long)
    labels = torch.full(shape, -100)
    for row, ((group, start), length, first) in enumerate(
        zip(starts, lengths, before, strict=True)
    ):
        rest = torch.randint(1, 64, (length,), generator=draw)
        rest[:start] = words[group][:start]
        rest[start] = row + 1  # rows differ right after their start
        span = slice(first, first + length)
        ids[row, span], mask[row, span] = rest, 1
        labels[row, first + start : first + length] = rest[start:]
    # Tokens of a start that two of its rows train too, as answers that begin alike.
    second = next(row for row in range(1, len(starts)) if starts[row][0] == starts[0][0])
    for row in (0, second):
        span = slice(before[row] + 30, before[row] + 33)
        labels[row, span] = ids[row, span]
    return {"input_ids": ids, "labels": labels, "attention_mask": mask, "use_cache": False}


def _positions(layer: Any) -> list[int]:
    """Record how many positions each pass of a layer computes."""
    counts: list[int] = []
    layer.register_forward_pre_hook(lambda _, args: counts.append(args[0].shape[:2].numel()))
    return counts


@pytest.mark.parametrize(
    ("kind", "passes"),
    [("all", [40, 3 * 12]), ("pairs", [3 * 48, 6 * 12]), ("a part", [3 * 40, 5 * 12]),
     ("padded left", [2 * 48, 4 * 12])],
)  # fmt: skip
@pytest.mark.parametrize("answer_loss", [True, False], ids=["answer loss", "own loss"])
@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradients_are_those_of_whole_rows(
    family: str, kind: str, passes: list[int], *, answer_loss: bool
) -> None:
    model, batch = _model(FAMILIES[family]), _batch(kind)
    kept = batch["attention_mask"].bool()
    rows = [ids[own].tolist() for ids, own in zip(batch["input_ids"], kept, strict=True)]
    trained = int((batch["labels"][:, 1:] != -100).sum())
    model(**batch).loss.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    if answer_loss:
        assert add_answer_loss(model, rows[0], batch["labels"][0][kept[0]].tolist())
    assert share_starts(model, rows, padded_left=kind == "padded left")
    counts = _positions(model.model.layers[0])
    loss = model(**batch, answer_loss=True) / trained if answer_loss else model(**batch).loss
    loss.backward()
    assert counts == passes
    assert len(expected) > 8
    for name, gradient in expected.items():
        tolerance = 1e-5 * float(gradient.abs().max()) + 1e-7
        found = dict(model.named_parameters())[name].grad
        torch.testing.assert_close(found, gradient, rtol=1e-4, atol=tolerance)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_class_that_fits_is_known_before_its_weights_are_read(
    family: str, tmp_path: Path
) -> None:
    FAMILIES[family].save_pretrained(tmp_path)
    state = torch.random.get_rng_state()
    assert fits_shared_starts(tmp_path, LENGTH)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("family", FAMILIES)
def test_rounding_to_bfloat16_keeps_no_model_from_sharing(family: str) -> None:
    model = _model(FAMILIES[family]).bfloat16()
    assert share_starts(model, _batch()["input_ids"].tolist(), padded_left=True)


def _another_start(cache: Any, _: dict[str, Any]) -> None:
    cache.reorder_cache(torch.tensor([0, 1, 2, 0]))


def _next_position(_: Any, given: dict[str, Any]) -> None:
    given["position_ids"] = given["position_ids"] + torch.tensor([0, 0, 0, 1])[:, None]


def _hidden_token(cache: Any, given: dict[str, Any]) -> None:
    given["attention_mask"][1, cache.get_seq_length() - 1] = 0


def _seen_padding(cache: Any, given: dict[str, Any]) -> None:
    given["attention_mask"][:, : cache.get_seq_length()] = 1


@pytest.mark.parametrize(
    "defect", [_another_start, _next_position, _hidden_token, _seen_padding],
    ids=lambda defect: defect.__name__,
)  # fmt: skip
@pytest.mark.parametrize("family", ["llama", "qwen3-moe", "gpt-oss"])
def test_a_defect_in_one_row_is_no_rounding_to_bfloat16(family: str, defect: Any) -> None:
    model = _model(FAMILIES[family]).bfloat16()
    original = model.model.forward

    @functools.wraps(original)
    def forward(**given: Any) -> Any:
        cache = given.get("past_key_values")
        if cache is not None and cache.get_seq_length():
            defect(cache, given)
        return original(**given)

    model.model.forward = forward
    assert not share_starts(model, _batch()["input_ids"].tolist())


@pytest.mark.parametrize("family", STATEFUL)
def test_a_model_that_keeps_another_state_computes_whole_rows(family: str, tmp_path: Path) -> None:
    STATEFUL[family].save_pretrained(tmp_path)
    assert not fits_shared_starts(tmp_path, LENGTH)
    model, batch = _model(STATEFUL[family]), _batch()
    expected = model(**batch).loss
    assert not share_starts(model, batch["input_ids"].tolist())
    torch.testing.assert_close(model(**batch).loss, expected)


@pytest.mark.parametrize("shape", [(ROWS, LENGTH), (16, 200)], ids=["most", "a part"])
def test_a_model_whose_later_tokens_change_the_start_computes_whole_rows(
    shape: tuple[int, int],
) -> None:
    model = _model(FAMILIES["llama"])
    model.config._attn_implementation = "eager"
    layer, original = model.model.layers[0], model.model.layers[0].forward
    layer.forward = lambda hidden, **kwargs: original(hidden + hidden.mean(1, True), **kwargs)
    rows = torch.randint(1, 64, shape, generator=torch.Generator().manual_seed(0))
    rows[:, :START] = rows[0, :START]
    assert not share_starts(model, rows.tolist())


def test_the_comparison_of_long_rows_is_small() -> None:
    model = _model(FAMILIES["llama"])
    rows = torch.randint(1, 64, (2, 3000), generator=torch.Generator().manual_seed(0))
    rows[:, :2000] = rows[0, :2000]
    counts = _positions(model.model.layers[0])
    assert share_starts(model, rows.tolist())
    assert max(counts) == 320  # four rows of at most 80 tokens


OPT = {"ffn_dim": 48, "word_embed_proj_dim": 32, "max_position_embeddings": 64}
RANDOM: dict[str, Any] = {
    "attention": T.LlamaConfig(**SMALL, attention_dropout=0.1),
    "a function": T.OPTConfig(**SMALL, **OPT, dropout=0.1),
    "jitter": T.MixtralConfig(**SMALL, num_local_experts=4, router_jitter_noise=0.1),
}


@pytest.mark.parametrize("kind", RANDOM)
def test_random_numbers_of_the_network_keep_whole_rows(kind: str, tmp_path: Path) -> None:
    RANDOM[kind].save_pretrained(tmp_path)
    assert not fits_shared_starts(tmp_path, LENGTH)
    model, state = _model(RANDOM[kind]), torch.random.get_rng_state()
    assert not share_starts(model, _batch()["input_ids"].tolist())
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_small_dropout_is_no_rounding_to_bfloat16() -> None:
    model = _model(T.LlamaConfig(**SMALL, attention_dropout=0.01)).bfloat16()
    assert not share_starts(model, _batch()["input_ids"].tolist())


def test_passes_that_are_repeated_keep_whole_rows() -> None:
    repeated = _model(FAMILIES["llama"])
    repeated.gradient_checkpointing_enable()
    assert not share_starts(repeated, _batch()["input_ids"].tolist())


ROPES: dict[str, dict[str, Any]] = {
    "longrope": {
        "short_factor": [1.0] * 8, "long_factor": [4.0] * 8, "original_max_position_embeddings": 49,
    },
    "dynamic": {"factor": 4.0},
}  # fmt: skip


@pytest.mark.parametrize("kind", ROPES)
def test_rows_whose_length_turns_their_keys_are_computed_whole(kind: str, tmp_path: Path) -> None:
    rope = {"rope_type": kind, "rope_theta": 1e4} | ROPES[kind]
    config = T.LlamaConfig(**SMALL, rope_parameters=rope, max_position_embeddings=49)
    config.save_pretrained(tmp_path)
    assert fits_shared_starts(tmp_path, 48)
    assert not fits_shared_starts(tmp_path, 50)
    model, batch = _model(config), _batch()  # longer than 49, with a shorter start
    expected = model(**batch).loss
    assert share_starts(model, [row[:48] for row in batch["input_ids"].tolist()])
    torch.testing.assert_close(model(**batch).loss, expected)


@pytest.mark.parametrize(
    "config",
    [
        T.LlamaConfig(
            hidden_size=4096, intermediate_size=14336, num_hidden_layers=4,
            num_attention_heads=32, num_key_value_heads=8,
        ),
        T.Qwen3MoeConfig(hidden_size=2048, num_hidden_layers=4, num_experts=128),
    ],
    ids=["8 B", "30 B of experts"],
)  # fmt: skip
def test_a_large_class_is_tested_on_a_narrow_network(config: Any, tmp_path: Path) -> None:
    config.save_pretrained(tmp_path)
    assert fits_shared_starts(tmp_path, LENGTH)


def test_the_small_network_leaves_the_random_numbers_of_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    FAMILIES["llama"].save_pretrained(tmp_path)
    seeds: list[int] = []
    monkeypatch.setattr("torch.cuda.manual_seed_all", seeds.append)
    assert fits_shared_starts(tmp_path, LENGTH)
    assert not seeds


def _dataset(folder: Path, kind: str) -> Artifact:
    """Write rows with long starts: two system prompts, or one of its own for each prompt."""
    starts = 2 if kind in ("answer", "label") else 12
    rows = [KINDS[kind](index) for index in range(12)]
    rows = [
        replace(row, prompt=(
            {"role": "system", "content": f"Number {index % starts}. {SYSTEM}"}, *row.prompt,
        ))
        for index, row in enumerate(rows)
    ]  # fmt: skip
    with new_artifact(folder, "dataset", config={}, inputs=[]) as draft:
        write_rows(draft.dir / "train.jsonl", rows[:8])
        write_rows(draft.dir / "heldout.jsonl", rows[8:])
    return open_artifact(folder, kind="dataset")


GRPO = {"num_generations": 4, "max_completion_length": 8, "reward_funcs": "rewards.py:lower",
        "beta": 0.1}  # fmt: skip
OPTIONS: dict[str, dict[str, Any]] = {
    "grpo": GRPO,
    "distillation": {"teacher_model_name_or_path": "teacher", "max_completion_length": 8},
}


@pytest.mark.parametrize(
    ("method", "kind", "changes"),
    [("sft", "answer", {}), ("sft", "answer", {"load_in_4bit": True}),
     ("dpo", "preference", {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}),
     ("dpo", "preference", {"finetuning_type": "full", "learning_rate": 1e-3}),
     ("orpo", "preference", {}), ("reward", "preference", {}), ("kto", "label", {}),
     ("grpo", "prompt", {"per_device_train_batch_size": 8}),
     ("distillation", "answer", {})],
)  # fmt: skip
def test_every_method_learns_the_same_from_shared_starts(
    method: str,
    kind: str,
    changes: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make_base(tmp_path / "base")
    make_base(tmp_path / "teacher", seed=1)
    base = resolve_model("base", relative_to=tmp_path)
    dataset = _dataset(tmp_path / "dataset", kind)
    config = TrainingConfig.model_validate(
        {"method": {"type": method, **OPTIONS.get(method, {})},
         "num_train_epochs": 2, "per_device_train_batch_size": 4,
         "gradient_accumulation_steps": 1, "learning_rate": 3e-3, "logging_steps": 1,
         "gradient_checkpointing": False, "max_length": 256, "report_to": [],
         **changes}
    )  # fmt: skip
    passes: list[int] = []
    original = shared_start._from_starts

    def counted(decoder: Any, inner: Any, starts: Starts, *args: Any, **kwargs: Any) -> Any:
        passes.append(len(starts.lengths))
        return original(decoder, inner, starts, *args, **kwargs)

    monkeypatch.setattr(shared_start, "_from_starts", counted)
    (tmp_path / "rewards.py").write_text(REWARD_FILE)
    shared = train_adapter(config, dataset, base, tmp_path / "shared", relative_to=tmp_path)
    assert shared.manifest.metrics["saved_token_share"] > 0.2
    assert len(passes) > 4
    passes.clear()
    monkeypatch.setattr("training.prepared.expected_sharing", lambda *_: None)
    whole = train_adapter(config, dataset, base, tmp_path / "whole", relative_to=tmp_path)
    assert not passes
    assert whole.manifest.metrics["saved_token_share"] == 0
    ours, theirs = (
        [point["loss"] for line in (found.path / "loss.jsonl").read_text().splitlines()
         if "loss" in (point := json.loads(line))]
        for found in (shared, whole)
    )  # fmt: skip
    assert len(ours) >= 4
    assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-6)

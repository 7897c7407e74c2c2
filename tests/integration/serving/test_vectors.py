"""The vectors that a server must give: those of the folder, by its own pooling."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from serving.vectors import compare_vectors, proof_texts
from tuneline.core.errors import ArtifactError, ServerError
from tuneline.models.vectors import Recipe, States, load_dense, load_states, read_recipe, vector_of

WORDS = ["[PAD]", "[CLS]", "[SEP]", "my", "order", "is", "late"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tokenizer = Tokenizer(
        models.WordLevel({word: at for at, word in enumerate(WORDS)}, unk_token="[PAD]")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]").save_pretrained(tmp_path)
    torch.manual_seed(3)
    config = BertConfig(
        vocab_size=len(WORDS), hidden_size=8, intermediate_size=16, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=32, initializer_range=0.5,
    )  # fmt: skip
    BertModel(config, add_pooling_layer=False).save_pretrained(tmp_path)
    write_modules(tmp_path, "Pooling", pooling={"pooling_mode_mean_tokens": True})
    return tmp_path


def write_modules(folder: Path, *kinds: str, pooling: dict[str, Any]) -> None:
    rows = [("Transformer", ""), *((kind, f"{at}_{kind}") for at, kind in enumerate(kinds, 1))]
    entries = [{"type": f"sentence_transformers.models.{kind}", "path": at} for kind, at in rows]
    (folder / "modules.json").write_text(json.dumps(entries))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))


def own_states(folder: Path) -> torch.Tensor:
    ids = torch.tensor([[1, 3, 4, 5, 6, 2]])  # [CLS] my order is late [SEP]
    with torch.no_grad():
        return BertModel.from_pretrained(folder).eval()(input_ids=ids).last_hidden_state[0]


def vector(folder: Path) -> torch.Tensor:
    recipe = read_recipe(folder)
    found = load_states(folder, recipe)("my order is late", True)
    assert found.num_tokens == 6
    return vector_of(found.states, recipe, load_dense(folder, recipe))


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [
        ({"pooling_mode_mean_tokens": True}, lambda s: s.sum(0) / 6),
        ({"pooling_mode_cls_token": True, "include_prompt": True}, lambda s: s[0]),
        ({"pooling_mode_lasttoken": True}, lambda s: s[5]),
        ({"pooling_mode_max_tokens": True}, lambda s: s.amax(0)),
        ({"pooling_mode_mean_sqrt_len_tokens": True}, lambda s: s.sum(0) / 6**0.5),
        (
            {"pooling_mode_weightedmean_tokens": True},
            lambda s: (s[0] + 2 * s[1] + 3 * s[2] + 4 * s[3] + 5 * s[4] + 6 * s[5]) / 21,
        ),
        ({"pooling_mode": "mean"}, lambda s: s.sum(0) / 6),
    ],
)
def test_a_vector_has_the_pooling_of_the_folder(
    folder: Path, pooling: dict[str, Any], expected: Any
) -> None:
    write_modules(folder, "Pooling", pooling=pooling)
    torch.testing.assert_close(vector(folder), expected(own_states(folder)))


def test_dense_layers_and_the_normalization_follow_the_pooling(folder: Path) -> None:
    write_modules(folder, "Pooling", "Dense", "Normalize", pooling={"pooling_mode": "cls"})
    dense = folder / "2_Dense"
    dense.mkdir()
    (dense / "config.json").write_text(
        '{"activation_function": "torch.nn.modules.activation.Tanh"}'
    )
    weight, bias = torch.randn(4, 8), torch.randn(4)
    save_file({"linear.weight": weight, "linear.bias": bias}, dense / "model.safetensors")
    expected = torch.tanh(weight @ own_states(folder)[0] + bias)
    torch.testing.assert_close(vector(folder), expected / (expected**2).sum() ** 0.5)


@pytest.mark.parametrize(
    ("kinds", "pooling", "problem"),
    [
        (("Pooling", "LayerNorm"), {"pooling_mode": "cls"}, "the modules are .*LayerNorm"),
        (("Normalize",), {}, "expected Transformer, one Pooling"),
        (("Pooling",), {"pooling_mode": "attention"}, "the pooling is attention; expected one of"),
        (("Pooling",), {"word_embedding_dimension": 8}, "the pooling is not given"),
        (
            ("Pooling",),
            {"pooling_mode_cls_token": True, "pooling_mode_max_tokens": True},
            "the pooling is cls_token, max_tokens",
        ),
    ],
)
def test_a_folder_with_other_modules_is_refused(
    folder: Path, kinds: tuple[str, ...], pooling: dict[str, Any], problem: str
) -> None:
    write_modules(folder, *kinds, pooling=pooling)
    with pytest.raises(ArtifactError, match=problem):
        read_recipe(folder)


@pytest.mark.parametrize("text", ["{}x", "[1]", '[{"type": "a.Pooling"}]', "null"])
def test_broken_modules_are_refused(folder: Path, text: str) -> None:
    (folder / "modules.json").write_text(text)
    with pytest.raises(ArtifactError, match="expected a JSON list of modules"):
        read_recipe(folder)


@pytest.mark.parametrize("place", ["../other", "/etc"])
def test_a_module_outside_of_the_folder_is_refused(folder: Path, place: str) -> None:
    entries = [{"type": "x.Transformer", "path": ""}, {"type": "x.Pooling", "path": place}]
    (folder / "modules.json").write_text(json.dumps(entries))
    with pytest.raises(ArtifactError, match="expected a folder in"):
        read_recipe(folder)


def test_an_encoder_without_modules_does_not_say_its_pooling(folder: Path) -> None:
    (folder / "modules.json").unlink()
    with pytest.raises(ArtifactError, match="nothing says how its vectors are made"):
        read_recipe(folder)


@pytest.mark.parametrize(
    ("served", "num_tokens", "problem"),
    [
        ([0.6, 0.8], 3, None),
        ([0.6, 0.81], 3, "vectors differ by up to 0.01 of their length; at most 0.001"),
        ([1.2, 1.6], 3, "vectors differ by up to 1 of their length"),
        ([0.6, float("nan")], 3, "vectors differ by up to inf"),
        ([0.6, 0.8, 0.0], 3, "a vector has 3 dimensions; expected 2"),
        ([0.6, 0.8], 2, "the server counts other tokens in 1 of 1 texts: 2 in place of 3"),
    ],
)
def test_a_vector_is_judged(served: list[float], num_tokens: int, problem: str | None) -> None:
    states = torch.tensor([[9.0, 9.0], [0.0, 0.0], [3.0, 4.0]])
    recipe = Recipe("lasttoken", is_normalized=True)
    report = compare_vectors(
        recipe, [States(3, states)], [(served, num_tokens)], None, lambda vector: vector, 0.001
    )
    assert report["verdict"] == ("PASS" if problem is None else "FAIL")
    assert (problem or "") in "".join(report["problems"])


@pytest.mark.parametrize(
    ("scores", "problem"),
    [
        ([0.8, 0.8], None),
        ([0.8019, 0.8], None),
        ([0.8, 0.803], "/score: cosines differ by up to 0.003; at most 0.002 is allowed"),
        ([0.8, float("nan")], "/score: cosines differ by up to inf"),
    ],
)
def test_a_score_is_the_cosine_of_two_vectors(scores: list[float], problem: str | None) -> None:
    recipe = Recipe("lasttoken", is_normalized=True)
    expected = [States(1, torch.tensor([[3.0, 4.0]])), States(1, torch.tensor([[0.0, 2.0]]))]
    report = compare_vectors(recipe, expected, None, scores, lambda vector: vector, 0.001)
    assert report["verdict"] == ("PASS" if problem is None else "FAIL")
    assert "".join(report["problems"]).startswith(problem or "")
    assert (report["num_scores"], report["min_cosine"]) == (2, None)


@pytest.mark.parametrize(("longest", "num_texts", "longest_text"), [(4, 4, 4), (2000, 13, 378)])
def test_only_texts_that_fit_are_sent(longest: int, num_texts: int, longest_text: int) -> None:
    texts = proof_texts(lambda text: len(text.split()), longest)
    assert (len(texts), max(len(text.split()) for text in texts)) == (num_texts, longest_text)


def test_a_server_of_few_tokens_is_no_proof() -> None:
    with pytest.raises(ServerError, match="take 0 tokens"):
        proof_texts(len, 0)

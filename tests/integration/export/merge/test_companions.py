"""The companion files of a merged model: the folder that each comes from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import transformers

from export.config import MergeConfig
from export.merge.merge import merge
from tests.integration.export import families
from tests.integration.export.merging import edit_json
from tuneline.models.source import resolve_model
from tuneline.models.tokenizer import load_tokenizer
from tuneline.models.vectors import read_recipe

TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return families.make_base(tmp_path / "base")


@pytest.fixture
def adapter(tmp_path: Path, base: Path) -> Path:
    return families.make_adapter(tmp_path / "adapter", base)


def merged(base: Path, adapter: Path, tmp_path: Path) -> Path:
    return merge(MergeConfig(), resolve_model(str(base)), adapter, tmp_path / "out").path


def test_the_trained_files_go_with_the_model(base: Path, adapter: Path, tmp_path: Path) -> None:
    (adapter / "chat_template.jinja").write_text("trained {{ messages }}")
    (adapter / "generation_config.json").write_text('{"eos_token_id": [2, 7]}')
    (base / "merges.txt").write_text("of the base's tokenizer")
    out = merged(base, adapter, tmp_path)
    for name in (*TOKENIZER, "generation_config.json"):
        assert (out / name).read_bytes() == (adapter / name).read_bytes(), name
    assert not (out / "merges.txt").exists()  # two tokenizers are never mixed
    assert not (out / "adapter_config.json").exists()
    loaded = transformers.AutoModelForCausalLM.from_pretrained(out)
    assert loaded.generation_config.eos_token_id == [2, 7]
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    assert tokenizer.chat_template == "trained {{ messages }}"


@pytest.mark.parametrize("trained", [False, True])
def test_the_modules_of_sentence_transformers_go_with_the_model(
    base: Path, adapter: Path, tmp_path: Path, trained: bool
) -> None:
    """Without them, a server would pool the states of the tokens in another way."""
    for folder in [base, adapter] if trained else [base]:
        places = {"": "Transformer", "1_Pooling": "Pooling", "2_Dense": "Dense"}
        modules = [
            {"path": place, "type": f"sentence_transformers.models.{kind}"}
            for place, kind in places.items()
        ]
        (folder / "modules.json").write_text(json.dumps(modules))
        (folder / "1_Pooling").mkdir()
        (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
        (folder / "2_Dense").mkdir()
        (folder / "2_Dense" / "config.json").write_text('{"in_features": 64}')
        (folder / "2_Dense" / "model.safetensors").write_bytes(str(folder).encode())
        (folder / "2_Dense" / "pytorch_model.bin").write_bytes(b"a pickle")
    out = merged(base, adapter, tmp_path)
    named = [path.relative_to(out).as_posix() for path in out.glob("[0-9]_*/*")]
    assert sorted(named) == [
        "1_Pooling/config.json", "2_Dense/config.json", "2_Dense/model.safetensors",
    ]  # fmt: skip
    source = adapter if trained else base
    for name in ["modules.json", *named]:
        assert (out / name).read_bytes() == (source / name).read_bytes()
    recipe = read_recipe(out)
    assert (recipe.pooling, recipe.dense) == ("mean", ("2_Dense",))


def test_what_the_adapter_lacks_comes_from_the_base(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    for name in TOKENIZER:
        (adapter / name).unlink()
    out = merged(base, adapter, tmp_path)
    for name in (*TOKENIZER, "generation_config.json", "config.json"):
        assert (out / name).read_bytes() == (base / name).read_bytes(), name


def test_a_template_inside_the_tokenizer_config_is_found(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    """Folders written before transformers 5 keep the template there."""
    template = (base / "chat_template.jinja").read_text()
    (base / "chat_template.jinja").unlink()
    (adapter / "chat_template.jinja").unlink()
    options = json.loads((base / "tokenizer_config.json").read_text())
    text = json.dumps({**options, "chat_template": template})
    (base / "tokenizer_config.json").write_text(text)
    out = merged(base, adapter, tmp_path)
    assert transformers.AutoTokenizer.from_pretrained(out).chat_template == template


@pytest.mark.parametrize(
    ("in_base", "in_adapter", "expected"),
    [
        ("PreTrainedTokenizerFast", "TokenizersBackend", "PreTrainedTokenizerFast"),
        ("Qwen2Tokenizer", "TokenizersBackend", "Qwen2Tokenizer"),
        ("TokenizersBackend", "TokenizersBackend", "TokenizersBackend"),
        ("Qwen2Tokenizer", "GPT2Tokenizer", "GPT2Tokenizer"),
    ],
)
def test_the_tokenizer_keeps_the_class_that_the_base_names(
    in_base: str, in_adapter: str, expected: str, base: Path, adapter: Path, tmp_path: Path
) -> None:
    for folder, name in ((base, in_base), (adapter, in_adapter)):
        options = json.loads((folder / "tokenizer_config.json").read_text())
        text = json.dumps({**options, "tokenizer_class": name})
        (folder / "tokenizer_config.json").write_text(text)
    out = merged(base, adapter, tmp_path)
    options = json.loads((out / "tokenizer_config.json").read_text())
    assert options["tokenizer_class"] == expected


OWN_CODE = {"auto_map": {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}}
OWN_TOKENIZER = {"auto_map": {"AutoTokenizer": ["own.Tokenizer", None]}}


@pytest.mark.parametrize("has_tokenizer", [True, False])
def test_code_of_the_base_that_is_not_copied_is_not_named(
    base: Path, adapter: Path, tmp_path: Path, has_tokenizer: bool
) -> None:
    edit_json(base / "config.json", **OWN_CODE)
    for folder in (base, adapter):
        edit_json(folder / "tokenizer_config.json", **OWN_TOKENIZER)
    for name in () if has_tokenizer else TOKENIZER:
        (adapter / name).unlink()
    out = merged(base, adapter, tmp_path)
    assert not [path.name for path in out.glob("*.json") if "own." in path.read_text()]
    was, now = (json.loads((one / "config.json").read_text()) for one in (base, out))
    assert {**now, **OWN_CODE} == was
    # With the keys, transformers looks for own.py.
    transformers.AutoModelForCausalLM.from_pretrained(out, trust_remote_code=True)
    transformers.AutoTokenizer.from_pretrained(out, trust_remote_code=True)


def test_a_model_that_needs_its_code_keeps_its_name(
    base: Path, adapter: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    edit_json(base / "config.json", **OWN_CODE, model_type="unheard-of", architectures=["Model"])
    out = merged(base, adapter, tmp_path)
    assert (out / "config.json").read_bytes() == (base / "config.json").read_bytes()
    assert "auto_map names code of the folder, which is not copied" in caplog.text


def test_a_tokenizer_in_mistral_s_own_format_is_not_taken(tmp_path: Path) -> None:
    """Mistral's folders hold their tokenizer twice; a server reads the format of transformers."""
    base = families.make_base(tmp_path / "base", "mistral")
    adapter = families.make_adapter(tmp_path / "adapter", base)
    for folder in (base, adapter):
        (folder / "tekken.json").write_text("{}")
    out = merged(base, adapter, tmp_path)
    assert (out / "tekken.json").is_file()
    messages = [{"role": "user", "content": "print"}]
    for folder in (base, adapter, out):
        text = load_tokenizer(folder).apply_chat_template(messages, tokenize=False)
        assert text == "<|im_start|>user\nprint<|im_end|>\n", folder.name

"""Companion files of a model: which are copied, from where, and under which class name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tuneline.core.errors import ArtifactError
from tuneline.models.companion_files import (
    TOKENIZER_FILES,
    chat_template,
    check_companions,
    copy_companions,
    copy_tokenizer,
    has_tokenizer,
    max_token_id,
)

# The names in `vocab_files_names` of the tokenizers of transformers 5.19, for text models.
NAMES = {
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "vocab.txt", "tokenizer.model", "spiece.model", "tekken.json",
    "sentencepiece.bpe.model",
}  # fmt: skip


def folder_with(path: Path, **files: str) -> Path:
    path.mkdir()
    for name, text in files.items():
        (path / name.replace("__", ".")).write_text(text)
    return path


@pytest.mark.parametrize("name", sorted(NAMES))
def test_every_tokenizer_file_goes_with_an_adapter(tmp_path: Path, name: str) -> None:
    base = folder_with(tmp_path / "base", config__json="{}")
    (base / name).write_text("{}")
    out = folder_with(tmp_path / "adapter")
    assert not has_tokenizer(out)
    copy_tokenizer(base, out)
    assert has_tokenizer(out)
    assert [path.name for path in out.iterdir()] == [name]
    assert set(TOKENIZER_FILES) == NAMES


@pytest.mark.parametrize(
    ("named", "written"),
    [("TokenizersBackend", "PreTrainedTokenizerFast"), ("Qwen2Tokenizer", "Qwen2Tokenizer")],
)
def test_an_adapter_names_a_tokenizer_class_that_every_server_knows(
    tmp_path: Path, named: str, written: str
) -> None:
    text = json.dumps({"tokenizer_class": named, "padding_side": "left"})
    base = folder_with(tmp_path / "base", tokenizer_config__json=text)
    copy_tokenizer(base, folder_with(tmp_path / "out"))
    assert json.loads((tmp_path / "out" / "tokenizer_config.json").read_text()) == {
        "tokenizer_class": written, "padding_side": "left",
    }  # fmt: skip


def test_two_tokenizers_are_never_mixed(tmp_path: Path) -> None:
    base = folder_with(tmp_path / "base", spiece__model="base", tokenizer__json='{"model": {}}')
    adapter = folder_with(tmp_path / "adapter", tekken__json='{"adapter": 1}')
    copy_companions(base, adapter, folder_with(tmp_path / "out"))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["tekken.json"]


@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json", "merges.txt"])
def test_an_adapter_s_tokenizer_without_its_vocabulary_is_refused(
    tmp_path: Path, name: str
) -> None:
    base = folder_with(tmp_path / "base", tokenizer_config__json="{}")
    adapter = folder_with(tmp_path / "adapter")
    (adapter / name).write_text("{}")
    check_companions(base, adapter)  # a tokenizer of bytes has no vocabulary
    (base / "tokenizer.json").write_text('{"model": {}}')
    with pytest.raises(ArtifactError, match=f"has {name} and no vocabulary"):
        check_companions(base, adapter)


@pytest.mark.parametrize(
    ("name", "is_kept"),
    [
        ("LICENSE", True), ("LICENSE.txt", True), ("license.md", True), ("LICENCE-MODEL", True),
        ("LICENSE-APACHE-2.0", True), ("NOTICE", True), ("Notice.txt", True), ("COPYING", True),
        ("USE_POLICY.md", True), ("THIRD_PARTY_NOTICES.txt", True), ("README.md", False),
        ("license.py", False), ("LICENSE.bin", False), ("licensed.txt", False),
    ],
)  # fmt: skip
def test_the_licence_of_the_base_goes_with_what_is_made_of_it(
    tmp_path: Path, name: str, is_kept: bool
) -> None:
    base = folder_with(tmp_path / "base", config__json="{}")
    (base / name).write_text("terms")
    (base / "NOTICE_of_a_folder").mkdir()
    copy_companions(base, folder_with(tmp_path / "adapter"), folder_with(tmp_path / "out"))
    found = {path.name: path.read_text() for path in (tmp_path / "out").iterdir()}
    assert found == ({name: "terms"} if is_kept else {})


@pytest.mark.parametrize("trained", [False, True])
def test_templates_of_two_folders_are_never_mixed(tmp_path: Path, trained: bool) -> None:
    base = folder_with(tmp_path / "base", chat_template__json='{"chat_template": "base"}')
    (base / "additional_chat_templates").mkdir()
    (base / "additional_chat_templates" / "tool_use.jinja").write_text("base")
    adapter = folder_with(tmp_path / "adapter")
    if trained:
        (adapter / "chat_template.jinja").write_text("adapter")
    out = folder_with(tmp_path / "out")
    copy_companions(base, adapter, out)
    found = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    of_base = {"chat_template.json", "additional_chat_templates/tool_use.jinja"}
    assert found == ({"chat_template.jinja"} if trained else of_base)


def test_a_template_is_read_from_either_place(tmp_path: Path) -> None:
    text = json.dumps({"chat_template": "in the configuration"})
    folder = folder_with(tmp_path / "a", tokenizer_config__json=text)
    assert chat_template(folder) == "in the configuration"
    (folder / "chat_template.jinja").write_text("in a file")
    assert chat_template(folder) == "in a file"
    assert chat_template(folder_with(tmp_path / "b")) is None


@pytest.mark.parametrize(
    ("vocabulary", "highest"), [({"a": 0, "b": 7}, 9), ([["a", -1.0], ["b", -2.0]], 9), ({}, 9)]
)
def test_the_highest_token_id_counts_added_tokens(
    tmp_path: Path, vocabulary: object, highest: int
) -> None:
    text = json.dumps({"model": {"vocab": vocabulary}, "added_tokens": [{"id": 9}]})
    assert max_token_id(folder_with(tmp_path / "a", tokenizer__json=text)) == highest


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", b"{"), ("tokenizer_config.json", b"[]"),
        ("generation_config.json", b'{"eos_token_id": "</s>"}'), ("vocab.json", b"\xff"),
        ("chat_template.jinja", b"\xff"), ("tokenizer.json", b'{"model": 3}'),
    ],
)  # fmt: skip
def test_a_damaged_companion_is_refused_by_name(tmp_path: Path, name: str, content: bytes) -> None:
    base = folder_with(tmp_path / "base")
    (base / name).write_bytes(content)
    with pytest.raises(ArtifactError, match=name):
        check_companions(base, folder_with(tmp_path / "adapter"))

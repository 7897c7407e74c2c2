"""Companion files: what lies next to the weights of a model or an adapter for a server to read."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

from tuneline.core.errors import ArtifactError
from tuneline.core.progress import logger
from tuneline.models.folder import (
    CHAT_TEMPLATE,
    GENERATION_CONFIG,
    TOKENIZER_CONFIG,
    read_json,
    write_json,
)
from tuneline.models.own_code import copy_without_code
from tuneline.models.pairs import is_cross_encoder
from tuneline.models.prompts import PROMPTS_FILE
from tuneline.models.schemas import GenerationConfig, JsonForm, TokenizerConfig, TokenizerFile

VOCABULARY_FILES = (
    "tokenizer.json", "vocab.json", "vocab.txt", "tokenizer.model", "spiece.model",
    "sentencepiece.bpe.model", "tekken.json",
)  # fmt: skip
TOKENIZER_FILES = (
    *VOCABULARY_FILES, TOKENIZER_CONFIG, "special_tokens_map.json", "added_tokens.json",
    "merges.txt",
)  # fmt: skip
PROCESSOR_FILES = (
    "processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json",
)  # fmt: skip

MODULES = "modules.json"
SENTENCE_FILES = (MODULES, "sentence_bert_config.json", "config_sentence_transformers.json")
SENTENCE_FOLDERS = ("[0-9]_*/*.json", "[0-9]_*/*.safetensors")
"""The files with which sentence-transformers makes a vector of a model's states: the list of
modules, and a folder such as `1_Pooling` for each."""

PROCESSOR_TEMPLATE = "chat_template.json"
"""The template of a processor, as transformers 4 wrote it; it has priority over a `.jinja` file."""
NAMED_TEMPLATES = "additional_chat_templates"
"""The folder of templates besides the default, such as `tool_use`."""

_LICENSE_FILE = re.compile(
    r"(third[-_]party[-_])?(licen[cs]es?|notices?|copying|use_policy)"
    r"([-_][\w-]+(\.\d+)?)?(\.(txt|md|rst|pdf|html?))?",
    re.IGNORECASE,
)
"""The names of texts that a licence asks to keep with every copy of a model."""

FORMS: dict[str, type[JsonForm]] = {
    "tokenizer.json": TokenizerFile,
    TOKENIZER_CONFIG: TokenizerConfig,
    GENERATION_CONFIG: GenerationConfig,
}
"""The schema of each companion file that is read."""

# The class that transformers 5 writes for any tokenizer. transformers 4 and the servers that use it
# do not know the name.
GENERIC_TOKENIZER_CLASS = "TokenizersBackend"


def has_tokenizer(folder: Path) -> bool:
    """Return whether a folder has any file of a tokenizer."""
    return any((folder / name).is_file() for name in TOKENIZER_FILES)


def license_files(folder: Path) -> list[Path]:
    """Return the files of a folder that hold its licence, its notices and its terms of use."""
    return sorted(
        path for path in folder.iterdir() if path.is_file() and _LICENSE_FILE.fullmatch(path.name)
    )


def copy_licenses(base: Path, out: Path) -> None:
    """Copy the licence of a model to what is made from it, as most licences ask."""
    for path in license_files(base):
        shutil.copyfile(path, out / path.name)


def copy_tokenizer(base: Path, out: Path) -> None:
    """Copy the tokenizer files of a model folder.

    Training does not change the tokenizer. If a newer library wrote the files again, they could
    name classes that an older server does not know.

    Raises:
        ArtifactError: tokenizer_config.json cannot be read.
    """
    for name in TOKENIZER_FILES:
        if (base / name).is_file():
            copy_without_code(base / name, out, base)
    if (out / TOKENIZER_CONFIG).is_file():
        tokenizer_config = read_json(out / TOKENIZER_CONFIG, TokenizerConfig)
        if tokenizer_config.get("tokenizer_class") == GENERIC_TOKENIZER_CLASS:
            known_everywhere = {**tokenizer_config, "tokenizer_class": "PreTrainedTokenizerFast"}
            write_json(out / TOKENIZER_CONFIG, known_everywhere)


def check_companions(base: Path, adapter: Path) -> None:
    """Read every file that `copy_companions` copies, before the weights are written.

    Raises:
        ArtifactError: A file cannot be read, or its content does not fit the schema; or the adapter
            has a tokenizer without its vocabulary.
    """
    _check_vocabulary(base, adapter)
    named = [base / TOKENIZER_CONFIG] if (base / TOKENIZER_CONFIG).is_file() else []
    for path in {*_companions(base, adapter), *named}:
        if path.suffix == ".jinja":
            _read_text(path)
        elif path.suffix == ".json" and path.name != MODULES:
            read_json(path, FORMS.get(path.name))


def _check_vocabulary(base: Path, adapter: Path) -> None:
    """Refuse an adapter's tokenizer of which only a part is there: the result would have none.

    Some tokenizers have no vocabulary; their base has none either.
    """
    partial = [name for name in TOKENIZER_FILES if (adapter / name).is_file()]
    has_none = [
        not any((folder / name).is_file() for name in VOCABULARY_FILES)
        for folder in (adapter, base)
    ]
    if partial and has_none == [True, False]:
        raise ArtifactError(
            f"{adapter}: has {', '.join(partial)} and no vocabulary; expected all files of the "
            "tokenizer, or none",
            hint=f"Try: copy the vocabulary, such as {VOCABULARY_FILES[0]}, into {adapter}, or "
            "remove these files if the base's tokenizer was not changed.",
        )


def copy_companions(base: Path, adapter: Path, out: Path) -> None:
    """Copy the files that a model needs next to its weights and config.json.

    All tokenizer files come from the adapter's folder if that has any, else from the base: the two
    are never mixed. The same applies to the chat templates and to the modules of
    sentence-transformers. A cross-encoder has no chat template. generation_config comes from the
    adapter's folder, else from the base. If the base names a tokenizer class of its own, the copy
    keeps that name. Licence and notices come from the base. Keys that name code are left out.

    Raises:
        ArtifactError: A file cannot be read, or its content does not fit the schema.
    """
    check_companions(base, adapter)
    for source in _companions(base, adapter):
        folder = out if source.parent in (base, adapter) else out / source.parent.name
        folder.mkdir(exist_ok=True)
        copy_without_code(source, folder, base)
    copy_licenses(base, out)
    template = None if is_cross_encoder(adapter) else chat_template(base)
    if chat_template(out) is None and isinstance(template, str):
        (out / CHAT_TEMPLATE).write_text(template, encoding="utf-8")
    if has_tokenizer(adapter):
        _keep_tokenizer_class(base, out)


def _companions(base: Path, adapter: Path) -> list[Path]:
    """Return the paths of the files to copy."""
    tokenizer = adapter if has_tokenizer(adapter) else base
    found = [base / name for name in PROCESSOR_FILES]
    found += [tokenizer / name for name in TOKENIZER_FILES]
    found.append(_first(adapter, base, GENERATION_CONFIG))
    pooled = adapter if (adapter / MODULES).is_file() else base
    found += [pooled / name for name in SENTENCE_FILES]
    found += [path for pattern in SENTENCE_FOLDERS for path in sorted(pooled.glob(pattern))]
    if is_cross_encoder(adapter):
        return [path for path in [*found, adapter / PROMPTS_FILE] if path.is_file()]
    found += _template_files(adapter) or ([] if chat_template(adapter) else _template_files(base))
    return [path for path in found if path.is_file()]


def _template_files(folder: Path) -> list[Path]:
    """Return the files of a folder that hold only chat templates."""
    named = sorted((folder / NAMED_TEMPLATES).glob("*.jinja"))
    found = [folder / CHAT_TEMPLATE, folder / PROCESSOR_TEMPLATE, *named]
    return [path for path in found if path.is_file()]


def chat_template(folder: Path) -> str | list[Any] | None:
    """Return a folder's chat template, or its list of named templates; None if it has none."""
    if (folder / CHAT_TEMPLATE).is_file():
        return _read_text(folder / CHAT_TEMPLATE)
    if not (folder / TOKENIZER_CONFIG).is_file():
        return None
    return read_json(folder / TOKENIZER_CONFIG, TokenizerConfig).get("chat_template") or None


def has_chat_template(folder: Path) -> bool:
    """Return whether a server finds a chat template: a single one, or the one named default.

    Raises:
        ArtifactError: A file cannot be read.
    """
    template = chat_template(folder)
    if isinstance(template, list):
        return any(entry.get("name") == "default" for entry in template)
    return bool(template)


def max_token_id(folder: Path) -> int | None:
    """Return the highest token id of the tokenizer in `folder`; None without tokenizer.json."""
    if not (folder / "tokenizer.json").is_file():
        return None
    tokenizer = read_json(folder / "tokenizer.json", TokenizerFile)
    vocabulary = tokenizer["model"].get("vocab", {})
    # A unigram model lists its pieces in the order of their ids; other models map pieces to ids.
    ids = list(vocabulary.values()) if isinstance(vocabulary, dict) else [len(vocabulary) - 1]
    ids += [token["id"] for token in tokenizer.get("added_tokens") or []]
    return max(ids, default=None)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ArtifactError(f"{path}: not UTF-8: {error}") from None


def _first(adapter: Path, base: Path, name: str) -> Path:
    return adapter / name if (adapter / name).is_file() else base / name


def _keep_tokenizer_class(base: Path, out: Path) -> None:
    if not (out / TOKENIZER_CONFIG).is_file() or not (base / TOKENIZER_CONFIG).is_file():
        return
    tokenizer_config = read_json(out / TOKENIZER_CONFIG, TokenizerConfig)
    named = read_json(base / TOKENIZER_CONFIG, TokenizerConfig).get("tokenizer_class")
    if tokenizer_config.get("tokenizer_class") != GENERIC_TOKENIZER_CLASS or not named:
        return
    if named != GENERIC_TOKENIZER_CLASS:
        logger.debug("tokenizer_class: %s, as the base names it", named)
        write_json(out / TOKENIZER_CONFIG, {**tokenizer_config, "tokenizer_class": named})

"""The files beside an adapter that a server needs: tokenizer, chat template, stop tokens.

The tokenizer is not changed by training, so the base's own files are copied: writing it again with
a newer library can name classes that an older server does not know.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "merges.txt",
    "added_tokens.json", "special_tokens_map.json",
)  # fmt: skip


def write_serving_files(
    base: Path, folder: Path, chat_template: str, stop_ids: Sequence[int]
) -> None:
    """Copy the base's tokenizer, and write the template and the complete list of stop tokens."""
    for name in TOKENIZER_FILES:
        if (base / name).is_file():
            shutil.copyfile(base / name, folder / name)
    tokenizer_config = json.loads((base / "tokenizer_config.json").read_text(encoding="utf-8"))
    if tokenizer_config.get("tokenizer_class") == "TokenizersBackend":
        # The name that transformers 5 gives to what every release knows by this one.
        tokenizer_config["tokenizer_class"] = "PreTrainedTokenizerFast"
        _write_json(folder / "tokenizer_config.json", tokenizer_config)
    else:
        shutil.copyfile(base / "tokenizer_config.json", folder / "tokenizer_config.json")
    (folder / "chat_template.jinja").write_text(chat_template, encoding="utf-8")
    generation = {}
    if (base / "generation_config.json").is_file():
        generation = json.loads((base / "generation_config.json").read_text(encoding="utf-8"))
    _write_json(folder / "generation_config.json", {**generation, "eos_token_id": list(stop_ids)})


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

"""Datasets of the Hugging Face Hub: the original files, read by this package's own readers.

`datasets` guesses types, so it reads nothing here; only the files are fetched. They stay in the
Hub's cache, and a second run asks the network nothing.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import yaml

from training.config.data import SourceConfig
from training.data.sources import HUB, SPLITS, select_files, split_of
from tuneline.core.bounded_yaml import load_yaml
from tuneline.core.environment import require
from tuneline.core.errors import DataError, MissingError
from tuneline.core.secrets import first_line


def hub_files(config: SourceConfig, key: str) -> tuple[Path, ...]:
    """Return the cached files of one split of a dataset; download them if they are not cached.

    Raises:
        DataError: The dataset has no such configuration or split, or no data files.
        MissingError: It is not cached, and the Hub does not give it.
    """
    hub = require("huggingface_hub", "train")
    name = config.path.removeprefix(HUB)
    where = f"{key}: {config.path}" + (f"@{config.revision}" if config.revision else "")
    if re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) is None:
        raise DataError(
            f"{where}: is not the name of a dataset; expected {HUB}OWNER/NAME",
            hint=f"Try: {HUB}HuggingFaceH4/no_robots",
        )

    def fetch(local_files_only: bool) -> tuple[Path, ...]:
        def snapshot(patterns: list[str]) -> Path:
            return Path(
                hub.snapshot_download(
                    name,
                    repo_type="dataset",
                    revision=config.revision,
                    allow_patterns=[glob.escape(pattern) for pattern in patterns],
                    local_files_only=local_files_only,
                )
            )

        # A download writes the list of all files into the cache, and a snapshot without one of the
        # files asked for is an error.
        folder = snapshot(["README.md"])
        try:
            tree = hub.get_cached_repo_tree(name, repo_type="dataset", revision=config.revision)
            names = [file.path for file in tree]
        except hub.errors.CachedRepoTreeNotFoundError:
            names = [str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file()]
        chosen = choose_files(names, _card(folder), config, where)
        return tuple(snapshot(chosen) / chosen_name for chosen_name in chosen)

    return _fetched(fetch, hub, where, name)


def _fetched(
    fetch: Callable[[bool], tuple[Path, ...]], hub: Any, where: str, name: str
) -> tuple[Path, ...]:
    try:
        return fetch(True)
    except (hub.errors.LocalEntryNotFoundError, ValueError, DataError):
        pass  # an older cached version may lack a split that the Hub has now
    try:
        return fetch(False)
    except (OSError, ValueError, hub.utils.httpx.HTTPError) as error:
        raise MissingError(
            f"{where}: is not cached, and the Hugging Face Hub does not give it "
            f"({first_line(error)})",
            hint="Check the name and the network; a private or gated dataset also needs HF_TOKEN.\n"
            "  Without a network, download it elsewhere, copy the folder, and give its path: "
            f"hf download --repo-type dataset {name} --local-dir {name.rpartition('/')[2]}",
        ) from None


def choose_files(
    names: list[str], card: Mapping[str, Any], config: SourceConfig, where: str
) -> list[str]:
    """Return the files of the wanted configuration and split.

    The dataset's card lists the files of each configuration; without such a list, folders are
    configurations, and words in the names are splits.

    Raises:
        DataError: There is no such configuration or split.
    """
    entry = _configuration(card, config, where)
    data_files = None if entry is None else entry.get("data_files")
    if entry is not None and data_files is not None:
        return _listed_files(data_files, names, config.split or "train", where)
    prefix = str((entry or {}).get("data_dir") or config.config or "").strip("/")
    if prefix:
        names = [name for name in names if name.startswith(f"{prefix}/")]
    if not names:
        raise DataError(f"{where}: has no configuration {config.config!r} and no such folder")
    if not any(split_of(name) for name in names) and config.split is None:
        return select_files(names, None, where)
    return select_files(names, config.split or "train", where)


def _configuration(
    card: Mapping[str, Any], config: SourceConfig, where: str
) -> Mapping[str, Any] | None:
    """Return the entry of the card's `configs` that is wanted; None if the card has none."""
    listed = card.get("configs")
    entries = [entry for entry in listed if isinstance(entry, dict)] if listed else []
    if not entries:
        return None
    by_name = {str(entry.get("config_name", "default")): entry for entry in entries}
    if config.config is not None:
        wanted: str | None = config.config
    elif len(by_name) == 1:
        [wanted] = by_name
    else:
        marked = [name for name, entry in by_name.items() if entry.get("default")]
        wanted = marked[0] if marked else "default"
    if wanted not in by_name:
        raise DataError(
            f"{where}: has the configurations {', '.join(by_name)}; found "
            f"{config.config or 'none'} in run.yaml",
            hint=f"Try: data.config: {next(iter(by_name))}",
        )
    return by_name[wanted]


def _listed_files(data_files: Any, names: list[str], split: str, where: str) -> list[str]:
    """Return the files that a card's `data_files` lists for a split."""
    patterns: dict[str, list[str]] = {}
    if isinstance(data_files, str | list):
        data_files = [data_files] if isinstance(data_files, str) else data_files
        for entry in data_files:
            is_split = isinstance(entry, dict)
            name = str(entry.get("split", "train")) if is_split else "train"
            path = entry.get("path", []) if is_split else entry
            patterns.setdefault(name, []).extend([path] if isinstance(path, str) else path)
    elif isinstance(data_files, dict):
        patterns = {k: [v] if isinstance(v, str) else list(v) for k, v in data_files.items()}
    wanted = patterns.get(split) or patterns.get(SPLITS.get(split, split))
    if not wanted:
        raise DataError(
            f"{where}: has no split {split!r}; found: {', '.join(patterns) or 'none'}",
            hint="Set data.split to one of them.",
        )
    found = sorted(name for name in names if any(fnmatchcase(name, str(p)) for p in wanted))
    if not found:
        raise DataError(f"{where}: no file of the dataset is {' or '.join(map(str, wanted))}")
    return found


def _card(folder: Path) -> Mapping[str, Any]:
    """Return the YAML head of a dataset's README.md; empty if there is none."""
    try:
        head, *rest = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
        card = load_yaml(rest[0]) if not head.strip() and len(rest) == 2 else {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return {}
    return card if isinstance(card, dict) else {}

"""The files of a source: one file, a folder of shards, or a dataset of the Hugging Face Hub."""

from __future__ import annotations

import re
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from training.config import DataConfig
from training.config.data import SourceConfig
from training.data.formats import FORMATS, format_suffix
from training.data.formats.opening import TEXT_SUFFIXES
from tuneline.core.artifact import Input, canonical_digest
from tuneline.core.errors import DataError
from tuneline.core.files import file_sha256
from tuneline.core.progress import logger

HUB = "hf:"
METADATA = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
"""Files that `datasets` writes next to the data."""
SPLITS = {
    "train": "train", "training": "train", "test": "test", "testing": "test", "eval": "test",
    "evaluation": "test", "validation": "validation", "valid": "validation", "val": "validation",
    "dev": "validation", "heldout": "heldout",
}  # fmt: skip
"""Words in the name of a file or folder, and the split that they name."""


@dataclass(frozen=True)
class Source:
    """The files of one source, and how they are read."""

    config: SourceConfig
    files: tuple[Path, ...]
    key: str
    """The key of run.yaml that names it, for messages and the manifest."""

    def as_input(self) -> Input:
        """Return the content by its digest: of one file, or over the digests of all files."""
        hashes = [file_sha256(file) for file in self.files]
        if len(hashes) == 1:
            return Input(role=self.key, kind="file", digest=f"sha256:{hashes[0]}")
        return Input(role=self.key, kind="files", digest=canonical_digest(hashes))


def open_sources(config: DataConfig, relative_to: Path) -> tuple[list[Source], Source | None]:
    """Return the sources of training rows, and that of held-out rows if it is one of its own.

    A dataset of the Hub is downloaded, unless it is cached.

    Raises:
        DataError: A path does not exist, or has no data files of one split.
        MissingError: A dataset is not cached, and the Hub cannot be reached.
    """
    named = "data.path" if config.path is not None else "data.sources.{}.path"
    train = [
        open_source(source, relative_to, named.format(index))
        for index, source in enumerate(config.train_sources())
    ]
    heldout = config.heldout_source()
    key = "data.heldout_path" if config.heldout_path is not None else "data.heldout_split"
    return train, None if heldout is None else open_source(heldout, relative_to, key)


def data_inputs(config: DataConfig, relative_to: Path) -> list[Input]:
    """Return the content of every source, for the key of the dataset.

    Raises:
        DataError, MissingError: See `open_sources`.
    """
    train, heldout = open_sources(config, relative_to)
    return [source.as_input() for source in [*train, *filter(None, [heldout])]]


def open_source(config: SourceConfig, relative_to: Path, key: str) -> Source:
    """Return the files of one source, on disk or in the Hub's cache."""
    if config.path.startswith(HUB):
        from training.data.hub import hub_files

        return Source(config, hub_files(config, key), key)
    path = relative_to / config.path
    try:
        is_folder = stat.S_ISDIR(path.stat().st_mode)
    except FileNotFoundError:
        is_id = re.fullmatch(r"[\w.-]+/[\w.-]+", config.path) and not path.parent.exists()
        raise DataError(
            f"{key}: no such file: {path}; expected the data",
            hint=f"Try: {HUB}{config.path} for a dataset of the Hugging Face Hub."
            if is_id
            else "Check the path; it starts from "
            + (f"{relative_to}, the folder of run.yaml." if relative_to.parts else "this folder."),
        ) from None
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise DataError(f"{key}: {path}: cannot be read: {why}") from None
    if is_folder:
        return Source(config, _folder_files(path, config.split, key), key)
    unused = [n for n in ("split", "config", "revision") if getattr(config, n) is not None]
    if unused:
        name = option_of(unused[0], key)
        raise DataError(
            f"{key}: {path} is one file; {name} is for a folder or a dataset of the Hub",
            hint=f"Leave out {name}.",
        )
    return Source(config, (path,), key)


def option_of(name: str, key: str) -> str:
    """Return how a command names an option of a source: a key of run.yaml, or its own option.

    Args:
        key: The place that names the source; `data.…` in a run.yaml.
    """
    return f"data.{name}" if key.startswith("data.") else f"--{name}"


def find_heldout(path: str, relative_to: Path) -> dict[str, str]:
    """Return the key of `data` for held-out rows that lie with the data; empty if there are none.

    They are another split of the same folder, or a file of the same format in the folder of a file.
    """
    file = relative_to / path
    if path.startswith(HUB) or not file.exists():
        return {}
    if file.is_dir():
        names = [str(f.relative_to(file)) for f in file.rglob("*") if _is_data(f.name)]
        splits = {split_of(name) for name in names}
        found = [split for split in ("validation", "test", "heldout") if split in splits]
        return {"heldout_split": found[0]} if found and "train" in splits else {}
    others = sorted(
        other
        for other in file.parent.iterdir()
        if other != file
        and format_suffix(other) == format_suffix(file)
        and split_of(other.name) in ("validation", "test", "heldout")
    )
    if not others or split_of(file.name) != "train":
        return {}
    return {"heldout_path": str(Path(path).parent / others[0].name)}


def select_files(names: Iterable[str], split: str | None, where: str) -> list[str]:
    """Return the data files of one split among names, sorted; `train` if there are several splits.

    Raises:
        DataError: No name is that of a data file, names have several formats, or the split is not
            there.
    """
    names = list(names)
    found = sorted(name for name in names if _is_data(name))
    if not found:
        known = ", ".join(FORMATS)
        raise DataError(
            f"{where}: has no data files; expected files of {known}", hint=_of_other_files(names)
        )
    by_split: dict[str, list[str]] = {}
    for name in found:
        by_split.setdefault(split_of(name), []).append(name)
    if split is not None or len(by_split) > 1:
        wanted = SPLITS.get(split, split) if split is not None else "train"
        if wanted not in by_split:
            splits = ", ".join(name or "files without a split" for name in by_split)
            raise DataError(
                f"{where}: has no split {split or 'train'!r}; found: {splits}",
                hint=f"Set {option_of('split', where)} to one of them, or give the file itself.",
            )
        found = by_split[wanted]
        formats = {format_suffix(Path(name)) for name in found}
        if left := [n for n in by_split.get("", []) if format_suffix(Path(n)) not in formats]:
            logger.info(
                "  %s: not of the split %s, left out: %s", where, wanted, ", ".join(left[:5])
            )
        others = [n for n in by_split.get("", []) if format_suffix(Path(n)) in formats]
        if split is None and others:
            raise DataError(
                f"{where}: has files of the split {wanted} and files without a split: "
                f"{', '.join(others[:5])}; expected one or the other",
                hint=f"Set data.split: {wanted} to leave the others out, or give each file as an "
                "entry of data.sources.",
            )
    suffixes = sorted({format_suffix(Path(name)) for name in found})
    if len(suffixes) > 1:
        raise DataError(
            f"{where}: has files of several formats: {', '.join(suffixes)}; expected one",
            hint="Give one of the files, or each as an entry of data.sources.",
        )
    return found


def _of_other_files(names: Sequence[str]) -> str | None:
    """Return what to type for a folder of texts; None for another folder."""
    suffix = next((s for s in TEXT_SUFFIXES if any(name.endswith(s) for name in names)), None)
    return suffix and (
        "To train each file as a plain text: find FOLDER -name "
        f"'*{suffix}' -exec jq -Rsc '{{text: .}}' {{}} \\; > NEW.jsonl"
    )


def split_of(name: str) -> str:
    """Return the split that a file's name or one of its folders has as a word; empty if none."""
    for part in reversed(PurePath(name).parts):
        for word in re.split(r"[^a-z]+", part.casefold()):
            if word in SPLITS:
                return SPLITS[word]
    return ""


def _folder_files(folder: Path, split: str | None, key: str) -> tuple[Path, ...]:
    names = [str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()]
    if any(name.endswith(".arrow") for name in names) and not any(map(_is_data, names)):
        raise DataError(
            f"{key}: {folder}: has Arrow files of datasets' save_to_disk; expected data files",
            hint="Try: python -c 'import datasets, sys; "
            'datasets.load_from_disk(sys.argv[1]).to_parquet("data.parquet")\' FOLDER',
        )
    return tuple(folder / name for name in select_files(names, split, f"{key}: {folder}"))


def _is_data(name: str) -> bool:
    parts: Sequence[str] = PurePath(name).parts
    is_hidden = any(part.startswith((".", "_")) for part in parts)
    return not is_hidden and parts[-1] not in METADATA and format_suffix(Path(name)) in FORMATS

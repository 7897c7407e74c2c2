"""Find a model: an artifact, a plain model folder, the embedded tiny base, or a Hub id."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tuneline.core.artifact import Input, canonical_digest, open_artifact, verify_artifact
from tuneline.core.disk import disk_full
from tuneline.core.environment import require
from tuneline.core.errors import ArtifactError, MissingError
from tuneline.core.files import MANIFEST
from tuneline.core.lock import locked_file
from tuneline.core.progress import reading
from tuneline.models.adapter_config import ADAPTER_CONFIG
from tuneline.models.companion_files import NAMED_TEMPLATES, SENTENCE_FOLDERS
from tuneline.models.folder import CONFIG, read_json, weight_files
from tuneline.models.schemas import ModelConfig

EMBEDDED = "tiny-base"
DROP_BYTES = 16 * 2**20
REMEMBERED_BYTES = 16 * 2**20
"""The hash of a smaller file is computed in less time than the cache takes."""

# Weights as safetensors, configuration and tokenizer; never pickles, never code.
MODEL_FILES = (
    "*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "*.txt", "*.model",
    f"{NAMED_TEMPLATES}/*.jinja", *SENTENCE_FOLDERS,
)  # fmt: skip
# Mistral's repositories hold the weights a second time under names that transformers does not read.
SECOND_WEIGHTS = "consolidated*.safetensors"

# The licence is there. No digest of a base covers them, except for those that end in `.txt`.
CARD_FILES = (
    "README.md", "LICENSE*", "LICENCE*", "license*", "NOTICE*", "Notice*", "COPYING*",
    "USE_POLICY*", "THIRD_PARTY*",
)  # fmt: skip

DOWNLOADED = {
    "allow_patterns": [*MODEL_FILES, *CARD_FILES],
    # A `*` of the Hub also matches a `/`; gpt-oss has its weights a second time in `original/`.
    "ignore_patterns": [
        SECOND_WEIGHTS,
        *(
            f"{folder}/{one}"
            for folder in ("[!0-9]*", "[0-9][!_]*")
            for one in MODEL_FILES
            if one.startswith("*") and one != "*.jinja"
        ),
    ],
}
"""The files of a repository on the Hub that are downloaded."""


@dataclass(frozen=True)
class ModelSource:
    """A model folder on disk, with its name and digest."""

    name: str
    """The name as the user wrote it; manifests record it in place of a path."""
    path: Path
    digest: str
    kind: str
    """`model` for an artifact of ours, `base-model` for anything else."""

    def as_input(self, role: str) -> Input:
        return Input(role=role, kind=self.kind, digest=self.digest)


def resolve_model(
    name: str,
    *,
    relative_to: Path | None = None,
    revision: str | None = None,
    download: bool = True,
) -> ModelSource:
    """Find the folder of a model and its digest.

    Args:
        name: `tiny-base`, a path (absolute, or relative to `relative_to`), or a Hugging Face id.
        relative_to: The directory that relative paths start from; the current one by default.
        revision: Branch, tag or commit of a Hugging Face id.
        download: Whether the Hub is asked for an id that is not in its cache.

    Raises:
        MissingError: There is no such model.
        DiskFullError: The Hub's cache has no room for it.
        ArtifactError: The folder holds no safetensors model, or only pickled weights.
    """
    folder = (relative_to or Path()) / name
    if folder.is_dir():
        return _local(name, folder)
    if name == EMBEDDED:
        return _local(name, embedded_base())
    if not is_hub_name(name):
        raise MissingError(
            f"model {name!r}: no such folder {folder}",
            hint="Give a model folder, a Hugging Face id such as Qwen/Qwen3-0.6B, or tiny-base.",
        )
    return _from_hub(name, revision, download)


def is_hub_name(name: str) -> bool:
    """Return whether a name that is not a folder here may be a Hugging Face id."""
    return name.count("/") == 1 and not name.startswith((".", "/", "~"))


def find_model(
    name: str,
    *,
    relative_to: Path | None = None,
    revision: str | None = None,
    download: bool = True,
) -> ModelSource:
    """Find a model as it is cached, so that a second search asks the network nothing.

    The arguments and errors are those of `resolve_model`.
    """
    try:
        return resolve_model(name, relative_to=relative_to, revision=revision, download=False)
    except MissingError:
        if not download:
            raise
    return resolve_model(name, relative_to=relative_to, revision=revision)


def is_of_hub(model: ModelSource) -> bool:
    """Return whether a model lies in the cache of the Hugging Face Hub."""
    # REPO/snapshots/COMMIT, see huggingface_hub's guide on its cache.
    return model.path.parent.name == "snapshots" and model.path.parents[1].name.startswith(
        "models--"
    )


def computed_dtype(dtype: str, model: ModelSource) -> str:
    """Return the number format that `auto` means for a model: that of its weights."""
    return weights_dtype(model.path) if dtype == "auto" else dtype


def weights_dtype(folder: Path) -> str:
    """Return the number format of a folder's weights, as config.json or else the files name it."""
    config = read_json(folder / CONFIG, ModelConfig)
    named = config.get("dtype") or config.get("torch_dtype")
    return str(named) if named else _stored_dtype(folder)


def is_float32(folder: Path) -> bool:
    """Return whether a folder's weights are plain float32. Quantized weights are never."""
    if not (folder / CONFIG).is_file():
        return False  # the step that loads the folder names what is missing
    is_quantized = "quantization_config" in read_json(folder / CONFIG, ModelConfig)
    return not is_quantized and weights_dtype(folder) == "float32"


def _stored_dtype(folder: Path) -> str:
    """Return the number format of weights whose config.json names none, as vLLM finds it."""
    from safetensors import SafetensorError, safe_open

    found = set()
    for path in weight_files(folder):
        try:
            with safe_open(path, framework="numpy") as file:
                found |= {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError):
            return "float32"  # the step that reads the weights names the damage
    half = {"BF16": "bfloat16", "F16": "float16"}
    return half.get(found.pop(), "float32") if len(found) == 1 else "float32"


def embedded_base() -> Path:
    """Return the folder of the tiny base model that ships with Tuneline."""
    packaged = Path(__file__).parents[1] / "tiny_base"
    checkout = Path(__file__).parents[2] / "examples" / "tiny-base"
    return packaged if packaged.is_dir() else checkout


def require_model_folder(folder: Path) -> None:
    """Check that a folder is not that of an adapter.

    Raises:
        ArtifactError: The folder has an adapter and no model.
    """
    if (folder / ADAPTER_CONFIG).is_file() and not (folder / CONFIG).is_file():
        raise ArtifactError(
            f"{folder}: holds an adapter; expected a model folder",
            hint=f"Try: tuneline export merge --base BASE --adapter {folder} --out DIR",
        )


def _local(name: str, folder: Path) -> ModelSource:
    require_model_folder(folder)
    if (folder / MANIFEST).is_file():
        artifact = open_artifact(folder, kind="model")
        return ModelSource(name, folder, artifact.digest, artifact.kind)
    if not (folder / "config.json").is_file():
        raise ArtifactError(f"{folder}: no config.json; expected a model folder")
    if not any(folder.glob("*.safetensors")):
        pickles = sorted(file.name for file in folder.glob("*.bin"))
        found = f"only pickled weights ({', '.join(pickles)})" if pickles else "no weights"
        raise ArtifactError(
            f"{folder}: {found}; expected safetensors",
            hint="A pickle can run code when it is read. Convert it once where you trust it: "
            "AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(OUT)",
        )
    return ModelSource(name, folder, folder_digest(folder), "base-model")


def _from_hub(name: str, revision: str | None, download: bool) -> ModelSource:
    hub = require("huggingface_hub", "train")
    at = f"{name}@{revision}" if revision else name
    try:
        path = hub.snapshot_download(
            name,
            revision=revision,
            **DOWNLOADED,
            local_files_only=not download,
        )
    except (
        OSError,
        ValueError,
        hub.errors.HfHubHTTPError,
        hub.errors.LocalEntryNotFoundError,
    ) as e:
        if isinstance(e, OSError) and e.errno in (errno.ENOSPC, errno.EDQUOT):
            raise disk_full(Path(hub.constants.HF_HUB_CACHE)) from e
        if not download and isinstance(e, hub.errors.LocalEntryNotFoundError):
            raise MissingError(
                f"model {at!r}: not a folder here, and not downloaded from the Hub yet",
                hint="tuneline check RUN.yaml and tuneline up RUN.yaml download it. Or check the "
                "spelling.",
            ) from None
        reason = str(e).strip().splitlines()[0]
        raise MissingError(
            f"model {at!r}: not a folder here, and not on the Hugging Face Hub ({reason})",
            hint="Check the spelling and the network; a gated model also needs HF_TOKEN.",
        ) from None
    # The Hub names a snapshot's folder after its commit, which fixes its content.
    source = _local(name, Path(path))
    return ModelSource(at, source.path, source.digest, source.kind)


def read_digest(model: ModelSource) -> str:
    """Return the digest of a model after every byte of it was read; no cache is asked.

    Raises:
        TamperedError: An artifact differs from its manifest.
    """
    if (model.path / MANIFEST).is_file():
        artifact = open_artifact(model.path)
        verify_artifact(artifact)
        return artifact.digest
    named = model_files(model.path)
    hashes = _hashes(list(named.values()), model.path)
    return canonical_digest([[name, hashes[file]] for name, file in named.items()])


def folder_digest(folder: Path) -> str:
    """Return the digest over names and contents of a model folder's files.

    The user's cache remembers the hash of each large file by size and time of change, so that a
    repeated `tuneline up` does not read gigabytes again.
    """
    named = model_files(folder)
    files = named.values()
    keys = {file: _cache_key(file) for file in files if file.stat().st_size >= REMEMBERED_BYTES}
    remembered = _read_cache() if keys else {}
    hashes = {file: remembered[key] for file, key in keys.items() if key in remembered}
    hashes |= _hashes([file for file in files if file not in hashes], folder)
    fresh = {key: hashes[file] for file, key in keys.items() if key not in remembered}
    if fresh:
        _remember(fresh)
    return canonical_digest([[name, hashes[file]] for name, file in named.items()])


def _hashes(files: Sequence[Path], folder: Path) -> dict[Path, str]:
    """Return the hash of each file."""
    sizes = [file.stat().st_size for file in files]
    found: dict[Path, str] = {}
    with reading(f"reading {folder.name}", sum(sizes)) as advance:
        for number, file in enumerate(files):
            advance(sum(sizes[:number]))
            found[file] = _sha256(file)
    return found


def _cache_key(file: Path) -> str:
    status = file.stat()
    # Copies and archives keep the modification time; nothing sets the time of change.
    return f"{file.resolve()}:{status.st_size}:{status.st_ctime_ns}"


def _cache_path() -> Path:
    return Path.home() / ".cache" / "tuneline" / "sha256.json"


def _remember(fresh: dict[str, str]) -> None:
    """Add hashes to the cache, and leave out those of files that do not exist any more."""
    try:
        path = _cache_path()
        path.parent.mkdir(parents=True, exist_ok=True)
        # Another process may have written since, so its entries are read again.
        with locked_file(path.with_suffix(".lock"), wait=True):
            known = _read_cache() | fresh
            kept = {key: known[key] for key in known if Path(key.rsplit(":", 2)[0]).exists()}
            temporary = path.with_suffix(".partial")
            temporary.write_text(json.dumps(kept))
            temporary.replace(path)
    except (OSError, RuntimeError):  # a user without a home has no cache
        pass  # without the cache the next call reads the files again


def _read_cache() -> dict[str, str]:
    try:
        cache = json.loads(_cache_path().read_text())
    except (OSError, RuntimeError, ValueError):
        return {}
    return cache if isinstance(cache, dict) else {}


def model_files(folder: Path) -> dict[str, Path]:
    """Return the files of a model folder that its digest covers: relative name to path, sorted."""
    found = {
        file.relative_to(folder).as_posix(): file
        for pattern in MODEL_FILES
        for file in folder.glob(pattern)
        if file.is_file() and not file.match(SECOND_WEIGHTS)
    }
    return dict(sorted(found.items()))


def _sha256(path: Path) -> str:
    """Return the SHA-256 of a file that may be larger than memory.

    Pages that were read are dropped from the page cache, so that they do not push out others.
    """
    hasher = hashlib.sha256()
    buffer = memoryview(bytearray(min(2**22, path.stat().st_size + 1)))
    end = dropped = 0
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            hasher.update(buffer[:count])
            end += count
            if end - dropped >= DROP_BYTES:
                os.posix_fadvise(file.fileno(), dropped, end - dropped, os.POSIX_FADV_DONTNEED)
                dropped = end
    return hasher.hexdigest()

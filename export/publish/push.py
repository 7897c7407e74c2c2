"""Publishing a model: to the Hugging Face Hub, a folder, or a reproducible tar file.

It publishes the files of the manifest, byte for byte, the manifest and a README.md. It hashes an
artifact before the first byte leaves.
"""

from __future__ import annotations

import fnmatch
import io
import os
import re
import shutil
import tarfile
from collections.abc import Collection, Sequence
from pathlib import Path

from export.forms import MODEL_KINDS
from export.weights.tensor_file import read_tensor_file
from tuneline.core.artifact import only_writer, open_artifact, partial_dir, verify_artifact
from tuneline.core.disk import cannot_write, require_disk_space
from tuneline.core.environment import require
from tuneline.core.errors import ArtifactError, ConfigError, MissingError, ServerError
from tuneline.core.files import MANIFEST, file_sha256
from tuneline.core.progress import logger, progress
from tuneline.models.adapter_config import ADAPTER_CONFIG
from tuneline.models.companion_files import (
    NAMED_TEMPLATES,
    PROCESSOR_FILES,
    PROCESSOR_TEMPLATE,
    TOKENIZER_FILES,
    license_files,
)
from tuneline.models.folder import CONFIG, GENERATION_CONFIG, INDEX, WEIGHTS, read_json
from tuneline.models.schemas import ShardIndex
from tuneline.models.source import model_files

README = "README.md"
HUB = "hf:"
READ_FILES = (
    "*.safetensors", "*.safetensors.index.json", CONFIG, GENERATION_CONFIG, ADAPTER_CONFIG,
    "*.jinja", PROCESSOR_TEMPLATE, MANIFEST, *TOKENIZER_FILES, *PROCESSOR_FILES,
)  # fmt: skip
"""Patterns of the files that decide what a loader makes of a repository."""
ARCHIVES = (".zip", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z")
"""Names that would not be folders' names; a tar file is not compressed."""
TOKEN = "HF_TOKEN"  # noqa: S105 (the name of the variable)


def push_model(model: Path, to: str, card: str | None) -> str:
    """Publish a model artifact, or any model folder.

    Args:
        model: The directory. From a folder without a manifest it publishes only safetensors,
            configuration, tokenizer and licence files, never a pickle or code.
        to: `hf:ORG/NAME`, or a directory or a `.tar` file that does not exist.
        card: The README.md, for a folder without one.

    Returns:
        The path or URL of the published model.

    Raises:
        ArtifactError: The directory is not a model or differs from its manifest, or the target
            exists or is being written by another process.
        ConfigError: The target has another form.
        MissingError: The target is the Hub and HF_TOKEN is not set.
        ServerError: The Hub refuses the upload or cannot be reached.
    """
    files = published_files(model)
    extra = {README: card} if card is not None and README not in files else {}
    if to.startswith(HUB):
        return _to_hub(files, extra, to.removeprefix(HUB))
    if re.match(r"\w+:", to):
        raise ConfigError(
            f"--to {to} is not a place to publish; expected hf:ORG/NAME, s3://BUCKET/PATH, a "
            "folder or a file.tar"
        )
    out = Path(to)
    if out.suffix in ARCHIVES:
        raise ConfigError(f"--to {to}: is an archive of type {out.suffix}; expected a FILE.tar")
    _require_new(out)
    size_bytes = sum(path.stat().st_size for path in files.values())
    require_disk_space(out, size_bytes + 2**20)
    with only_writer(out):
        _require_new(out)  # its writer ended while this process came to the lock
        _write(files, extra, out)
    logger.info("  %d files, %.1f MiB", len(files) + len(extra), size_bytes / 2**20)
    return str(out)


def _require_new(out: Path) -> None:
    if out.exists():
        raise ArtifactError(f"{out}: exists already; expected a path that does not exist")


def _write(files: dict[str, Path], extra: dict[str, str], out: Path) -> None:
    """Write a folder or a tar file next to its name, and give it its name when it is whole."""
    partial = partial_dir(out)
    try:
        if out.suffix == ".tar":
            _write_tar(files, extra, partial)
        else:
            _write_folder(files, extra, partial)
        partial.rename(out)
    except OSError as error:
        raise cannot_write(out, error) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if partial.is_file():
            partial.unlink()


def published_files(model: Path) -> dict[str, Path]:
    """Return the files of a directory that are published: relative name to path, sorted.

    Raises:
        MissingError: The directory does not exist.
        ArtifactError: A file differs from the manifest, the directory does not hold a model, or
            weights are cut short or missing.
    """
    if not model.is_dir():
        raise MissingError(f"--model {model}: no such folder; expected a model folder")
    if (model / MANIFEST).is_file():
        artifact = open_artifact(model, kind=MODEL_KINDS)
        verify_artifact(artifact)
        names = [entry.path for entry in artifact.manifest.files] + [MANIFEST]
        return {name: model / name for name in sorted(names)}
    found = model_files(model)
    if "config.json" not in found or not any(name.endswith(".safetensors") for name in found):
        raise ArtifactError(f"{model}: no config.json and safetensors; expected a model folder")
    read_json(model / CONFIG)
    for file in found.values():
        if file.suffix == ".safetensors":
            read_tensor_file(file)
    if WEIGHTS not in found and INDEX not in found:
        raise ArtifactError(
            f"{model}: has neither {WEIGHTS} nor {INDEX}; expected one of them, by which a loader "
            "finds the weights"
        )
    if INDEX in found:
        lost = set(read_json(found[INDEX], ShardIndex)["weight_map"].values()) - found.keys()
        if lost:
            raise ArtifactError(
                f"{found[INDEX]}: names a file that does not exist: {sorted(lost)[0]}"
            )
    beside = [model / README] if (model / README).is_file() else []
    found |= {path.name: path for path in [*beside, *license_files(model)]}
    return dict(sorted(found.items()))


def _write_folder(files: dict[str, Path], extra: dict[str, str], partial: Path) -> None:
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    with progress("push", len(files), "files") as advance:
        for index, (name, path) in enumerate(files.items(), start=1):
            target = partial / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
            if file_sha256(target) != file_sha256(path):
                raise ArtifactError(
                    f"{target}: differs from {path} after copying; the disk may be failing"
                )
            advance(index, name)
    for name, text in extra.items():
        (partial / name).write_text(text, encoding="utf-8")


def _write_tar(files: dict[str, Path], extra: dict[str, str], partial: Path) -> None:
    """Write sorted names without owner and time, so that equal content gives equal bytes."""
    names = sorted([*files, *extra])
    with (
        tarfile.open(partial, "w", format=tarfile.PAX_FORMAT) as archive,
        progress("push", len(names), "files") as advance,
    ):
        for index, name in enumerate(names, start=1):
            member = tarfile.TarInfo(name)
            member.mode = 0o644
            if name in files:
                member.size = files[name].stat().st_size
                with files[name].open("rb") as opened:
                    archive.addfile(member, opened)
            else:
                data = extra[name].encode()
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
            advance(index, name)


def _to_hub(files: dict[str, Path], extra: dict[str, str], name: str) -> str:
    if name.count("/") != 1 or not all(name.split("/")):
        raise ConfigError(f"--to hf:{name}: expected hf:ORG/NAME")
    hub = require("huggingface_hub", "export")
    token = os.environ.get(TOKEN)
    if not token:
        raise MissingError(
            f"{TOKEN} is not set; expected a token for the upload to the Hugging Face Hub",
            hint=f"Try: {TOKEN}=... tuneline push ...",
        )
    # huggingface_hub 2 passes on the errors of its HTTP library, which are not OSErrors.
    unreachable = require("httpx2", "export").HTTPError
    api = hub.HfApi(token=token)
    operations = [
        hub.CommitOperationAdd(path_in_repo=path, path_or_fileobj=str(file))
        for path, file in files.items()
    ]
    operations += [
        hub.CommitOperationAdd(path_in_repo=path, path_or_fileobj=text.encode())
        for path, text in extra.items()
    ]
    try:
        url = api.create_repo(name, private=True, exist_ok=True)
        for path in left_over(api.list_repo_files(name), {*files, *extra}):
            logger.info("  hf:%s: %s is of another model; removed", name, path)
            operations.append(hub.CommitOperationDelete(path_in_repo=path))
        api.create_commit(name, operations, commit_message="Upload a model made by Tuneline")
    except (unreachable, hub.errors.HfHubHTTPError, OSError, ValueError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        reason = lines[0].replace(token, "***")
        raise ServerError(
            f"hf:{name}: the Hugging Face Hub refused the upload: {reason}",
            hint="Check the name, the network, and that the token may write there.",
        ) from None
    return str(url)


def left_over(there: Sequence[str], new: Collection[str]) -> list[str]:
    """Return the files in a repository that a loader would read in place of a new model's files or
    next to them, such as the shards of an earlier upload.

    The history of the repository keeps them.
    """
    return sorted(
        name
        for name in set(there) - set(new)
        if ("/" not in name or name.startswith(f"{NAMED_TEMPLATES}/"))
        and any(fnmatch.fnmatch(name, pattern) for pattern in READ_FILES)
    )

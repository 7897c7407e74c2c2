"""Find the licences of the models and of the data: run.yaml, a card, a LICENSE file."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tuneline.core.bounded_yaml import load_yaml
from tuneline.pipeline.run_config import Run

CARDS = ("README.md", "MODEL_CARD.md", "DATASET_CARD.md")
LICENSE_FILES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE", "LICENCE.txt", "COPYING")
HUB_NAMES = {
    "apache-2.0": "Apache-2.0",
    "mit": "MIT",
    "bsd-3-clause": "BSD-3-Clause",
    "bsd-2-clause": "BSD-2-Clause",
    "cc0-1.0": "CC0-1.0",
    "cc-by-4.0": "CC-BY-4.0",
    "cc-by-sa-4.0": "CC-BY-SA-4.0",
    "cc-by-nc-4.0": "CC-BY-NC-4.0",
    "odc-by": "ODC-By-1.0",
    "gpl-3.0": "GPL-3.0-only",
    "agpl-3.0": "AGPL-3.0-only",
    "mpl-2.0": "MPL-2.0",
}
"""The Hub's names, in lower case, with their SPDX identifiers; other names stay as they are."""
OF_THE_HUB = {
    "afl-3.0", "agpl-3.0", "apache-2.0", "apple-amlr", "apple-ascl", "artistic-2.0",
    "bigcode-openrail-m", "bigscience-bloom-rail-1.0", "bigscience-openrail-m", "bsd",
    "bsd-2-clause", "bsd-3-clause", "bsd-3-clause-clear", "bsl-1.0", "c-uda", "cc", "cc-by-2.0",
    "cc-by-2.5", "cc-by-3.0", "cc-by-4.0", "cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0",
    "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0",
    "cc-by-nd-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc0-1.0", "cdla-permissive-1.0",
    "cdla-permissive-2.0", "cdla-sharing-1.0", "creativeml-openrail-m", "deepfloyd-if-license",
    "ecl-2.0", "epl-1.0", "epl-2.0", "etalab-2.0", "eupl-1.1", "eupl-1.2", "gemma", "gfdl", "gpl",
    "gpl-2.0", "gpl-3.0", "intel-research", "isc", "lgpl", "lgpl-2.1", "lgpl-3.0", "lgpl-lr",
    "llama2", "llama3", "llama3.1", "llama3.2", "llama3.3", "llama4", "lppl-1.3c", "mit",
    "mpl-2.0", "ms-pl", "ncsa", "odbl", "odc-by", "ofl-1.1", "openrail", "openrail++", "osl-3.0",
    "pddl", "postgresql", "unlicense", "wtfpl", "zlib",
}  # fmt: skip
"""The names of licences that the Hub takes in a card (hf.co/docs/hub/repositories-licenses)."""
TITLES = {
    r"Apache License,? Version 2\.0": "Apache-2.0",
    r"(?<!Modified )MIT License": "MIT",
    r"Mozilla Public License,? (Version|v\.?) ?2\.0": "MPL-2.0",
    r"CC0 1\.0 Universal": "CC0-1.0",
    r"Attribution 4\.0 International": "CC-BY-4.0",
    r"Attribution-ShareAlike 4\.0 International": "CC-BY-SA-4.0",
    r"Attribution-NonCommercial 4\.0 International": "CC-BY-NC-4.0",
}
"""First lines of licence texts, as patterns: a licence that is changed has another name."""
HEAD_CHARACTERS = 400
NO_LICENSE = ("", "unknown", "other", "none", "noassertion")
"""Names with which a card or a run.yaml does not say which licence it is."""


@dataclass(frozen=True)
class License:
    """A licence and where it was found."""

    name: str
    source: str


def base_license(run: Run, folder: Path) -> License | None:
    """Return the licence of the base model; None if it is not known."""
    given = run.config.release.base_license
    if given is not None:
        return _known(License(given.strip(), "run.yaml: release.base_license"))
    return _in_folder(folder)


def teacher_license(run: Run) -> License | None:
    """Return the licence of the teacher of a distillation; None if it is not known."""
    given = run.config.release.teacher_license
    if given is not None:
        return _known(License(given.strip(), "run.yaml: release.teacher_license"))
    found = [_in_folder(one.path) for one in run.config.training.method.models(run.path.parent)]
    return found[0] if found else None


def hub_license(name: str) -> dict[str, str]:
    """Return the keys of a card that name a licence, as the Hub reads them."""
    spdx = {identifier: known for known, identifier in HUB_NAMES.items()}
    known = spdx.get(name, name.lower())
    if known in OF_THE_HUB:
        return {"license": known}
    return {"license": "other", "license_name": re.sub(r"[^a-z0-9.+-]+", "-", known).strip("-")}


def data_license(run: Run) -> License | None:
    """Return the licence of the data; None if it is not known, or if sources disagree."""
    given = run.config.release.data_license
    if given is not None:
        return _known(License(given.strip(), "run.yaml: release.data_license"))
    found = [_of_source(run, path) for path in data_paths(run)]
    names = {one.name for one in found if one is not None}
    return found[0] if len(names) == 1 and None not in found else None


def data_paths(run: Run) -> list[str]:
    """Return the paths of the data, as run.yaml names them."""
    config = run.config.data
    heldout = config.heldout_source()
    paths = [source.path for source in config.train_sources()]
    return list(dict.fromkeys([*paths, *([heldout.path] if heldout else [])]))


def _known(found: License) -> License | None:
    """Return a licence whose name says which licence it is; None for names such as `other`."""
    return None if found.name.lower() in NO_LICENSE else found


def _of_source(run: Run, path: str) -> License | None:
    if path.startswith("hf:"):
        return None
    whole = run.resolve(path)
    return _in_folder(whole if whole.is_dir() else whole.parent)


def _in_folder(folder: Path) -> License | None:
    for name in CARDS:
        found = _of_card(folder / name)
        if found is not None:
            return _known(License(HUB_NAMES.get(found.lower(), found), name))
    for name in LICENSE_FILES:
        title = _of_text(folder / name)
        if title is not None:
            return License(title, name)
    return None


def _of_card(path: Path) -> str | None:
    """Return the licence that the metadata block of a card names, as the Hub reads it."""
    block = re.match(r"---\n(.*?)\n---\n", _read(path), flags=re.DOTALL)
    try:
        values: Any = load_yaml(block[1]) if block is not None else None
    except yaml.YAMLError:
        return None
    if not isinstance(values, dict) or not isinstance(values.get("license"), str):
        return None
    # `other` means that `license_name` has the name.
    name = values.get("license_name")
    return name if values["license"] == "other" and isinstance(name, str) else values["license"]


def _of_text(path: Path) -> str | None:
    text = _read(path)
    head = " ".join(text[:HEAD_CHARACTERS].split())
    found = (name for title, name in TITLES.items() if re.search(title, head, re.IGNORECASE))
    return next(found, None)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""

"""The licence of a folder, and its name in the card that the Hub reads."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tuneline.pipeline.run_config import Run, RunConfig
from tuneline.release.gates.licenses import judge_licenses
from tuneline.release.licenses import _in_folder, hub_license

APACHE = f"{' ' * 33}Apache License\n{' ' * 27}Version 2.0, January 2004"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (APACHE, "Apache-2.0"),
        ("Licensed under the Apache License, Version 2.0 (the ...", "Apache-2.0"),
        ("Apache License\nVersion 1.1", None),
        ("MIT License\n\nCopyright (c) 2026", "MIT"),
        ("The MIT License (MIT)", "MIT"),
        ("Modified MIT License\n\nCopyright (c) 2026", None),
        ("MODIFIED MIT LICENSE", None),
        ("Mozilla Public License Version 2.0", "MPL-2.0"),
        ("Mozilla Public License Version 1.1", None),
        ("Attribution-NonCommercial 4.0 International", "CC-BY-NC-4.0"),
        ("LLAMA 3.1 COMMUNITY LICENSE AGREEMENT", None),
    ],
)
def test_a_licence_that_is_changed_has_no_known_name(
    tmp_path: Path, text: str, name: str | None
) -> None:
    (tmp_path / "LICENSE").write_text(text)
    found = _in_folder(tmp_path)
    assert (None if found is None else found.name) == name


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("Apache-2.0", {"license": "apache-2.0"}),
        ("GPL-3.0-only", {"license": "gpl-3.0"}),
        ("ODC-By-1.0", {"license": "odc-by"}),
        ("llama3.1", {"license": "llama3.1"}),
        ("Acme Model License (v2)", {"license": "other", "license_name": "acme-model-license-v2"}),
        ("qwen-research", {"license": "other", "license_name": "qwen-research"}),
    ],
)
def test_a_card_names_a_licence_as_the_hub_does(name: str, shown: dict[str, str]) -> None:
    assert hub_license(name) == shown


@pytest.mark.parametrize(
    ("card", "given", "outcome", "said"),
    [
        ("---\nlicense: mit\n---\n", {}, "passed", "teacher MIT (README.md)"),
        ("", {"teacher_license": "Apache-2.0"}, "passed", "teacher Apache-2.0 (run.yaml"),
        ("", {}, "failed", "teacher unknown"),
    ],
)
def test_a_release_names_the_licence_of_a_teacher(
    tmp_path: Path, card: str, given: dict[str, Any], outcome: str, said: str
) -> None:
    teacher = tmp_path / "teacher"
    teacher.mkdir()
    (teacher / "config.json").write_text("{}")
    (teacher / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    (teacher / "README.md").write_text(card)
    method = {"type": "distillation", "teacher_model_name_or_path": "teacher"}
    known = {"base_license": "MIT", "data_license": "MIT", **given}
    config = RunConfig.model_validate(
        {"name": "a", "base_model": "b", "data": {"path": "c"}, "training": {"method": method},
         "release": known}
    )  # fmt: skip
    run = Run(tmp_path / "run.yaml", config, tmp_path / "runs" / "a")
    proofs: Any = SimpleNamespace(run=run, base=SimpleNamespace(path=tmp_path))
    found = judge_licenses(proofs)
    assert found.outcome == outcome and said in found.observed

"""The licence of a folder, and its name in the card that the Hub reads."""

from pathlib import Path

import pytest

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

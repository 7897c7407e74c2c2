"""The pages say what the code does, and hold no unfinished part."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "examples").rglob("*.md")),
]


def test_no_page_is_unfinished() -> None:
    assert len(PAGES) > 8
    for page in PAGES:
        assert not re.search(r"@@|MEASURED|TODO", page.read_text()), page


def test_the_configuration_page_is_the_code_s() -> None:
    code = "import config_reference; print(config_reference.page(), end='')"
    printed = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT / "scripts",
        capture_output=True,
        text=True,
        check=True,
    )
    written = (ROOT / "docs" / "configuration.md").read_text()
    assert printed.stdout == written, "run: python scripts/config_reference.py"


def test_the_table_of_forms_is_the_code_s() -> None:
    code = "import config_reference as c; print(c.form_table(), end='')"
    printed = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT / "scripts",
        capture_output=True,
        text=True,
        check=True,
    )
    assert printed.stdout.count("\n") > 10
    assert printed.stdout in (ROOT / "docs" / "export.md").read_text()


def test_every_relative_link_leads_somewhere() -> None:
    links = 0
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
            if not target.startswith("http"):
                links += 1
                assert (page.parent / target).exists(), f"{page}: {target}"
    assert links > 0

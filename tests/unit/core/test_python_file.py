"""Python files of the user: their own modules are found, imported and known to keys."""

from __future__ import annotations

from pathlib import Path

import pytest

from tuneline.core.python_file import import_file, imported_files

FILES = {
    "main.py": """
import json, tl_words
from tl_pack.inner import deep

def f():
    from tl_late import now
    return now() + tl_words.SIZE + deep.VALUE
""",
    "tl_words.py": "from tl_more import SIZE\n",
    "tl_more.py": "import tl_words\nSIZE = 1\n",
    "tl_late.py": "def now():\n    return 10\n",
    "tl_pack/__init__.py": "",
    "tl_pack/inner/__init__.py": "from . import deep\n",
    "tl_pack/inner/deep.py": "from ..other import VALUE\n",
    "tl_pack/other.py": "VALUE = 100\n",
    "unused.py": "import tl_late\n",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(tmp_path / "elsewhere"))  # undoes what the import appends
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_the_files_that_a_file_imports_are_found(folder: Path) -> None:
    found = [str(file.relative_to(folder)) for file in imported_files(folder / "main.py")]
    assert found == sorted(set(FILES) - {"main.py", "unused.py"})
    assert imported_files(folder / "tl_late.py") == []


def test_a_file_may_import_modules_of_its_folder_also_later(folder: Path) -> None:
    assert import_file(folder / "main.py").f() == 111


@pytest.mark.parametrize("text", ["def (", "import tl_missing\n", "from .. import x\n"])
def test_a_file_that_cannot_be_parsed_or_imported_is_left_to_its_step(
    tmp_path: Path, text: str
) -> None:
    (tmp_path / "bad.py").write_text(text)
    assert imported_files(tmp_path / "bad.py") == []
    assert imported_files(tmp_path / "none.py") == []

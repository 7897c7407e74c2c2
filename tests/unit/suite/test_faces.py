"""The three lists of a face agree: `__all__`, the imports for the type checker, the lazy table."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
FACES = sorted(
    path.relative_to(ROOT)
    for room in ("tuneline", "training", "export", "serving", "loadtest", "k8s")
    for path in (ROOT / room).rglob("__init__.py")
    if "lazy_face(" in path.read_text()
)


def lists_of(face: Path) -> tuple[list[str], dict[str, str], dict[str, str]]:
    """Return `__all__`, and for each imported and each lazy name its `module:attribute`."""
    offered: list[str] = []
    imported: dict[str, str] = {}
    lazy: dict[str, str] = {}
    for node in ast.parse((ROOT / face).read_text()).body:
        if isinstance(node, ast.If):
            for entry in node.body:
                assert isinstance(entry, ast.ImportFrom)
                imported |= {n.asname or n.name: f"{entry.module}:{n.name}" for n in entry.names}
        elif isinstance(node, ast.Assign) and isinstance(node.value, ast.List):
            offered = ast.literal_eval(node.value)
        elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
            lazy = ast.literal_eval(node.value.args[1])
    return offered, imported, lazy


def defined_in(module: str) -> set[str]:
    """Return the names that a module defines at its top."""
    found: set[str] = set()
    for node in ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found.add(node.target.id)
    return found


def test_every_room_has_a_face() -> None:
    assert len(FACES) == 7


@pytest.mark.parametrize("face", FACES, ids=str)
def test_the_lists_of_a_face_agree(face: Path) -> None:
    offered, imported, lazy = lists_of(face)
    assert len(offered) == len(set(offered)) > 1
    assert set(offered) == imported.keys() == lazy.keys()
    assert imported == lazy


@pytest.mark.parametrize("face", FACES, ids=str)
def test_a_face_names_what_its_modules_define(face: Path) -> None:
    for where in lists_of(face)[2].values():
        module, _, attribute = where.partition(":")
        assert attribute in defined_in(module), where


def test_a_face_finds_its_names_and_no_other() -> None:
    import serving

    found: list[Any] = [getattr(serving, name) for name in serving.__all__]
    assert found and None not in found
    with pytest.raises(AttributeError, match="no attribute 'serve'"):
        _ = serving.serve

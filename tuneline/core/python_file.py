"""A Python file of the user, and the modules next to it that it imports."""

from __future__ import annotations

import ast
import importlib.util
import sys
from pathlib import Path
from types import ModuleType


def import_file(path: Path) -> ModuleType:
    """Run a Python file, and return it as a module.

    The file may import modules of its own folder, also later, inside a function. An installed
    module with the same name comes first.

    Raises:
        ImportError: The name does not end in `.py`.
        Exception: Whatever the file raises.
    """
    folder = str(path.resolve().parent)
    spec = importlib.util.spec_from_file_location(f"user_file_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file; expected a name that ends in .py")
    if folder not in sys.path:
        sys.path.append(folder)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def imported_files(path: Path) -> list[Path]:
    """Return the files in the folder of a Python file that it imports, directly or through others.

    The files are parsed, not run. An import by a computed name is not found.
    """
    found: set[Path] = set()
    waiting = [path]
    while waiting:
        new = _imported_by(waiting.pop(), path.parent) - found - {path}
        found |= new
        waiting += new
    return sorted(found)


def _imported_by(file: Path, folder: Path) -> set[Path]:
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return set()  # the step that runs the file names the damage
    found: set[Path] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                found |= _files_of(folder, alias.name)
        elif isinstance(node, ast.ImportFrom):
            start = file.parents[node.level - 1] if node.level else folder
            for alias in node.names:
                found |= _files_of(start, f"{node.module or ''}.{alias.name}")
    return found


def _files_of(folder: Path, name: str) -> set[Path]:
    """Return the files that the import of a dotted name runs."""
    found = set()
    for part in filter(None, name.split(".")):
        found |= {folder / f"{part}.py", folder / part / "__init__.py"}
        folder = folder / part
    return {file for file in found if file.is_file()}

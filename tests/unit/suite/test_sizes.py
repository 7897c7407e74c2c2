"""Modules and functions stay short enough to be read in one piece."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[3]
ROOMS = ("tuneline", "training", "export", "serving", "loadtest", "k8s")
FILES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))


def num_code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Return the lines of a function without its docstring."""
    first = function.body[0]
    is_docstring = (
        isinstance(first, ast.Expr)
        and isinstance(first.value, ast.Constant)
        and isinstance(first.value.value, str)
    )
    length = (function.end_lineno or 0) - function.lineno + 1
    return length - ((first.end_lineno or 0) - first.lineno + 1 if is_docstring else 0)


def test_modules_have_at_most_400_lines() -> None:
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in FILES}
    assert len(lengths) > 200
    assert {name: length for name, length in lengths.items() if length > 400} == {}


def test_functions_have_at_most_60_lines_or_say_why() -> None:
    num_functions, long = 0, []
    for path in FILES:
        text = path.read_text()
        for node in ast.walk(ast.parse(text)):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            num_functions += 1
            body = text.splitlines()[node.lineno - 1 : node.end_lineno]
            says_why = any(line.strip().startswith("# Over 60 lines:") for line in body)
            if num_code_lines(node) > 60 and not says_why:
                long.append(f"{path.relative_to(ROOT)}: {node.name}")
    assert num_functions > 1000
    assert long == []

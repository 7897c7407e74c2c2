"""The code on the pages of docs/how-to works as it is written there."""

from __future__ import annotations

import ast
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loadtest.arrivals.pattern import Draw
from loadtest.config import Scenario
from tests.unit.docs.pages import ROOT, Found, snippets

CODE = ("tuneline", "training", "export", "serving", "loadtest", "k8s")
MODULES = [s for s in snippets("python") if "how-to" in s.page and s.text.startswith('"""')]


@pytest.fixture
def uniform(tmp_path: Path) -> Any:
    (block,) = [s for s in MODULES if s.page.endswith("add-an-arrival-pattern.md")]
    (tmp_path / "uniform.py").write_text(block.text)
    return runpy.run_path(str(tmp_path / "uniform.py"))["PATTERN"]


def test_the_arrival_pattern_of_the_page_has_uniform_gaps(uniform: Any) -> None:
    scenario = Scenario(name="x", rate_rps=50.0, num_requests=20000)
    gaps = np.diff(uniform.times(scenario, Draw(np.random.default_rng(3), 0, ())))
    assert len(gaps) == 19999
    assert gaps.min() >= 0 and gaps.max() <= 2 / 50
    assert gaps.mean() == pytest.approx(1 / 50, rel=0.02)
    assert gaps.std() / gaps.mean() == pytest.approx(1 / np.sqrt(3), rel=0.02)


def quotes() -> Iterator[tuple[Found, ast.stmt]]:
    """Return the classes, functions and tables that pages quote from the code."""
    toys = {block.page for block in MODULES}
    for snippet in snippets("python"):
        if "how-to" in snippet.page and snippet.page not in toys:
            for node in ast.parse(snippet.text).body:
                if name_of(node):
                    yield snippet, node


def name_of(node: ast.AST) -> str:
    """Return the name of a class, a function or a table in capitals; empty for other code."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return node.name
    if isinstance(node, ast.Assign | ast.AnnAssign):
        target = node.targets[0] if isinstance(node, ast.Assign) else node.target
        return target.id if isinstance(target, ast.Name) and target.id.isupper() else ""
    return ""


def parts(node: Any) -> set[str]:
    """Return the statements, arguments or entries of a piece of code, without docstrings."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        texts = [s for s in node.body if not (isinstance(s, ast.Expr) and is_text(s.value))]
        return {ast.dump(s) for s in texts}
    if isinstance(node.value, ast.Call):
        return {ast.dump(part) for part in (*node.value.args, *node.value.keywords)}
    if isinstance(node.value, ast.Dict):
        pairs = zip(node.value.keys, node.value.values, strict=True)
        return {f"{ast.dump(key)}: {ast.dump(value)}" for key, value in pairs if key is not None}
    return {ast.dump(node.value)}


def is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


@pytest.fixture(scope="module")
def code() -> dict[str, list[set[str]]]:
    """Return the parts of all classes, functions and tables of the product, by name."""
    found: dict[str, list[set[str]]] = {}
    for path in (p for folder in CODE for p in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            name = name_of(node)
            if name and getattr(node, "value", True) is not None:
                found.setdefault(name, []).append(parts(node))
    return found


def id_of(one: Found | ast.stmt) -> str:
    """Return a part of the id of a test, the same in every process."""
    return name_of(one) or "assignment" if isinstance(one, ast.stmt) else str(one)[:60]


@pytest.mark.parametrize(("page", "node"), list(quotes()), ids=id_of)
def test_code_that_a_page_quotes_is_in_the_product(
    page: Found, node: ast.stmt, code: dict[str, list[set[str]]]
) -> None:
    assert any(parts(node) <= whole for whole in code.get(name_of(node), [])), page


def test_pages_quote_enough_to_check() -> None:
    assert len(list(quotes())) >= 9

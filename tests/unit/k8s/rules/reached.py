"""Which problems of a module of rules a table of broken objects brings up."""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any, TypeAlias

from k8s.rules.check import check_manifests

Objects: TypeAlias = list[dict[str, Any]]


def unreached_yields(
    modules: Sequence[ModuleType], broken: Iterable[tuple[Objects, Callable[[Objects], Any]]]
) -> tuple[list[tuple[str, int]], int]:
    """Return the files and lines with a `yield` that no broken tree reaches, and their number.

    Args:
        modules: Modules of rules.
        broken: The objects of a good tree, and what breaks them.
    """
    files = {inspect.getfile(module) for module in modules}
    wanted = {
        (file, node.lineno)
        for file in files
        for node in ast.walk(ast.parse(Path(file).read_text()))
        if isinstance(node, ast.Yield)
    }
    seen = set()

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        if frame.f_code.co_filename not in files:
            return None
        if event == "line":
            seen.add((frame.f_code.co_filename, frame.f_lineno))
        return trace

    before = sys.gettrace()
    for objects, mutation in broken:
        mutation(objects)
        sys.settrace(trace)
        try:
            check_manifests(objects)
        finally:
            sys.settrace(before)
    return sorted(wanted - seen), len(wanted)

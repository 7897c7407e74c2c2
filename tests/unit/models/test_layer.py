"""The layer loads no machine-learning library until a function needs one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import tuneline.models

MODULES = sorted(path.stem for path in Path(tuneline.models.__file__).parent.glob("[a-z]*.py"))


def test_no_module_imports_torch_or_transformers() -> None:
    assert len(MODULES) >= 3
    names = ", ".join(f"tuneline.models.{name}" for name in MODULES)
    code = (
        f"import sys, {names}\n"
        "print([n for n in ('torch', 'transformers', 'peft', 'numpy', 'safetensors')"
        " if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

"""Merges in tests: running one, reading what it wrote, damaging what it reads, killing it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from export.config import MergeConfig
from export.merge.merge import merge
from tuneline.core.artifact import Artifact, Input, new_artifact, open_artifact, partial_dir
from tuneline.core.errors import ArtifactError, MissingError, NotAnArtifactError
from tuneline.models.source import ModelSource, resolve_model

ROOT = Path(__file__).parents[3]


def run_merge(base: Path, adapter: Path, out: Path, dtype: str = "auto") -> Artifact:
    config = MergeConfig.model_validate({"dtype": dtype})
    return merge(config, resolve_model(str(base)), adapter, out)


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        found.update(load_file(file))
    return found


def assert_same_bits(merged: Path, expected: dict[str, torch.Tensor], base: Path) -> None:
    found, before = tensors(merged), tensors(base)
    assert len(found) > 10
    assert found.keys() == before.keys()
    for name, value in found.items():
        assert value.dtype == expected[name].dtype, name
        assert torch.equal(value, expected[name]), name
    assert any(not torch.equal(found[name], before[name]) for name in found)


def refusal(base: Path, adapter: Path | Artifact, out: Path) -> str:
    """The message of the refusal; it must leave nothing behind."""
    source = ModelSource(str(base), base, "sha256:0", "base-model")
    with pytest.raises((ArtifactError, MissingError)) as caught:
        merge(MergeConfig(), source, adapter, out)
    assert not out.exists()
    assert not [path for path in out.parent.glob("*") if out.name in path.name]
    return str(caught.value)


def edit_tensors(file: Path, edit: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    values = {name: value.clone() for name, value in load_file(file).items()}
    edit(values)
    save_file(values, file, metadata={"format": "pt"})


def edit_json(file: Path, **values: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def header_of(content: bytes) -> tuple[int, dict[str, Any]]:
    length = int.from_bytes(content[:8], "little")
    return 8 + length, json.loads(content[8 : 8 + length])


def with_header(content: bytes, change: Callable[[dict[str, Any]], Any]) -> bytes:
    end, header = header_of(content)
    change(header)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + content[end:]


def as_artifact(folder: Path, out: Path, base_digest: str, kind: str = "adapter") -> Artifact:
    inputs = [Input(role="base", kind="base-model", digest=base_digest)]
    with new_artifact(out, kind, config={}, inputs=inputs) as draft:
        shutil.copytree(folder, draft.dir, dirs_exist_ok=True)
    return open_artifact(out)


def as_qlora(folder: Path, base: Path, out: Path) -> Artifact:
    """The adapter as a training in four bits records it."""
    inputs = [Input(role="base", kind="base-model", digest=resolve_model(str(base)).digest)]
    with new_artifact(out, "adapter", config={"load_in_4bit": True}, inputs=inputs) as draft:
        shutil.copytree(folder, draft.dir, dirs_exist_ok=True)
    return open_artifact(out)


KILLED_CHILD = """
import os, signal, sys
from pathlib import Path
import export.weights.writer
from export.config import MergeConfig
from export.merge.merge import merge
from tuneline.models.source import resolve_model

base, adapter, out, name, at = sys.argv[1:]
export.weights.writer.CHECKPOINT_BYTES = 1  # every tensor is noted
function, calls = getattr(export.weights.writer, name), 0

def killing(*arguments):
    global calls
    calls += 1
    result = function(*arguments)
    if calls == int(at):
        os.kill(os.getpid(), signal.SIGKILL)
    return result

setattr(export.weights.writer, name, killing)
merge(MergeConfig(), resolve_model(base), Path(adapter), Path(out))
"""


def killed(base: Path, adapter: Path, out: Path, name: str, at: int) -> None:
    """A merge in another process, which is killed in the middle of its own work."""
    child = subprocess.run(
        [sys.executable, "-c", KILLED_CHILD, str(base), str(adapter), str(out), name, str(at)],
        capture_output=True, text=True, check=False, cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert child.returncode == -signal.SIGKILL, child.stderr
    for path in (out, partial_dir(out)):
        with pytest.raises(NotAnArtifactError):
            open_artifact(path)


def make_adapter_of(folder: Path, base: Path, config: Any) -> Path:
    """An adapter of any PEFT method with random values (as if trained), next to its tokenizer."""
    torch.manual_seed(1)
    tuned = peft.get_peft_model(transformers.AutoModelForCausalLM.from_pretrained(base), config)
    changed = 0
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.2)
                changed += 1
    assert changed
    tuned.save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return folder

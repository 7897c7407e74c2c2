"""Merges in tests: running one, reading what it wrote, damaging what it reads, killing it."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import traceback
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
from export.weights import writer
from tuneline.core.artifact import Artifact, Input, new_artifact, open_artifact, partial_dir
from tuneline.core.errors import ArtifactError, MissingError, NotAnArtifactError
from tuneline.models.source import ModelSource, resolve_model


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


def killed(base: Path, adapter: Path, out: Path, name: str, at: int) -> None:
    """Merge in a forked process, which is killed in the middle of its own work."""
    child = os.fork()
    if child == 0:
        try:
            _merge_until_killed(base, adapter, out, name, at)
        finally:
            traceback.print_exc()
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    for path in (out, partial_dir(out)):
        with pytest.raises(NotAnArtifactError):
            open_artifact(path)


def _merge_until_killed(base: Path, adapter: Path, out: Path, name: str, at: int) -> None:
    writer.CHECKPOINT_BYTES = 1  # every tensor is noted
    function = getattr(writer, name)
    calls = itertools.count(1)

    def killing(*arguments: Any) -> Any:
        result = function(*arguments)
        if next(calls) == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(writer, name, killing)
    merge(MergeConfig(), resolve_model(str(base)), adapter, out)


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

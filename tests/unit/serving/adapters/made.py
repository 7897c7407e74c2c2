"""Small artifacts of adapters, references and a base, without torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from serving.adapters.settings import AdapterSettings
from tuneline.core.artifact import Artifact, Input, new_artifact, open_artifact
from tuneline.core.reference import REFERENCE_FILE, Continuation, write_continuations
from tuneline.core.tolerances import ARITHMETIC_TOLERANCES

BASE_DIGEST = "sha256:" + "a" * 64
MODULES = ("model.layers.0.self_attn.q_proj", "model.layers.0.mlp.up_proj")
PROMPTS = ("one", "two", "three")


def make_base(folder: Path, **config: Any) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", **config}))
    tensors = {f"{module}.weight": np.ones((4, 4), np.float32) for module in MODULES}
    save_file(tensors, folder / "model.safetensors")
    return folder


def make_adapter(
    out: Path,
    *,
    tensors: dict[str, Any] | None = None,
    base: str | None = BASE_DIGEST,
    scale: float = 1.0,
    **config: Any,
) -> Artifact:
    options = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
    inputs = [] if base is None else [Input(role="base", kind="base-model", digest=base)]
    with new_artifact(out, "adapter", config={}, inputs=inputs) as draft:
        (draft.dir / "adapter_config.json").write_text(json.dumps(options | config))
        save_file(
            tensors if tensors is not None else lora_tensors(scale),
            draft.dir / "adapter_model.safetensors",
        )
    return open_artifact(out)


def lora_tensors(scale: float = 1.0, prefix: str = "base_model.model.") -> dict[str, Any]:
    found = {}
    for module in MODULES:
        found[f"{prefix}{module}.lora_A.weight"] = np.ones((2, 4), np.float32)
        found[f"{prefix}{module}.lora_B.weight"] = np.full((4, 2), scale, np.float32)
    return found


def continuation(prompt: str, token: int, logprob: float = -0.5) -> Continuation:
    """An answer of one token and the stop token, 0."""
    return Continuation(
        messages=[{"role": "user", "content": prompt}],
        prompt_token_ids=[1, 2],
        token_ids=[token, 0],
        logprobs=[logprob, -0.25],
        top_logprobs=[{token: logprob}, {0: -0.25}],
        text=f"t{token}",
        finish_reason="stop",
    )


def make_reference(out: Path, adapter: Artifact, token: int = 7) -> Artifact:
    with new_artifact(
        out, "reference", config={"max_new_tokens": 8, "top_logprobs": 1},
        inputs=[adapter.as_input("adapter")],
    ) as draft:  # fmt: skip
        answers = [continuation(prompt, token) for prompt in PROMPTS]
        write_continuations(draft.dir / REFERENCE_FILE, answers)
    return open_artifact(out)


def settings_of(root: Path, **changes: Any) -> AdapterSettings:
    values = {
        "root": root, "state_dir": root / "state", "base_dir": root / "base",
        "base_digest": BASE_DIGEST, "base_name": "tickets", "own_names": ("tickets",),
        "reserved_names": ("tickets",), "aliases": {}, "run_digest": None,
        "max_adapters": 2, "max_lora_rank": 16, "tolerances": ARITHMETIC_TOLERANCES["float32"],
    }  # fmt: skip
    return AdapterSettings.model_validate({**values, **changes})

"""The flags for a LoRA adapter that is served next to its base model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from tuneline.models.adapter_config import (
    ADAPTER_CONFIG,
    read_adapter_config,
    require_servable,
    served_rank,
)


def adapter_args(adapter: Path, adapter_at: str, served_names: Sequence[str]) -> list[str]:
    """Return the flags for `adapter`, which the server sees at `adapter_at`.

    Raises:
        ArtifactError: vLLM cannot serve the adapter next to its base.
    """
    adapter_config = read_adapter_config(adapter)
    require_servable(adapter_config, adapter / ADAPTER_CONFIG)
    args = ["--served-model-name", f"{served_names[0]}-base"]
    args += ["--enable-lora", "--max-lora-rank", str(served_rank(adapter_config))]
    # vLLM counts each name as an adapter; with room for fewer it would swap them in and out.
    args += ["--max-loras", str(len(served_names)), "--lora-modules"]
    args += [json.dumps({"name": name, "path": adapter_at}) for name in served_names]
    # The tokenizer, chat template and stop tokens of the training, if the folder has them.
    if (adapter / "tokenizer_config.json").is_file():
        args += ["--tokenizer", adapter_at]
    if (adapter / "generation_config.json").is_file():
        args += ["--generation-config", adapter_at]
    return args

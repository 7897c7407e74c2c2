"""An adapter as it will be written, before it is trained: names, shapes and options."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from peft import get_peft_model_state_dict

from tuneline.models.adapter_config import ADAPTER_WEIGHTS


def write_outline(model: Any, folder: Path) -> None:
    """Write the files of an adapter into a folder, with zeros that take no space on the disk.

    Args:
        model: The base with the adapter, as peft's model; its weights are not read.
    """
    # As `write_lora` does.
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    header, end = {}, 0
    for name, tensor in state.items():
        start, end = end, end + 4 * tensor.numel()
        header[name] = {"dtype": "F32", "shape": [*tensor.shape], "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (folder / ADAPTER_WEIGHTS).open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    model.peft_config["default"].save_pretrained(folder)

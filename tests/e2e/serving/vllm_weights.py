"""Load model folders with vLLM's own code, up to where it would choose kernels, and save what its
parameters hold: `python vllm_weights.py FOLDER OUT.safetensors [FOLDER OUT.safetensors ...]`."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from unittest import mock

import torch
from safetensors.torch import save_file

CHOICES = {
    "w8a8_int8": "select_int8_moe_backend",
    "w8a8_fp8": "select_fp8_moe_backend",
    "wna16": "select_wna16_moe_backend",
}
"""The choice of a kernel for the experts: on a processor without a kernel, vLLM ends there."""
MODULE = (
    "vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors_moe."
    "compressed_tensors_moe_{}.{}"
)


def main(folders: list[tuple[str, str]]) -> None:
    from vllm.config import set_current_vllm_config
    from vllm.distributed import init_distributed_environment, initialize_model_parallel
    from vllm.engine.arg_utils import EngineArgs
    from vllm.model_executor.model_loader import get_model_loader
    from vllm.utils.torch_utils import set_default_torch_dtype

    for name, function in CHOICES.items():
        chosen = mock.Mock(return_value=(mock.Mock(value="none"), None))
        mock.patch(MODULE.format(name, function), chosen).start()
    with tempfile.TemporaryDirectory() as work:
        for number, (folder, out) in enumerate(folders):
            config = EngineArgs(
                model=folder, enforce_eager=True, dtype="bfloat16", max_model_len=64
            ).create_engine_config()
            with set_current_vllm_config(config), set_default_torch_dtype(torch.bfloat16):
                if number == 0:
                    where = f"file://{Path(work) / 'rendezvous'}"
                    init_distributed_environment(1, 0, where, 0, "gloo")
                    initialize_model_parallel()
                loader = get_model_loader(config.load_config)
                model = loader.create_model(vllm_config=config, model_config=config.model_config)
                loader.load_weights(model, config.model_config)
            held = {name: value.data.contiguous() for name, value in model.named_parameters()}
            save_file(held, out)


if __name__ == "__main__":
    given = sys.argv[1:]
    main(list(zip(given[::2], given[1::2], strict=True)))

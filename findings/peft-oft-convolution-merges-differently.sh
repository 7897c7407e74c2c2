#!/usr/bin/env bash
# peft 0.21.2: the merged OFT adapter of a convolution is another model than the one that was trained.
#
# OFT multiplies blocks of a layer's inputs by small rotations. At a convolution the adapter turns the patches
# that the kernel sees. merge_and_unload turns the weights of the kernel and gives another output. The merged
# patch embedding of a vision model, which is exported and served, was never evaluated. Nothing warns. A
# kernel of one pixel and linear layers merge rightly, and so do LoRA, BOFT and HRA at the same convolution.
#
# Seen (layer: distance of the merged outputs to the adapter's, over the size of the adapter's change, for
# OFT, BOFT, HRA and LoRA):
#   Conv2d, kernel 3           1.00 0.00 0.00 0.00
#   Conv2d, patches of 4 by 4  1.04 0.00 0.00 0.00
#   Conv2d, kernel 1           0.00 0.00 0.00 0.00
#   Linear                     0.00 0.00 0.00 0.00
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --quiet peft==0.21.2 transformers==5.19.0 torch==2.13.0 numpy==2.4.6
cd "$work"
"$work/env/bin/python" - 2> log <<'PYTHON' || { cat log; exit 1; }
import torch
from peft import BOFTConfig, HRAConfig, LoraConfig, OFTConfig, get_peft_model
from torch import nn

METHODS = {
    "oft": lambda: OFTConfig(r=0, oft_block_size=4, target_modules=["layer"]),
    "boft": lambda: BOFTConfig(boft_block_size=4, target_modules=["layer"]),
    "hra": lambda: HRAConfig(r=4, target_modules=["layer"]),
    "lora": lambda: LoraConfig(r=4, target_modules=["layer"]),
}
LAYERS = {
    "Conv2d, kernel 3": (lambda: nn.Conv2d(4, 8, 3, padding=1), (2, 4, 8, 8)),
    "Conv2d, patches of 4 by 4": (lambda: nn.Conv2d(4, 8, 4, stride=4), (2, 4, 8, 8)),
    "Conv2d, kernel 1": (lambda: nn.Conv2d(4, 8, 1), (2, 4, 8, 8)),
    "Linear": (lambda: nn.Linear(16, 8), (3, 16)),
}


@torch.no_grad()
def distance(config, new_layer, shape):
    inputs = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    torch.manual_seed(0)
    model = nn.ModuleDict({"layer": new_layer()})
    base = model["layer"](inputs)
    adapted = get_peft_model(model, config).eval()
    torch.manual_seed(1)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter += 0.1 * torch.randn_like(parameter)
    active = adapted.base_model.model["layer"](inputs)
    size = (active - base).norm()
    assert size > 0.01
    return float((adapted.merge_and_unload()["layer"](inputs) - active).norm() / size)


for name, (new_layer, shape) in LAYERS.items():
    seen = {method: distance(config(), new_layer, shape) for method, config in METHODS.items()}
    print(f"{name:25}", *(f"{value:.2f}" for value in seen.values()))
    wrong = seen.pop("oft")
    assert max(seen.values()) < 1e-3
    assert wrong > 0.5 if "3" in name or "patches" in name else wrong < 1e-3, "changed"
PYTHON

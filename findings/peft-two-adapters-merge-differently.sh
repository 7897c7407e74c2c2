#!/usr/bin/env bash
# peft 0.21.2: two active OFT or C3A adapters give another model after merging than before.
#
# base_model.set_adapter(["a", "b"]) makes two adapters act together, and merge_and_unload writes their
# work into the weights. OFT turns the input by the first adapter and then by the second, but multiplies
# their rotations into the weights in the other order. C3A's second adapter gets the output of the first
# as its input while the model runs, and the merged weights are the sum of both. One adapter alone merges
# rightly, and so do two of LoRA and of BOFT, whose order matters too. Nothing warns. The merged model is
# not the one that was evaluated.
#
# Seen (method: distance of the merged model to the model before, over the size of the adapters' change):
#   lora  0.00
#   boft  0.00
#   oft   1.39, and 0.00 to the adapters in the other order
#   c3a   1.01, and 0.00 to the sum of the two adapters' changes
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --quiet peft==0.21.2 transformers==5.19.0 torch==2.13.0 numpy==2.4.6
cd "$work"
"$work/env/bin/python" - 2> log <<'PYTHON' || { cat log; exit 1; }
import copy
import warnings

import peft
import torch

METHODS = {
    "lora": peft.LoraConfig(r=8, target_modules=["0"]),
    "boft": peft.BOFTConfig(boft_block_size=8, target_modules=["0"]),
    "oft": peft.OFTConfig(r=0, oft_block_size=8, target_modules=["0"]),
    "c3a": peft.C3AConfig(block_size=8, target_modules=["0"]),
}
seen = {}
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for name, config in METHODS.items():
        torch.manual_seed(0)
        base = torch.nn.Sequential(torch.nn.Linear(32, 32))
        rows = torch.randn(8, 32)
        before = base(rows).detach()
        model = peft.get_peft_model(base, copy.deepcopy(config), adapter_name="a")
        model.add_adapter("b", copy.deepcopy(config))
        model.base_model.set_adapter(["a", "b"])
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data += 0.3 * torch.randn_like(parameter)
        model.eval()
        outputs = {}
        for active in (("a",), ("b",), ("b", "a"), ("a", "b")):
            model.base_model.set_adapter(list(active))
            outputs[active] = model(rows).detach()
            if len(active) == 1:
                alone = copy.deepcopy(model).merge_and_unload()(rows).detach()
                assert torch.allclose(alone, outputs[active], atol=1e-4)
        merged = copy.deepcopy(model).merge_and_unload()(rows).detach()
        live = outputs["a", "b"]
        size = (live - before).norm()
        seen[name] = [
            ((merged - other).norm() / size).item()
            for other in (live, outputs["b", "a"], outputs["a",] + outputs["b",] - before)
        ]
        print(f"{name:4} {seen[name][0]:.2f}, to the other order {seen[name][1]:.2f}, "
              f"to the sum {seen[name][2]:.2f}")
assert not [w for w in caught if "merg" in str(w.message)], [str(w.message) for w in caught]
assert seen["lora"][0] < 1e-4 and seen["boft"][0] < 1e-4 < seen["boft"][1]
assert seen["oft"][0] > 0.5 and seen["oft"][1] < 1e-4, "changed"
assert seen["c3a"][0] > 0.5 and seen["c3a"][2] < 1e-4, "changed"
PYTHON

#!/usr/bin/env bash
# lycoris-lora 4.1.3: merging a LoHa or LoKr adapter multiplies its change by alpha / rank twice.
#
# Both methods scale their change by alpha over the rank, as LoRA does. While the adapter runs next to
# the model, the factor acts once. merge_to takes a weight that holds the factor already and multiplies
# it again. With rank 8 and the default alpha of 1 the merged model keeps an eighth of what was
# trained: it is not the model that was evaluated. Nothing warns. LoRA merges rightly, and so does each
# method with alpha equal to the rank.
#
# Seen for rank 8 (method, alpha: size of the merged change over that of the running adapter, and of the
# running adapter over the change that the formula of the method gives):
#   lora  8  1.000 1.000
#   lora  1  1.000 1.000
#   loha  8  1.000 1.000
#   loha  1  0.125 1.000
#   lokr  8  1.000 1.000
#   lokr  1  0.125 1.000
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --quiet lycoris-lora==4.1.3 torch==2.13.0 numpy==2.4.6
cd "$work"
"$work/env/bin/python" - 2> log <<'PYTHON' || { cat log; exit 1; }
import logging
import warnings

import torch
from lycoris import LycorisNetwork, create_lycoris

RANK = 8
logging.disable(logging.INFO)
LycorisNetwork.apply_preset({"target_module": ["Linear"], "target_name": [".*"]})
warnings.simplefilter("error", UserWarning)
torch.manual_seed(0)
rows = torch.randn(16, 256)


def formula(method, factors):
    """The change of the weights, without alpha over the rank."""
    if method == "lora":
        return factors["lora_up.weight"] @ factors["lora_down.weight"]
    if method == "loha":
        first = factors["hada_w1_a"] @ factors["hada_w1_b"]
        return first * (factors["hada_w2_a"] @ factors["hada_w2_b"])
    return torch.kron(factors["lokr_w1"], factors["lokr_w2_a"] @ factors["lokr_w2_b"])


seen = {}
for method in ("lora", "loha", "lokr"):
    for alpha in (8.0, 1.0):
        layer = torch.nn.Linear(256, 256, bias=False)
        model = torch.nn.Sequential(layer)
        network = create_lycoris(
            model, 1.0, linear_dim=RANK, linear_alpha=alpha, algo=method, factor=4
        )
        network.apply_to()
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        network.eval()
        weights = layer.weight.detach().clone()
        factors = {name.split(".", 1)[1]: value for name, value in network.state_dict().items()}
        with torch.no_grad():
            expected = rows @ (formula(method, factors) * alpha / RANK).T
            before = rows @ weights.T
            running = model(rows) - before
            network.restore()
            network.merge_to(1.0)
            merged = model(rows) - before
        seen[method, alpha] = (
            float(merged.norm() / running.norm()), float((running - expected).norm() / running.norm())
        )
        print(f"{method}  {alpha:.0f}  {seen[method, alpha][0]:.3f} {float(running.norm() / expected.norm()):.3f}")
assert all(distance < 1e-5 for _, distance in seen.values())
right = [seen["lora", 1.0], seen["lora", 8.0], seen["loha", 8.0], seen["lokr", 8.0]]
assert all(abs(ratio - 1) < 1e-4 for ratio, _ in right)
assert all(abs(seen[method, 1.0][0] - 1 / 8) < 1e-4 for method in ("loha", "lokr")), "changed"
PYTHON

#!/usr/bin/env bash
# peft 0.21.2: add_weighted_adapter scales rsLoRA adapters up and drops DoRA's magnitudes and lora_bias.
#
# The method builds one adapter from several, each with a weight. One adapter with the weight 1.0 has
# to give that adapter. The new adapter holds the scales of its sources already and inherits use_rslora
# from the first, so its change is the square root of the rank times too large: 8 times at rank 64. For
# DoRA it does not copy the magnitudes, for lora_bias the bias. All combination types do so, and nothing
# warns. One pull request about rsLoRA (3449) is merged and one issue (3761) open.
#
# Seen for one source of rank 16 and the weight 1.0 (size of the new change over the source's, and
# distance of the two over the source's size):
#   plain  1.000 0.000
#   rslora 4.000 3.000
#   dora   0.407 0.840
#   bias   0.926 0.383
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --quiet peft==0.21.2 transformers==5.19.0 torch==2.13.0 numpy==2.4.6
cd "$work"
"$work/env/bin/python" - <<'PYTHON'
import warnings

import peft
import torch

seen = {}
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for name, options in {
        "plain": {}, "rslora": {"use_rslora": True}, "dora": {"use_dora": True},
        "bias": {"lora_bias": True},
    }.items():
        torch.manual_seed(0)
        base = torch.nn.Sequential(torch.nn.Linear(32, 32, bias=True))
        rows = torch.randn(8, 32)
        before = base(rows).detach()
        config = peft.LoraConfig(r=16, lora_alpha=16, target_modules=["0"], **options)
        model = peft.get_peft_model(base, config, adapter_name="source").eval()
        for key, value in model.named_parameters():
            if "lora_" in key:
                torch.nn.init.normal_(value, mean="magnitude" in key, std=0.1)
        model.add_weighted_adapter(["source"], [1.0], "sum", combination_type="cat")
        change = {}
        for adapter in ("source", "sum"):
            model.set_adapter(adapter)
            change[adapter] = model(rows).detach() - before
        size = change["source"].norm()
        seen[name] = (
            (change["sum"].norm() / size).item(),
            ((change["sum"] - change["source"]).norm() / size).item(),
        )
        print(f"{name:6} {seen[name][0]:.3f} {seen[name][1]:.3f}")
assert not caught, [str(warning.message) for warning in caught]
assert seen["plain"][1] < 1e-5
assert abs(seen["rslora"][0] - 4) < 1e-3, "changed"
assert seen["dora"][1] > 0.1 and seen["bias"][1] > 0.1, "changed"
PYTHON

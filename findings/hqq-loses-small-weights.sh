#!/usr/bin/env bash
# hqq 0.2.8.post1: a group of small weights becomes one number, so a layer in another unit is noise.
#
# HQQ quantizes each group of weights with a scale of its own, so the relative error should not depend on
# the size of the weights. It limits the scale to 20,000, and takes the scale 1 for a group that is not
# wider than 0.0001. Four bits of such a group hold one value. The solver that follows moves the zero
# point and not the scale. A model whose two layers are divided and multiplied by 2,000 computes the same
# before quantization, and something else after it. Nothing warns. NF4 of bitsandbytes keeps its error.
#
# Seen for weights with the standard deviation 0.02, in groups of 64, and for the same weights divided
# (divisor: relative error of HQQ with 4 bits, of NF4):
#   1     0.09 0.09
#   200   0.14 0.09
#   2000  0.99 0.09
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --quiet torch==2.13.0 numpy==2.4.6 termcolor==3.3.0 bitsandbytes==0.50.2
DISABLE_CUDA=1 "$work/env/bin/pip" install --quiet --quiet --no-deps hqq==0.2.8.post1
cd "$work"
"$work/env/bin/python" - 2> log <<'PYTHON' || { cat log; exit 1; }
import warnings

import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from hqq.core.quantize import Quantizer

torch.manual_seed(0)
WEIGHTS = torch.randn(64, 256) * 0.02


def hqq(weights):
    codes, meta = Quantizer.quantize(
        weights, nbits=4, group_size=64, axis=1, device="cpu", compute_dtype=torch.float32
    )
    return Quantizer.dequantize(codes, meta | {"compute_dtype": torch.float32})


def nf4(weights):
    return dequantize_4bit(*quantize_4bit(weights, blocksize=64, quant_type="nf4"))


warnings.simplefilter("error", UserWarning)
seen = {}
for divisor in (1, 200, 2000):
    weights = WEIGHTS / divisor
    errors = [float((method(weights) - weights).norm() / weights.norm()) for method in (hqq, nf4)]
    print(f"{divisor:4}  {errors[0]:.2f} {errors[1]:.2f}")
    seen[divisor] = errors
assert all(error < 0.12 for _, error in seen.values()) and seen[1][0] < 0.12
assert seen[200][0] > 0.12 and seen[2000][0] > 0.9, "changed"
PYTHON

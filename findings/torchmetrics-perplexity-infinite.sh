#!/usr/bin/env bash
# torchmetrics 1.9.0: one unlikely token makes the perplexity of float16 logits infinite.
#
# Perplexity accepts logits of half precision and says that it normalizes them itself. It applies
# softmax and then the logarithm, both in the type of the logits. A probability below 3e-8 is 0 in
# float16, its logarithm is infinite, and so is the perplexity of the whole corpus. A name or a typing
# error in a text can be that unlikely. PyTorch's cross_entropy of the same float16 logits is right. A
# gate that compares perplexities sees a broken model.
#
# Seen for 1000 tokens, 999 of them almost certain and one 24 nats away (perplexity by torchmetrics, by
# cross_entropy of the same type):
#   float32 1.031 1.031
#   float16 inf 1.030
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --quiet torchmetrics==1.9.0 torch==2.13.0 numpy==2.4.6
cd "$work"
"$work/env/bin/python" - <<'PYTHON'
import math

import torch
from torchmetrics.text import Perplexity

logits = torch.zeros(1, 1000, 1000)
logits[0, :, 0] = 12
logits[0, 0, 0] = 24
target = torch.zeros(1, 1000, dtype=torch.long)
target[0, 0] = 1
seen = {}
for dtype in (torch.float32, torch.float16):
    typed = logits.to(dtype)
    metric = Perplexity()
    metric.update(typed, target)
    loss = torch.nn.functional.cross_entropy(typed[0], target[0])
    seen[dtype] = (metric.compute().item(), math.exp(loss.item()))
    print(dtype, *(f"{value:.3f}" for value in seen[dtype]))
assert all(abs(right - 1.031) < 2e-3 for _, right in seen.values())
assert abs(seen[torch.float32][0] - 1.031) < 1e-3
assert math.isinf(seen[torch.float16][0]), "changed"
PYTHON

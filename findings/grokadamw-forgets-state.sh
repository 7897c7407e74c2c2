#!/usr/bin/env bash
# grokadamw 0.1.2: training that resumes from a checkpoint starts with an empty optimizer.
#
# transformers offers the optimizer as optim="grokadamw". It keeps its moments and step counts under the
# parameter objects, in an entry of its own. state_dict saves that entry with copies of the parameters as
# keys. load_state_dict accepts it; the loaded keys belong to other objects, so the next step finds none of
# the moments and begins at step 1 with zeros. A run that was interrupted takes other steps than one that
# was not. Nothing warns. torch's AdamW continues exactly.
#
# Seen for the first step after 20 steps (size of the step of a run that goes on, of a resumed run, of a
# run with a new optimizer):
#   AdamW      0.0418 0.0418 0.1131
#   GrokAdamW  0.0556 0.1131 0.1131
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --quiet grokadamw==0.1.2 torch==2.13.0 numpy==2.4.6
cd "$work"
"$work/env/bin/python" - 2> log <<'PYTHON' || { cat log; exit 1; }
import io
import warnings

import torch
from grokadamw import GrokAdamW

torch.manual_seed(0)
inputs, targets = torch.randn(64, 16), torch.randn(64, 8)
start = torch.nn.Linear(16, 8).state_dict()


def model_and_optimizer(kind, weights):
    model = torch.nn.Linear(16, 8)
    model.load_state_dict(weights)
    return model, kind(model.parameters(), lr=0.01)


def step(model, optimizer, number):
    """Train on the rows of this step, and return the change of the weights."""
    before = model.weight.detach().clone()
    rows = slice(number % 4 * 16, number % 4 * 16 + 16)
    optimizer.zero_grad()
    torch.nn.functional.mse_loss(model(inputs[rows]), targets[rows]).backward()
    optimizer.step()
    return model.weight.detach() - before


def resume(kind, checkpoint, with_optimizer):
    checkpoint.seek(0)
    weights, state = torch.load(checkpoint, weights_only=True)
    model, optimizer = model_and_optimizer(kind, weights)
    if with_optimizer:
        optimizer.load_state_dict(state)
    return step(model, optimizer, 20)


seen = {}
with warnings.catch_warnings():
    warnings.simplefilter("error", UserWarning)
    warnings.filterwarnings("ignore", message="CUDA is not available")
    for kind in (torch.optim.AdamW, GrokAdamW):
        model, optimizer = model_and_optimizer(kind, start)
        for number in range(20):
            step(model, optimizer, number)
        checkpoint = io.BytesIO()
        torch.save((model.state_dict(), optimizer.state_dict()), checkpoint)
        steps = (step(model, optimizer, 20), resume(kind, checkpoint, True), resume(kind, checkpoint, False))
        print(f"{kind.__name__:9}", *(f"{change.norm():.4f}" for change in steps))
        seen[kind.__name__] = steps
going_on, resumed, _ = seen["AdamW"]
assert torch.equal(going_on, resumed)
going_on, resumed, fresh = seen["GrokAdamW"]
assert torch.equal(resumed, fresh) and not torch.allclose(resumed, going_on, atol=1e-3), "changed"
PYTHON

#!/usr/bin/env bash
# bitsandbytes 0.50.2: momentum of RMSprop and amsgrad of Adam and AdamW have no effect.
#
# The optimizers take the arguments of torch.optim, and their documentation explains each. RMSprop hands
# momentum to a kernel that has none. Adam, AdamW and LAMB do not hand amsgrad on; their forms with 8 bits
# refuse it, and RMSprop refuses `centered`. A run with optim="rmsprop_bnb" and momentum in optim_args
# trains without it. Nothing warns. SGD drops nesterov and dampening (pull request 2085 is open).
#
# Seen for 50 steps with equal gradients (setting: largest change of a weight by it in torch, in
# bitsandbytes, and largest difference of the two libraries without it):
#   RMSprop momentum=0.9  4.72324  0.00000  0.00000
#   Adam amsgrad=True     0.00038  0.00000  0.00000
#   AdamW amsgrad=True    0.00038  0.00000  0.00000
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --quiet bitsandbytes==0.50.2 torch==2.13.0 numpy==2.4.6
cd "$work"
"$work/env/bin/python" - 2> log <<'PYTHON' || { cat log; exit 1; }
import warnings

import bitsandbytes
import torch

SETTINGS = {
    "RMSprop": {"momentum": 0.9},
    "Adam": {"amsgrad": True},
    "AdamW": {"amsgrad": True},
}


def trained(optimizer, **settings):
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(64, 128))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stepper = optimizer([weight], lr=0.01, **settings)
    for step in range(50):
        weight.grad = torch.randn(weight.shape) * (10 if step == 0 else 0.1)
        stepper.step()
    return weight.detach()


def distance(first, second):
    return (first - second).abs().max().item()


for name, setting in SETTINGS.items():
    without, with_it = (
        [trained(getattr(library.optim, name), **chosen) for library in (torch, bitsandbytes)]
        for chosen in ({}, setting)
    )
    torch_effect, effect = (distance(*pair) for pair in zip(without, with_it))
    apart = distance(*without)
    (key, value), = setting.items()
    print(f"{name} {key}={value}".ljust(20), f"{torch_effect:.5f}  {effect:.5f}  {apart:.5f}")
    assert apart < 1e-5 and torch_effect > 1e-4
    assert effect == 0, "changed"
PYTHON

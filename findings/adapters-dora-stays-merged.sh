#!/usr/bin/env bash
# adapters 1.3.0: reset_adapter() leaves a DoRA adapter in the weights of the base model.
#
# merge_adapter writes an adapter into the weights, for an evaluation or an export, and reset_adapter takes it
# out again. For DoRA the library computes the weights before the merge, keeps them in a local variable,
# and marks the layer as not merged. The adapter then acts twice while it is active. Without an adapter,
# or with the next one, the base model answers like the merged one. Nothing warns. LoRA and (IA)3 come out
# rightly. Loading the model anew restores it.
#
# Seen after 20 steps of training (method: distance of the logits after merge and reset, over the size of the
# adapter's change: merged to active before, active after reset to before, switched off to the base model):
#   LoRA   0.00 0.00 0.00
#   IA3    0.00 0.00 0.00
#   DoRA   0.00 0.07 1.00
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --quiet adapters==1.3.0 transformers==4.57.6 torch==2.13.0 numpy==2.4.6
cd "$work"
"$work/env/bin/python" - 2> log <<'PYTHON' || { cat log; exit 1; }
import adapters
import torch
from transformers import LlamaConfig, LlamaForCausalLM

config = LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                     num_attention_heads=4, num_key_value_heads=4)
METHODS = {
    "LoRA": adapters.LoRAConfig(r=8, alpha=16),
    "IA3": adapters.IA3Config(),
    "DoRA": adapters.DoRAConfig(),
}
tokens = torch.randint(0, 64, (4, 12), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def logits(model):
    model.eval()
    return model(tokens).logits


seen = {}
for name, method in METHODS.items():
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    adapters.init(model)
    base = logits(model)
    model.add_adapter("task", config=method)
    model.train_adapter("task")
    optimizer = torch.optim.Adam((p for p in model.parameters() if p.requires_grad), lr=0.01)
    model.train()
    for _ in range(20):
        optimizer.zero_grad()
        model(tokens, labels=tokens).loss.backward()
        optimizer.step()
    active = logits(model)
    size = (active - base).norm()
    assert size > 0.1
    model.merge_adapter("task")
    merged = (logits(model) - active).norm() / size
    model.reset_adapter()
    again = (logits(model) - active).norm() / size
    model.set_active_adapters(None)
    off = (logits(model) - base).norm() / size
    seen[name] = merged, again, off
    print(f"{name:5}", *(f"{distance:.2f}" for distance in seen[name]))
    assert merged < 1e-3
    if name != "DoRA":
        assert again < 1e-3 and off < 1e-3
assert seen["DoRA"][1] > 0.01 and abs(seen["DoRA"][2] - 1) < 1e-3, "changed"
PYTHON

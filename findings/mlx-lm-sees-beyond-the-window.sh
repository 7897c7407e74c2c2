#!/usr/bin/env bash
# mlx-lm 0.32.2: models with a sliding window see the whole text.
#
# Mistral 7B v0.1, Phi-3 mini, StarCoder2 and others let a token see the last few thousand tokens only. They
# were trained so, and transformers and vLLM run them so. mlx-lm reads Mistral as a Llama, with full
# attention in each layer, and has no window in its code of the other families. Short prompts give the right
# answer. Behind the window, 2,047 tokens for Phi-3 mini, log-probabilities are those of another model.
# Nothing warns.
#
# Seen for random models with a window of 4 and 24 tokens (family: largest difference of mlx-lm's logits to
# transformers 5.19.0, and to the same weights there with a window of 1000; the largest logit):
#   Mistral     7.24  0.00  5.18
#   Mixtral     7.28  0.00  5.62
#   Phi3        7.66  0.00  5.70
#   Starcoder2  7.05  0.00  5.60
#   Qwen2       6.96  0.00  5.57
#   Qwen3       7.13  0.00  5.36
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --quiet mlx-lm==0.32.2 mlx==0.32.4 mlx-cpu==0.32.4 transformers==5.19.0 \
  torch==2.13.0 numpy==2.4.6
cd "$work"
cat >window.py <<'PYTHON'
import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import torch
import transformers
from mlx_lm.utils import load_model

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
mx.set_default_device(mx.cpu)
SIZES = dict(
    vocab_size=96, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, initializer_range=0.2, pad_token_id=0,
)
LAYERS = {"use_sliding_window": True, "max_window_layers": 0}
FAMILIES = {
    "Mistral": {}, "Mixtral": {"num_local_experts": 2}, "Phi3": {}, "Starcoder2": {}, "Qwen2": LAYERS,
    "Qwen3": {"head_dim": 16, **LAYERS},
}
TOKENS = torch.randint(3, 96, (1, 24), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def logits(folder):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.eval()(TOKENS).logits[0].numpy()


def mlx_logits(folder):
    model, _ = load_model(folder)
    return np.array(model(mx.array(TOKENS.tolist()))[0].astype(mx.float32))


for family, more in FAMILIES.items():
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(
        **SIZES, **more, sliding_window=4, rope_parameters={"rope_type": "default", "rope_theta": 10000.0}
    )
    folder = Path(family)
    getattr(transformers, f"{family}ForCausalLM")(config).save_pretrained(folder)
    written = json.loads((folder / "config.json").read_text())
    assert written["sliding_window"] == 4
    (folder / "config.json").write_text(json.dumps({**written, "rope_theta": 10000.0}))
    right, seen = logits(folder), mlx_logits(folder)
    (folder / "config.json").write_text(json.dumps({**written, "sliding_window": 1000}))
    without = logits(folder)
    row = [abs(a - b).max() for a, b in ((seen, right), (seen, without))]
    print(f"seen {family:10}  " + "  ".join(f"{value:.2f}" for value in (*row, abs(right).max())))
    assert row[0] > 0.5 and row[1] < 0.01, "changed"
PYTHON
"$work/env/bin/python" window.py >out 2>log || { cat out log; exit 1; }
sed -n 's/^seen //p' out
! grep -i window log

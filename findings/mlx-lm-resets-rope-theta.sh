#!/usr/bin/env bash
# mlx-lm 0.32.2: a Llama that transformers 5 saved is read with another base of its rotary positions.
#
# Transformers 5 writes the base, rope_theta, and the scaling of long contexts into rope_parameters of
# config.json. mlx-lm requires transformers 5.7 or newer and reads the old keys of most model types:
# rope_theta at the top level, which is not there, so it takes its default of 10000. Llama 3 has 500000.
# A fine-tuned model whose folder is converted or served gives other answers than in training. Nothing
# warns. A copy of rope_theta at the top level of config.json mends it.
#
# Seen for three model types with the base 500000 (largest difference of the logits to transformers as
# saved, and with rope_theta at the top level too; the logits are below 5):
#   llama    5.33  0.00
#   mistral  5.33  0.00
#   olmo2    2.88  0.00
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --quiet mlx-lm==0.32.2 "mlx[cpu]==0.32.4" transformers==5.19.0 \
  torch==2.13.0 numpy==2.4.6
cd "$work"
"$work/env/bin/python" - 2> log <<'PYTHON' || { cat log; exit 1; }
import json
import warnings
from pathlib import Path

import mlx.core as mx
import numpy as np
import torch
from mlx_lm.utils import load_model
from transformers import AutoConfig, AutoModelForCausalLM

SIZES = {
    "vocab_size": 64, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
}
ids = torch.arange(40)[None]
seen = {}
for kind in ("llama", "mistral", "olmo2"):
    torch.manual_seed(0)
    rope = {"rope_type": "default", "rope_theta": 500000.0}
    config = AutoConfig.for_model(kind, **SIZES, rope_parameters=rope, dtype="float32")
    model = AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.15)
    folder = Path(kind)
    model.save_pretrained(folder)
    with torch.no_grad():
        right = AutoModelForCausalLM.from_pretrained(folder)(ids).logits[0].numpy()

    def difference():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            found = load_model(folder)[0](mx.array(ids.numpy())).astype(mx.float32)
        assert not caught, caught
        return float(np.abs(np.array(found)[0] - right).max())

    written = json.loads((folder / "config.json").read_text())
    assert "rope_theta" not in written and written["rope_parameters"]["rope_theta"] == 500000
    as_saved = difference()
    (folder / "config.json").write_text(json.dumps(written | {"rope_theta": 500000.0}))
    seen[kind] = (as_saved, difference())
    print(f"{kind:7}  {seen[kind][0]:.2f}  {seen[kind][1]:.2f}  (largest logit {np.abs(right).max():.2f})")
assert all(mended < 1e-4 for _, mended in seen.values())
assert all(as_saved > 1 for as_saved, _ in seen.values()), "changed"
PYTHON

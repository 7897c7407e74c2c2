#!/usr/bin/env bash
# mlx-lm 0.32.2: a GLM-4 or GLM-Edge model gets rotary positions on its whole heads.
#
# The models of type "glm" turn one half of each attention head by the position and leave the other as it
# is (partial_rotary_factor 0.5, which the configuration has by default). mlx-lm does not read the factor
# for this type and turns the whole head, at other frequencies. It loads the model without a word, and the
# answers are those of a broken one, also to prompts of a few tokens. The type "glm4", of GLM-4-0414,
# is read rightly.
#
# Seen for random models (type: largest difference of mlx-lm's logits to transformers 5.19.0, and to the same
# weights there with the factor 1; the largest logit):
#   glm   6.05  0.00  6.17
#   glm4  0.00  6.33  5.89
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --quiet mlx-lm==0.32.2 mlx==0.32.4 mlx-cpu==0.32.4 transformers==5.19.0 \
  torch==2.13.0 numpy==2.4.6
cd "$work"
cat >glm.py <<'PYTHON'
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
TOKENS = torch.randint(3, 96, (1, 24), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def logits(folder, factor):
    config = transformers.AutoConfig.from_pretrained(folder)
    config.rope_parameters["partial_rotary_factor"] = factor
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, config=config, dtype=torch.float32)
    return model.eval()(TOKENS).logits[0].numpy()


def mlx_logits(folder):
    written = json.loads((folder / "config.json").read_text())
    older_keys = {"rope_theta": 10000.0, "partial_rotary_factor": 0.5}
    (folder / "config.json").write_text(json.dumps({**written, **older_keys}))
    model, _ = load_model(folder)
    return np.array(model(mx.array(TOKENS.tolist()))[0].astype(mx.float32))


for family in ("Glm", "Glm4"):
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(
        vocab_size=96, hidden_size=64, intermediate_size=80, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, initializer_range=0.2, pad_token_id=0, eos_token_id=2,
    )
    assert config.rope_parameters["partial_rotary_factor"] == 0.5
    assert config.rope_parameters["rope_theta"] == 10000.0
    folder = Path(config.model_type)
    getattr(transformers, f"{family}ForCausalLM")(config).save_pretrained(folder)
    right, whole = logits(folder, 0.5), logits(folder, 1.0)
    seen = mlx_logits(folder)
    row = [float(abs(seen - other).max()) for other in (right, whole)]
    print(f"seen {config.model_type:4}  " + "  ".join(f"{value:.2f}" for value in (*row, abs(right).max())))
    assert (row[0] > 0.5 and row[1] < 0.01) if family == "Glm" else row[0] < 0.01, "changed"
PYTHON
"$work/env/bin/python" glm.py >out 2>log || { cat out log; exit 1; }
sed -n 's/^seen //p' out
! grep -i rotary log

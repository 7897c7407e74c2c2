#!/usr/bin/env bash
# transformers 5.19.0: a Gemma 2 that is loaded as it comes does not limit its attention scores.
#
# Gemma 2 limits attention scores by a tanh, attn_logit_softcapping. Only the eager form of its attention
# does so. from_pretrained picks SDPA, which takes the setting as an argument and drops it. Earlier
# versions picked the eager form for this family. Reference outputs, training and evaluation have other
# log-probabilities than a server that applies the cap, such as vLLM. Nothing warns.
# attn_implementation="eager" gives the model its cap.
#
# Seen for a random model (cap: largest difference of the logits to the eager form, by default and with
# "sdpa"; of the default to the same weights without a cap; the largest logit):
#   None  0.00  0.00  0.00  30.90
#   50.0  0.21  0.21  0.00  30.91
#   2.0   4.83  4.83  0.00  29.87
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --quiet transformers==5.19.0 torch==2.13.0 numpy==2.4.6
cd "$work"
cat >cap.py <<'PYTHON'
import torch
import transformers
from transformers import AutoModelForCausalLM, Gemma2Config, Gemma2ForCausalLM

transformers.logging.set_verbosity_warning()
transformers.logging.disable_progress_bar()
TOKENS = torch.randint(3, 96, (1, 24), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def logits(folder, **changes):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **changes)
    return model.eval()(TOKENS).logits


for cap in (None, 50.0, 2.0):
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=96, hidden_size=64, intermediate_size=80, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, query_pre_attn_scalar=16, initializer_range=0.4,
        attn_logit_softcapping=cap, final_logit_softcapping=None,
    )
    folder = f"cap-{cap}"
    Gemma2ForCausalLM(config).save_pretrained(folder)
    right = logits(folder, attn_implementation="eager")
    default = logits(folder)
    row = [
        float((one - other).abs().max())
        for one, other in (
            (default, right), (logits(folder, attn_implementation="sdpa"), right),
            (default, logits(folder, attn_logit_softcapping=None)),
        )
    ]
    print(f"seen {cap!s:4}  " + "  ".join(f"{value:.2f}" for value in (*row, float(right.abs().max()))))
    assert row[2] < 1e-3
    assert row[0] < 1e-3 if cap is None else row[0] > 0.1, "changed"
PYTHON
"$work/env/bin/python" cap.py >out 2>log || { cat out log; exit 1; }
sed -n 's/^seen //p' out
! grep -i -E "warn|soft.?cap" log

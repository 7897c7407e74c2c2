#!/usr/bin/env bash
# onnxruntime-genai 0.18.0: an OLMo is built with norms that do not subtract the mean.
#
# OLMo normalizes by LayerNorm without weights: it subtracts the mean and divides by the standard deviation.
# The model builder accepts the family and fills in weights of one and biases of zero. It leaves the
# setting for the norm at the one of Llama, so the graph has SimplifiedLayerNormalization, which only divides
# by the root of the mean square, and the biases are not used. clip_qkv, which the 7B model limits its
# queries, keys and values by, is not read either. The model is built, loads and generates other text. Nothing
# warns. OLMo 2 and 3 are refused.
#
# Seen for random OLMo models (clip_qkv: largest difference of the logits to those of transformers 5.19.0, and
# to the same weights with the other norm and without clip_qkv in transformers; the largest logit):
#   None  3.11  0.00  6.80
#   0.5   7.71  0.00  5.62
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --quiet onnxruntime-genai==0.18.0 onnxruntime==1.31.1 onnx==1.23.2 \
  onnx-ir==1.1.0 transformers==5.19.0 torch==2.13.0 numpy==2.4.6
cd "$work"
cat >build.py <<'PYTHON'
import subprocess
import sys
from unittest import mock

import numpy as np
import onnxruntime_genai as genai
import torch
import transformers
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, OlmoConfig, OlmoForCausalLM, PreTrainedTokenizerFast
from transformers.models.olmo.modeling_olmo import OlmoLayerNorm

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
TOKENS = list(range(3, 27))


def save(folder, clip):
    torch.manual_seed(0)
    config = OlmoConfig(
        vocab_size=100, hidden_size=128, intermediate_size=192, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, initializer_range=0.2, clip_qkv=clip,
        pad_token_id=1, eos_token_id=2,
    )
    OlmoForCausalLM(config).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({str(number): number for number in range(100)}, unk_token="0"))
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="2").save_pretrained(folder)


def divide_only(self, states):
    return states * torch.rsqrt(states.pow(2).mean(-1, keepdim=True) + 1e-6)


@torch.no_grad()
def expected(folder, **changes):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **changes).eval()
    return model(torch.tensor([TOKENS])).logits[0, -1].numpy()


def built(folder):
    generator = genai.Generator(model := genai.Model(folder), genai.GeneratorParams(model))
    generator.append_tokens(np.array(TOKENS, dtype=np.int32))
    return np.array(generator.get_logits()).reshape(-1)[-100:]


for clip in (None, 0.5):
    source, target = f"hf-{clip}", f"built-{clip}"
    save(source, clip)
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", source, "-o", target]
    done = subprocess.run(
        [*command, "-p", "fp32", "-e", "cpu", "-c", "cache"], check=True, capture_output=True, text=True
    )
    assert "warn" not in done.stdout.lower()
    right, seen = expected(source), built(target)
    with mock.patch.object(OlmoLayerNorm, "forward", divide_only):
        other = expected(source, clip_qkv=None)
    wrong, same = (float(abs(seen - logits).max()) for logits in (right, other))
    print(f"seen {clip!s:4}  {wrong:.2f}  {same:.2f}  {abs(right).max():.2f}")
    assert wrong > 0.5 and same < 1e-3, "changed"
PYTHON
"$work/env/bin/python" build.py >out 2>log || { cat out log; exit 1; }
sed -n 's/^seen //p' out

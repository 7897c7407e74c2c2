#!/usr/bin/env bash
# ctranslate2 4.8.5: a converted Llama 3.1 or 3.2 has no scaling of its rotary positions.
#
# Llama 3.1 and later stretch the slow rotary frequencies by a factor of 8 or 32 (rope_type "llama3").
# TransformersConverter reads the type and the limits of the frequencies. It writes the factor into the
# model only for linear scaling, and the engine takes 1 instead. The model answers as if it had no
# scaling, also to short prompts. A type that the converter does not know is refused; here nothing warns.
#
# Seen for a random model with the scaling of Llama 3.2, largest logit 6.5 (difference of ctranslate2's
# logits to transformers 5.19.0, and to the same weights without scaling in transformers):
#   llama3  1.94  0.00
#   linear  0.00  8.94
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --quiet ctranslate2==4.8.5 transformers==5.19.0 tokenizers==0.23.3 \
  torch==2.13.0 numpy==2.4.6
cd "$work"
HF_HUB_OFFLINE=1 "$work/env/bin/python" - 2> log <<'PYTHON' || { cat log; exit 1; }
import warnings

import ctranslate2
import numpy as np
import torch
from ctranslate2.converters import TransformersConverter
from tokenizers import Tokenizer, models
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

SIZES = {
    "vocab_size": 64, "hidden_size": 128, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 2, "max_position_embeddings": 131072, "dtype": "float32",
}
LLAMA_3_2 = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
}
LINEAR = {"rope_type": "linear", "rope_theta": 500000.0, "factor": 32.0}
NONE = {"rope_type": "default", "rope_theta": 500000.0}

words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(64)}, unk_token="w0"))
tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=words, unk_token="w0", bos_token="w1", eos_token="w2"
)
ids = torch.arange(240)[None] % 61 + 3


def model_with(rope):
    torch.manual_seed(0)
    config = AutoConfig.for_model("llama", **SIZES, rope_parameters=rope)
    model = AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.15)
    return model


def logits(model):
    with torch.no_grad():
        return model(ids).logits[0].numpy()


def differences(name, rope):
    model = model_with(rope)
    model.save_pretrained(name)
    tokenizer.save_pretrained(name)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        TransformersConverter(name).convert(f"{name}-converted")
    generator = ctranslate2.Generator(f"{name}-converted", compute_type="float32")
    found = np.array(generator.forward_batch(ids.tolist()))[0]
    right = logits(model)
    seen = [float(np.abs(found - logits(other)).max()) for other in (model, model_with(NONE))]
    print(f"{name}  {seen[0]:.2f}  {seen[1]:.2f}  (largest logit {np.abs(right).max():.1f})")
    return seen


linear = differences("linear", LINEAR)
llama3 = differences("llama3", LLAMA_3_2)
assert linear[0] < 1e-3 and linear[1] > 1
assert llama3[0] > 1 and llama3[1] < 1e-3, "changed"
PYTHON

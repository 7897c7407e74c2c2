#!/usr/bin/env bash
# ctranslate2 4.8.5: a converted Gemma 2 has no soft caps, no sliding window and another scale of attention.
#
# Gemma 2 limits its attention scores and its logits by a tanh, lets every second layer see a window only,
# and divides the scores by the root of query_pre_attn_scalar. The 27B model has 144 there, and heads of 128.
# TransformersConverter copies none of these settings, and the engine divides by the root of the head's
# width. Log-probabilities differ for every model, greedy answers for large scores, the 27B model or a long
# prompt. Nothing warns. It copies the last soft cap of Gemma 4 and the window of Mistral.
#
# Seen for a random model (setting: largest difference of ctranslate2's logits to transformers 5.19.0, and
# to the same weights in transformers without the setting; the largest logit is 7.2):
#   none                       0.00  0.00
#   final_logit_softcapping    4.21  0.00
#   attn_logit_softcapping     2.74  0.00
#   query_pre_attn_scalar      2.12  0.00
#   sliding_window             3.59  0.00
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
    "vocab_size": 64, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32, "max_position_embeddings": 512,
    "dtype": "float32", "attn_implementation": "eager",
}
WITHOUT = {
    "final_logit_softcapping": None, "attn_logit_softcapping": None, "query_pre_attn_scalar": 32,
    "sliding_window": 4096,
}
SETTINGS = {
    "none": {}, "final_logit_softcapping": {"final_logit_softcapping": 3.0},
    "attn_logit_softcapping": {"attn_logit_softcapping": 1.0},
    "query_pre_attn_scalar": {"query_pre_attn_scalar": 128}, "sliding_window": {"sliding_window": 8},
}

words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(64)}, unk_token="w0"))
tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=words, unk_token="w0", bos_token="w1", eos_token="w2", pad_token="w0"
)
ids = torch.arange(60)[None] % 61 + 3


def model_with(settings):
    torch.manual_seed(0)
    config = AutoConfig.for_model("gemma2", **SIZES, **(WITHOUT | settings))
    model = AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.15)
    return model


def logits(model):
    with torch.no_grad():
        return model(ids).logits[0].numpy()


seen = {}
without = logits(model_with({}))
for name, settings in SETTINGS.items():
    model = model_with(settings)
    model.save_pretrained(name)
    tokenizer.save_pretrained(name)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        TransformersConverter(name).convert(f"{name}-converted")
    generator = ctranslate2.Generator(f"{name}-converted", compute_type="float32")
    found = np.array(generator.forward_batch(ids.tolist()))[0]
    seen[name] = [float(np.abs(found - other).max()) for other in (logits(model), without)]
    print(f"{name:25}  {seen[name][0]:.2f}  {seen[name][1]:.2f}  (largest {np.abs(found).max():.1f})")
assert seen.pop("none")[0] < 1e-3
assert all(to_model > 1 and to_other < 1e-3 for to_model, to_other in seen.values()), "changed"
PYTHON

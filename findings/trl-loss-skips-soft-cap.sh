#!/usr/bin/env bash
# trl 1.16.0: SFTTrainer trains RecurrentGemma on logits that its model never gives.
#
# The default loss, "nll", does not call the whole model: it multiplies the last hidden states with the matrix
# of the output layer and repeats what a model does to its logits. It knows the soft cap by the name that
# Gemma 2 gives it, final_logit_softcapping. RecurrentGemma's is logits_soft_cap, and is left out. The loss, the
# perplexity and the gradients are those of another model; transformers, and a server, apply the cap. Nothing
# warns. The loss that the model returns when it gets labels is right.
#
# Seen (model: loss of the model itself, eval_loss of SFTTrainer, loss without the cap):
#   gemma2           4.573 4.573 4.704
#   recurrent_gemma  4.738 5.219 5.219
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --quiet trl==1.16.0 transformers==5.19.0 datasets==5.2.0 accelerate==1.15.0 \
  tokenizers==0.23.3 torch==2.13.0 numpy==2.4.6
cd "$work"
HF_HUB_OFFLINE=1 "$work/env/bin/python" - 2> log <<'PYTHON' || { cat log; exit 1; }
import warnings

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

CAP = 2.0
SIZES = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "pad_token_id": 0,
}
OPTIONS = {
    "gemma2": {"final_logit_softcapping": CAP},
    "recurrent_gemma": {"logits_soft_cap": CAP, "lru_width": 32, "attention_window_size": 64},
}
words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(64)}, unk_token="w0"))
tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=words, unk_token="w0", bos_token="w1", eos_token="w2", pad_token="w0"
)
ids = torch.arange(3, 40)
rows = Dataset.from_dict({"input_ids": [ids.tolist()]})


def loss(logits):
    return float(torch.nn.functional.cross_entropy(logits[:-1], ids[1:]))


seen = {}
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always", UserWarning)
    for kind, options in OPTIONS.items():
        torch.manual_seed(0)
        config = AutoConfig.for_model(kind, **SIZES, **options)
        model = AutoModelForCausalLM.from_config(config).eval()
        for parameter in model.parameters():
            if parameter.dim() == 2:
                torch.nn.init.normal_(parameter, std=0.15)
        with torch.no_grad():
            output = model(ids[None], labels=ids[None])
        logits = output.logits[0].float()
        assert logits.abs().max() < CAP and abs(float(output.loss) - loss(logits)) < 1e-3
        settings = SFTConfig(output_dir="run", report_to=[], bf16=False, use_cpu=True, max_length=None)
        trainer = SFTTrainer(
            model=model, args=settings, train_dataset=rows, eval_dataset=rows, processing_class=tokenizer
        )
        without_cap = CAP * torch.atanh(logits.double() / CAP).float()
        seen[kind] = (loss(logits), trainer.evaluate()["eval_loss"], loss(without_cap))
        print(f"{kind:15}", *(f"{value:.3f}" for value in seen[kind]))
assert not [w for w in caught if "cap" in str(w.message).lower()]
model_loss, trainer_loss, without_cap = seen["gemma2"]
assert abs(trainer_loss - model_loss) < 1e-3 < abs(without_cap - model_loss)
model_loss, trainer_loss, without_cap = seen["recurrent_gemma"]
assert abs(trainer_loss - without_cap) < 1e-2 < abs(trainer_loss - model_loss), "changed"
PYTHON

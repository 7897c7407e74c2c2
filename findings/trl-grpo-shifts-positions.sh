#!/usr/bin/env bash
# trl 1.16.0: GRPO trains a model with learned positions on other probabilities than those of its answers.
#
# GRPOTrainer pads prompts on the left. generate() gives each token its position without the padding. The
# forward pass that computes the probabilities of the answers gives no positions, and GPT-2 then counts
# the padding too. Loss, gradient and the logged entropy of every answer to a prompt that is shorter than
# the longest one of its batch are those of a text at other positions, which nobody sampled. Llama's
# rotation sees distances only, and is right. Nothing warns. DistillationTrainer has the same pass;
# huggingface/trl #6800 (open) says it of Online DPO, XPO and Nash-MD.
#
# Seen (two prompts of 2 and 30 words, learning rate 0: the entropy that the trainer logs, and the mean
# entropy of the same model at the tokens of the same answers, each row by itself, in nats):
#   GPT2LMHeadModel   logged 2.23, own 2.36; with prompts of 30 words only, 2.38 and 2.38
#   LlamaForCausalLM  logged 2.34, own 2.34; with prompts of 30 words only, 2.37 and 2.37
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --quiet trl==1.16.0 transformers==5.19.0 torch==2.13.0 numpy==2.4.6
cd "$work"
"$work/env/bin/python" - 2> log <<'PYTHON' || { cat log; exit 1; }
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast,
    PrinterCallback,
)
from trl import GRPOConfig, GRPOTrainer

words = ["<pad>", "<end>", *(f"w{number}" for number in range(30))]
inner = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="<pad>"))
inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<end>")
ends = {"bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0, "vocab_size": len(words)}
NETWORKS = [
    (GPT2LMHeadModel, GPT2Config(
        n_embd=32, n_layer=2, n_head=2, n_positions=64, initializer_range=0.3,
        resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, **ends)),
    (LlamaForCausalLM, LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        initializer_range=0.3, **ends)),
]
LONG = [" ".join(words[2:]), " ".join(words[:1:-1])]
CASES = {"2 and 30 words": ["w3 w4", LONG[0]], "30 words": LONG}


def entropies(network, config, prompts):
    """Return the entropy that the trainer logs, and the model's own."""
    torch.manual_seed(0)
    model, answers = network(config), []

    def reward(prompts, completion_ids, **columns):
        answers.extend(zip(prompts, completion_ids))
        return [float(len(ids)) for ids in completion_ids]

    args = GRPOConfig(
        output_dir="out", learning_rate=0.0, max_steps=1, per_device_train_batch_size=8,
        num_generations=4, max_completion_length=12, logging_steps=1, report_to=[], bf16=False,
        use_cpu=True, gradient_checkpointing=False, seed=0, disable_tqdm=True,
    )
    trainer = GRPOTrainer(
        model=model, reward_funcs=reward, args=args, processing_class=tokenizer,
        train_dataset=Dataset.from_dict({"prompt": prompts}),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    model.eval()
    own = []
    for prompt, ids in answers:
        asked = tokenizer(prompt)["input_ids"]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([asked + list(ids)])).logits[0]
        logps = logits[len(asked) - 1 : -1].log_softmax(-1)
        own += (-(logps.exp() * logps).sum(-1)).tolist()
    assert len(answers) == 8
    logged = next(entry["entropy"] for entry in trainer.state.log_history if "entropy" in entry)
    return logged, sum(own) / len(own)


seen = {}
for network, config in NETWORKS:
    for case, prompts in CASES.items():
        seen[network, case] = logged, own = entropies(network, config, prompts)
        print(f"{network.__name__:17} {case:14} logged {logged:.2f}, own {own:.2f}")
for (network, case), (logged, own) in seen.items():
    if network is GPT2LMHeadModel and case != "30 words":
        assert abs(logged - own) > 0.05, "changed"
    else:
        assert abs(logged - own) < 0.01, "changed"
PYTHON

#!/usr/bin/env bash
# sentence-transformers 6.2.0: a CrossEncoder renders its pairs with the chat template that lies in the folder.
#
# A reranker that is made of a chat model, with LlamaForSequenceClassification, is often saved with the
# tokenizer of its base, chat template included. It was trained on tokenizer(query, passage), and transformers
# and vLLM's /score and /rerank read the pair so. CrossEncoder turns the pair into two messages with the roles
# `query` and `document` instead, and renders them with the template of the chat model, which writes the roles
# as if they were speakers. The scores are other ones, and nothing warns. Without the template's file, they are
# those of transformers. Remove the template from the folder of a reranker that was not trained with it.
#
# Seen (tokens of the pair, and the score before the sigmoid):
#   transformers                     6  -1.0108
#   CrossEncoder with template      12  -1.9753
#   CrossEncoder without             6  -1.0108
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --quiet sentence-transformers==6.2.0 transformers==5.19.0 torch==2.13.0 numpy==2.4.6
cd "$work"
"$work/env/bin/python" - 2> log <<'PYTHON' || { cat log; exit 1; }
from pathlib import Path

import torch
from sentence_transformers import CrossEncoder
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForSequenceClassification, PreTrainedTokenizerFast

WORDS = "<pad> <unk> <|im_start|> <|im_end|> who wrote it anna did query document user".split()
TEMPLATE = (
    "{% for m in messages %}<|im_start|> {{ m['role'] }} {{ m['content'] }} <|im_end|> {% endfor %}"
)
words = Tokenizer(models.WordLevel({word: at for at, word in enumerate(WORDS)}, unk_token="<unk>"))
words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=words, pad_token="<pad>", unk_token="<unk>", chat_template=TEMPLATE,
    model_input_names=["input_ids", "attention_mask"],
)
torch.manual_seed(0)
model = LlamaForSequenceClassification(
    LlamaConfig(vocab_size=len(WORDS), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                num_attention_heads=2, num_labels=1, pad_token_id=0, initializer_range=0.3)
).eval()
model.save_pretrained("folder")
tokenizer.save_pretrained("folder")

PAIR = ("who wrote it", "anna did it")
seen = {}


def show(name, ids, score):
    seen[name] = ids, score
    print(f"{name:30} {len(ids):3} {score:8.4f}")


def of_sentence_transformers(name):
    encoder = CrossEncoder("folder", device="cpu", local_files_only=True)
    ids = encoder[0].preprocess([PAIR])["input_ids"][0].tolist()
    show(name, ids, float(encoder.predict(PAIR, activation_fn=torch.nn.Identity())))


inputs = tokenizer(*PAIR, return_tensors="pt")
with torch.no_grad():
    show("transformers", inputs["input_ids"][0].tolist(), float(model(**inputs).logits))
of_sentence_transformers("CrossEncoder with template")
Path("folder/chat_template.jinja").unlink()
of_sentence_transformers("CrossEncoder without")

own, with_template, without = seen.values()
assert own[0] == without[0] and abs(own[1] - without[1]) < 1e-5
assert with_template[0] != own[0] and abs(with_template[1] - own[1]) > 0.01, "changed"
PYTHON

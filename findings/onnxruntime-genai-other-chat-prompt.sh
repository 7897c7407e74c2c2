#!/usr/bin/env bash
# onnxruntime-genai 0.18.0: a chat template gives another prompt than in training.
#
# apply_chat_template renders the model's Jinja template by an engine of its own. It does not find one
# text in another, so the line of Qwen3's template that takes the reasoning out of earlier answers leaves
# it in. It drops no line break after a block and no indentation before one, as transformers does. The last
# character of a text is empty, / divides whole numbers without a fraction, and `and` and `or` give True
# instead of a value. Filters and methods that the engine does not know are errors; here nothing warns.
#
# Seen (template: text by Jinja with transformers' settings, text by onnxruntime-genai):
#   in      'answer'    '<think>hm</think>answer'
#   blocks  'A\nB\n'    'A\n\n  \nB\n  \n'
#   last    '!'         ''
#   divide  '3.5'       '3'
#   and     'be brief'  'True'
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --quiet onnxruntime-genai==0.18.0 onnxruntime==1.31.1 tokenizers==0.23.3 \
  transformers==5.19.0 jinja2==3.1.6 numpy==2.4.6
cd "$work"
HF_HUB_OFFLINE=1 "$work/env/bin/python" - 2> log <<'PYTHON' || { cat log; exit 1; }
import json
from pathlib import Path

import onnxruntime_genai
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.decoders import ByteLevel
from transformers import AutoTokenizer

MESSAGES = [
    {"role": "system", "content": "be brief"},
    {"role": "assistant", "content": "<think>hm</think>answer"},
    {"role": "user", "content": "Hi!"},
]
TEMPLATES = {
    "plain": "{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %}",
    "in": "{% set text = messages[1].content %}{% if '</think>' in text %}"
    "{% set text = text.split('</think>')[-1] %}{% endif %}{{ text }}",
    "blocks": "A\n{% if messages %}\n  {% if true %}\nB\n  {% endif %}\n{% endif %}\n",
    "last": "{{ messages[2].content[-1] }}",
    "divide": "{{ 7 / 2 }}",
    "and": "{{ messages[0].role == 'system' and messages[0].content }}",
}
END = "<|end|>"
vocabulary = {c: number for number, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
tokenizer = Tokenizer(models.BPE(vocabulary, []))
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.decoder = ByteLevel()
tokenizer.add_special_tokens([END])
tokenizer.save("tokenizer.json")
settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END}
Path("tokenizer_config.json").write_text(json.dumps(settings))
decoder = {"filename": "model.onnx", "head_size": 1, "hidden_size": 1, "num_attention_heads": 1}
model = {"type": "llama", "vocab_size": 257, "context_length": 8, "eos_token_id": 256}
model |= {"bos_token_id": 256, "pad_token_id": 256, "decoder": decoder}
Path("genai_config.json").write_text(json.dumps({"model": model, "search": {}}))

genai = onnxruntime_genai.Tokenizer(".")
transformers = AutoTokenizer.from_pretrained(".")
seen = {}
for name, template in TEMPLATES.items():
    seen[name] = (
        transformers.apply_chat_template(MESSAGES, chat_template=template, tokenize=False),
        genai.apply_chat_template(json.dumps(MESSAGES), template_str=template, add_generation_prompt=False),
    )
    print(f"{name:6}", *map(repr, seen[name]), sep="  ")
plain, others = seen.pop("plain"), seen
assert plain[0] == plain[1] == "[system] be brief[assistant] <think>hm</think>answer[user] Hi!"
assert others == {
    "in": ("answer", "<think>hm</think>answer"),
    "blocks": ("A\nB\n", "A\n\n  \nB\n  \n"),
    "last": ("!", ""),
    "divide": ("3.5", "3"),
    "and": ("be brief", "True"),
}, "changed"
PYTHON

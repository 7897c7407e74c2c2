#!/usr/bin/env bash
# transformers 5.19.0 with mistral-common 1.13.1: the chat template of a folder is not used.
#
# Mistral publishes its models with the tokenizer in two formats, tokenizer.json and tekken.json.
# Where mistral-common is installed, AutoTokenizer reads the second one, also next to the first, and
# renders conversations by its own rules: a chat template in the folder, the user's own or that of a
# fine-tuned model, changes nothing, and no warning names it. vLLM, which needs mistral-common, asks for
# tokenizer.json in the same environment, so that training and serving render differently.
#
# Seen: AutoTokenizer gives MistralCommonBackend, whose text lacks the template's words, and with
# mistral_format=False the template's own text.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --quiet \
  transformers==5.19.0 mistral-common==1.13.1 tokenizers==0.23.3 jinja2==3.1.6
cd "$work"
HF_HUB_OFFLINE=1 "$work/env/bin/python" - <<'PYTHON'
import json
import shutil
import warnings
from pathlib import Path

import mistral_common
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

folder = Path("model")
words = ["<s>", "</s>", "<unk>", "rule", ":", "hello"]
tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, "<unk>"))
tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
fast = transformers.PreTrainedTokenizerFast(
    tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
)
fast.chat_template = "rule:{% for message in messages %} {{ message['content'] }}{% endfor %}"
fast.save_pretrained(folder)
(folder / "config.json").write_text(json.dumps({"model_type": "mistral"}))
messages = [{"role": "user", "content": "hello"}]


def rendered(**options: object) -> tuple[str, str]:
    found = transformers.AutoTokenizer.from_pretrained(folder, **options)
    return type(found).__name__, found.apply_chat_template(messages, tokenize=False)


before = rendered()
shutil.copy(Path(mistral_common.__file__).parent / "data/tekken_240911.json", folder / "tekken.json")
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    name, text = rendered()
print(before, (name, text), rendered(mistral_format=False)[1], [str(w.message) for w in caught])
assert before[1] == "rule: hello", "changed"
assert name == "MistralCommonBackend" and "rule:" not in text, "changed"
assert rendered(mistral_format=False)[1] == "rule: hello", "changed"
PYTHON

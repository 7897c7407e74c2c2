#!/usr/bin/env bash
# onnxruntime-genai 0.18.0: a special token decodes to U+FFFD if it comes without text.
#
# decode leaves special tokens out of a text: the ids of "A" and the end token give "A". The end
# token on its own is not the empty text but the replacement character. A model that answers with
# its end token at once thus seems to have answered with a damaged character.
#
# Seen: decode(["A", end]) is 'A', decode([end]) is '\\ufffd'; tokenizers 0.23.3 gives ''.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --quiet onnxruntime-genai==0.18.0 onnxruntime==1.31.1 tokenizers==0.23.3 numpy==2.4.6
cd "$work"
"$work/env/bin/python" - <<'PYTHON'
import json
from pathlib import Path

import onnxruntime_genai
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from tokenizers.decoders import ByteLevel

ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
END = "<|end|>"


def folder(name, *, normalizer=None, prefix_space=False):
    """A byte-level tokenizer without merges, in the files that ONNX Runtime GenAI reads."""
    vocabulary = {character: number for number, character in enumerate(ALPHABET)}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    tokenizer.decoder = ByteLevel()
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.add_special_tokens([END])
    path = Path(name)
    path.mkdir()
    tokenizer.save(str(path / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END}
    (path / "tokenizer_config.json").write_text(json.dumps(settings))
    decoder = {"filename": "model.onnx", "head_size": 1, "hidden_size": 1, "num_attention_heads": 1}
    model = {"type": "llama", "vocab_size": 257, "context_length": 8, "eos_token_id": 256}
    model |= {"bos_token_id": 256, "pad_token_id": 256, "decoder": decoder}
    (path / "genai_config.json").write_text(json.dumps({"model": model, "search": {}}))
    return tokenizer, onnxruntime_genai.Tokenizer(str(path))



tokenizer, genai = folder("plain")
letter, end = tokenizer.encode("A").ids[0], tokenizer.token_to_id(END)
seen = [genai.decode([letter, end]), genai.decode([end]), tokenizer.decode([end])]
print(*map(ascii, seen))
assert seen == ["A", "\ufffd", ""], "the behaviour has changed"
PYTHON

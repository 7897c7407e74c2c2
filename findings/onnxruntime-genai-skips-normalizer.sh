#!/usr/bin/env bash
# onnxruntime-genai 0.18.0: the tokenizer skips the normalizer of tokenizer.json.
#
# A tokenizer.json names its steps: a normalizer, a pre-tokenizer, a model. ONNX Runtime GenAI reads
# the file, loads without a word, and gives the ids of the text as it was typed. Qwen's tokenizers
# have an NFC normalizer: Korean that arrives decomposed (a macOS file name, for example) then has
# other ids than in training, and three times as many. ByteLevel's add_prefix_space is skipped too.
#
# Seen (step, number of ids by tokenizers 0.23.3, number of ids by onnxruntime-genai 0.18.0):
#   NFC, decomposed Hangul syllable   3 9
#   Lowercase, "AB"                   equal numbers, other ids
#   add_prefix_space, "AB"            3 2
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



nfc, nfc_genai = folder("nfc", normalizer=normalizers.NFC())
lower, lower_genai = folder("lowercase", normalizer=normalizers.Lowercase())
prefix, prefix_genai = folder("prefix", prefix_space=True)
plain, plain_genai = folder("plain")
decomposed = "\u1112\u1161\u11ab"  # the three letters of one Hangul syllable, U+D55C


def both(tokenizer, genai, text):
    return tokenizer.encode(text).ids, [int(number) for number in genai.encode(text)]


pairs = {
    "NFC": both(nfc, nfc_genai, decomposed),
    "Lowercase": both(lower, lower_genai, "AB"),
    "add_prefix_space": both(prefix, prefix_genai, "AB"),
}
for step, (expected, found) in pairs.items():
    print(f"{step:18}", expected, found)
ids, found = both(plain, plain_genai, "AB")
assert ids == found, "without these steps the ids are equal"
assert [len(ids) for ids in pairs["NFC"]] == [3, 9], "the behaviour has changed"
assert pairs["Lowercase"][0] == plain.encode("ab").ids, "the behaviour has changed"
assert pairs["Lowercase"][1] == plain.encode("AB").ids, "the behaviour has changed"
assert [len(ids) for ids in pairs["add_prefix_space"]] == [3, 2], "the behaviour has changed"
PYTHON

#!/usr/bin/env bash
# kitoken 0.11.1: three settings of a tokenizer.json give other tokens.
#
# Kitoken.from_tokenizers reads the tokenizer.json of a model, to count or send the same tokens. The
# pre-tokenizer WhitespaceSplit drops white space; here each space becomes an unknown token. Metaspace
# puts ▁ before each part of a text; here it comes before a token such as <tool> at the start, and not
# before the text behind it. Two unknown words that fuse_unk keeps apart become one token. Settings that
# it cannot read (Strip, for example) are refused; of these three it says nothing.
#
# Seen (setting, text: tokens by tokenizers 0.23.3, tokens by kitoken):
#   WhitespaceSplit  'hello world'    hello world         hello <unk> world
#   Metaspace        '<tool>'         <tool>              ▁ <tool>
#   Metaspace        'hello<tool>do'  ▁hello <tool> ▁do   ▁hello <tool> do
#   fuse_unk         'zz do qq yy'    <unk> do <unk> <unk>  <unk> do <unk>
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --quiet kitoken==0.11.1 tokenizers==0.23.3
cd "$work"
"$work/env/bin/python" - <<'PYTHON'
import warnings

from kitoken import Kitoken
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, trainers


def trained(pre_tokenizer, **options):
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", **options))
    tokenizer.pre_tokenizer = pre_tokenizer
    trainer = trainers.BpeTrainer(special_tokens=["<unk>"], show_progress=False)
    tokenizer.train_from_iterator(["hello world do it"] * 9, trainer)
    tokenizer.add_tokens([AddedToken("<tool>")])
    return tokenizer


def pair(name, tokenizer, text):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        other = Kitoken.from_tokenizers(tokenizer.to_str().encode())
    found = tuple(
        " ".join(map(tokenizer.id_to_token, ids))
        for ids in (tokenizer.encode(text).ids, other.encode(text, True))
    )
    print(f"{name:16} {text!r:17}", *(f"{tokens:21}" for tokens in found))
    return found


split = trained(pre_tokenizers.WhitespaceSplit())
meta = trained(pre_tokenizers.Metaspace())
plain = trained(pre_tokenizers.Whitespace())
fused = trained(pre_tokenizers.Whitespace(), fuse_unk=True)
same = pair("Whitespace", plain, "hello world")
assert same[0] == same[1]
seen = [
    pair("WhitespaceSplit", split, "hello world"),
    pair("Metaspace", meta, "<tool>"),
    pair("Metaspace", meta, "hello<tool>do"),
    pair("fuse_unk", fused, "zz do qq yy"),
]
assert seen == [
    ("hello world", "hello <unk> world"),
    ("<tool>", "▁ <tool>"),
    ("▁hello <tool> ▁do", "▁hello <tool> do"),
    ("<unk> do <unk> <unk>", "<unk> do <unk>"),
], "changed"
PYTHON

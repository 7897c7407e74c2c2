#!/usr/bin/env bash
# tokenizers 0.23.3: a converted SentencePiece model has other ids, because its settings are not read.
#
# SentencePieceUnigramTokenizer.from_spm reads a .model file. The file says whether a space is put
# before the text, whether spaces at its end are dropped, and that unknown characters are written as
# bytes. The converter takes the vocabulary and the normalization table and fixes the rest. A text that
# ends in a space has another last token even in a model with default settings, a model without the
# first space gets one, and a model with bytes decodes to "<0x7A>". A model that was trained with one of
# the two tokenizers sees other ids with the other. Nothing warns.
#
# Seen (setting of the model, text: pieces by sentencepiece 0.2.3, pieces by tokenizers 0.23.3):
#   defaults                "the cat "  ▁ t h e ▁cat   ▁ t h e ▁cat ▁
#   add_dummy_prefix=false  "the cat"   t h e ▁cat     ▁ t h e ▁cat
#   byte_fallback=true      "z" is decoded as "z", and as "<0x7A>"
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --quiet tokenizers==0.23.3 sentencepiece==0.2.3 protobuf==7.36.2
cd "$work"
# The converter imports sentencepiece_model_pb2, which lies inside the package sentencepiece.
PYTHONPATH=$(echo "$work"/env/lib/python3*/site-packages/sentencepiece) "$work/env/bin/python" - <<'PYTHON'
import sentencepiece
from tokenizers import SentencePieceUnigramTokenizer

SENTENCES = ["the cat sat on the mat", "a cat and the hat", "the mat is on the cat"] * 20


def pair(name, **settings):
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES), model_prefix=name, vocab_size=300, minloglevel=2,
        hard_vocab_limit=False, **settings,
    )
    return (
        sentencepiece.SentencePieceProcessor(model_file=f"{name}.model"),
        SentencePieceUnigramTokenizer.from_spm(f"{name}.model"),
    )


def pieces(models, text):
    theirs, converted = models
    encoded = converted.encode(text)
    found = theirs.encode(text, out_type=str), encoded.tokens
    assert (theirs.encode(text) == encoded.ids) == (found[0] == found[1])
    print(repr(text), *found)
    return found


default = pair("default")
equal = pieces(default, "the cat")
trailing = pieces(default, "the cat ")
bare = pieces(pair("bare", add_dummy_prefix=False), "the cat")
theirs, converted = pair("bytes", byte_fallback=True)
decoded = theirs.decode(theirs.encode("z")), converted.decode(converted.encode("z").ids)
print("decoded", *decoded)
assert equal[0] == equal[1]
assert trailing[1] == [*trailing[0], "▁"], "changed"
assert bare[1] == ["▁", *bare[0]], "changed"
assert decoded == ("z", "<0x7A>"), "changed"
PYTHON

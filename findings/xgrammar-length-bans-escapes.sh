#!/usr/bin/env bash
# xgrammar 0.2.8: a JSON string with minLength or maxLength can hold no escape.
#
# A grammar for {"type": "string"} accepts "\n", "a\"b" and "é" as an escape. With "maxLength": 5,
# which each of these strings keeps, the grammar refuses all of them; "minLength": 1 does the same.
# Nothing warns. A server that constrains answers by such a schema can then never write a line
# break or a quotation mark inside the field. llguidance 1.7.6 accepts "\n" and "a\"b" under the
# same schema.
#
# Seen (escape, plain schema, maxLength 5, minLength 1, llguidance with maxLength 5):
#   "\n"    True False False True
#   "a\"b"  True False False True
#   "ab"    True True True True
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --quiet xgrammar==0.2.8 llguidance==1.7.6 torch==2.13.0 numpy==2.4.6
cd "$work"
"$work/env/bin/python" - <<'PYTHON'
import json

import llguidance
import xgrammar

BYTES = [bytes([value]) for value in range(256)]
VOCABULARY = xgrammar.TokenizerInfo([*BYTES, b""], stop_token_ids=[256])
COMPILER = xgrammar.GrammarCompiler(VOCABULARY)


class ByteTokens:
    eos_token_id, bos_token_id, special_token_ids = 256, None, [256]
    tokens = [*BYTES, b"<end>"]

    def __call__(self, text):
        return list(text if isinstance(text, bytes) else text.encode())


TOKENIZER = llguidance.LLTokenizer(llguidance.TokenizerWrapper(ByteTokens()))


def by_xgrammar(schema, text):
    grammar = COMPILER.compile_json_schema(json.dumps(schema))
    matcher = xgrammar.GrammarMatcher(grammar, terminate_without_stop_token=True)
    return matcher.accept_string(text) and matcher.is_terminated()


def by_llguidance(schema, text):
    grammar = llguidance.LLMatcher.grammar_from_json_schema(schema)
    matcher = llguidance.LLMatcher(TOKENIZER, grammar)
    return all(matcher.consume_token(byte) for byte in text.encode()) and matcher.is_accepting()


plain = {"type": "string"}
at_most = {"type": "string", "maxLength": 5}
at_least = {"type": "string", "minLength": 1}
seen = {}
for text in ('"\\n"', '"a\\"b"', '"ab"'):
    seen[text] = [
        by_xgrammar(plain, text), by_xgrammar(at_most, text), by_xgrammar(at_least, text),
        by_llguidance(at_most, text),
    ]
    print(f"{text:8}", *seen[text])
assert seen == {
    '"\\n"': [True, False, False, True],
    '"a\\"b"': [True, False, False, True],
    '"ab"': [True, True, True, True],
}, "the behaviour has changed"
PYTHON

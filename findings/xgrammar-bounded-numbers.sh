#!/usr/bin/env bash
# xgrammar 0.2.8: a bound on a number forbids exponents and the seventh decimal.
#
# {"type": "number"} accepts 0.1234567 and 1e5. With "minimum": 0, which both keep, the grammar
# refuses both. A model that is asked for a probability or a learning rate can then write no value
# below 0.000001 but 0. Nothing warns.
#
# Seen (number, without bound, with "minimum": 0):
#   0.123456   True True
#   0.1234567  True False
#   1e5        True False
#   1e-07      True False
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --quiet xgrammar==0.2.8 jsonschema==4.26.0 torch==2.13.0 numpy==2.4.6
cd "$work"
"$work/env/bin/python" - <<'PYTHON'
import json

import jsonschema
import xgrammar

VOCABULARY = xgrammar.TokenizerInfo(
    [*(bytes([value]) for value in range(256)), b""], stop_token_ids=[256]
)
COMPILER = xgrammar.GrammarCompiler(VOCABULARY)


def accepts(schema, text):
    grammar = COMPILER.compile_json_schema(json.dumps(schema))
    matcher = xgrammar.GrammarMatcher(grammar, terminate_without_stop_token=True)
    return matcher.accept_string(text) and matcher.is_terminated()


def is_valid(schema, text):
    return jsonschema.Draft202012Validator(schema).is_valid(json.loads(text))



free, bounded = {"type": "number"}, {"type": "number", "minimum": 0}
seen = {}
for text in ("0.123456", "0.1234567", "1e5", "1e-07"):
    assert is_valid(bounded, text)
    seen[text] = (accepts(free, text), accepts(bounded, text))
    print(f"{text:10}", *seen[text])
assert seen == {
    "0.123456": (True, True),
    "0.1234567": (True, False),
    "1e5": (True, False),
    "1e-07": (True, False),
}, "the behaviour has changed"
PYTHON

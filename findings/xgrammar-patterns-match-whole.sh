#!/usr/bin/env bash
# xgrammar 0.2.8 reads a pattern of a JSON schema as a match of the whole string.
#
# JSON Schema searches: "pattern": "b" holds for "abc", and the key pattern "^x" for the key "xa".
# xgrammar accepts only "b" and only the key "x": with "patternProperties" and no further
# properties, an object can hold no key but the pattern's own text. Nothing warns.
#
# Seen (document, jsonschema, xgrammar):
#   "abc" under "pattern": "b"                True False
#   "b" under "pattern": "b"                  True True
#   {"xa": 1} under "patternProperties" "^x"  True False
#   {"x": 1} under "patternProperties" "^x"   True True
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



pattern = {"type": "string", "pattern": "b"}
keys = {
    "type": "object",
    "patternProperties": {"^x": {"type": "integer"}},
    "additionalProperties": False,
}
seen = []
for schema, text in ((pattern, '"abc"'), (pattern, '"b"'), (keys, '{"xa": 1}'), (keys, '{"x": 1}')):
    seen.append((is_valid(schema, text), accepts(schema, text)))
    print(f"{text:10}", *seen[-1])
assert seen == [(True, False), (True, True), (True, False), (True, True)], "the behaviour has changed"
PYTHON

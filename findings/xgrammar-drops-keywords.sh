#!/usr/bin/env bash
# xgrammar 0.2.8 drops keywords of a JSON schema without an error or a warning.
#
# The grammar that it compiles accepts documents that the schema refuses, so an answer that was
# constrained by the schema can still break it. The keywords below are dropped; "required" counts
# only names that "properties" lists too. jsonschema 4.26.0 refuses every document.
#
# Seen: each document accepted by xgrammar (True), refused by jsonschema (False).
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



CASES = {
    "uniqueItems": (
        {"type": "array", "items": {"type": "integer"}, "uniqueItems": True}, "[1, 1]"
    ),
    "not": ({"not": {"type": "string"}}, '"a"'),
    "dependentRequired": (
        {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
            "dependentRequired": {"a": ["b"]},
        },
        '{"a": 1}',
    ),
    "required without properties": (
        {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a", "b"]},
        '{"a": 1}',
    ),
    "maxLength next to $ref": (
        {"$ref": "#/$defs/name", "$defs": {"name": {"type": "string"}}, "maxLength": 1}, '"ab"'
    ),
    "type next to enum": ({"type": "integer", "enum": [1, "x"]}, '"x"'),
}
seen = {}
for name, (schema, text) in CASES.items():
    seen[name] = (accepts(schema, text), is_valid(schema, text))
    print(f"{name:28}", *seen[name])
assert set(seen.values()) == {(True, False)}, "the behaviour has changed"
PYTHON

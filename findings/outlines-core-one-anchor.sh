#!/usr/bin/env bash
# outlines_core 0.2.14: a pattern with an anchor at one end matches no string at all.
#
# "^ab$" becomes the expression of a quoted ab. "^ab" keeps its anchor inside the quotation marks,
# where it can never hold, so not even "ab" matches and a constrained answer stops after its
# quotation mark. "^a|b$" is put between quotation marks without a group: it matches the texts "a
# and b", which are not JSON, and no string. All three are valid patterns of JSON Schema.
#
# Seen (pattern, the expression that is built, whether the string matches, jsonschema's answer):
#   ^ab$   ("ab")   True True
#   ^ab    ("^ab")  False True
#   ab$    ("ab$")  False True
#   ^a|b$  ("a|b")  False True
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --quiet outlines_core==0.2.14 jsonschema==4.26.0
cd "$work"
"$work/env/bin/python" - <<'PYTHON'
import json
import re

import jsonschema
from outlines_core.json_schema import build_regex_from_schema


def accepts(schema, text):
    return re.fullmatch(build_regex_from_schema(json.dumps(schema)), text) is not None


def is_valid(schema, text):
    return jsonschema.Draft202012Validator(schema).is_valid(json.loads(text))



seen = {}
for pattern in ("^ab$", "^ab", "ab$"):
    schema = {"type": "string", "pattern": pattern}
    seen[pattern] = (accepts(schema, '"ab"'), is_valid(schema, '"ab"'))
    print(f"{pattern:6}", build_regex_from_schema(json.dumps(schema)), *seen[pattern])
alternation = {"type": "string", "pattern": "^a|b$"}
seen["^a|b$"] = (accepts(alternation, '"a"') or accepts(alternation, '"b"'), True)
assert re.fullmatch(build_regex_from_schema(json.dumps(alternation)), '"a')
print("^a|b$ ", build_regex_from_schema(json.dumps(alternation)), *seen["^a|b$"])
assert seen == {
    "^ab$": (True, True),
    "^ab": (False, True),
    "ab$": (False, True),
    "^a|b$": (False, True),
}, "the behaviour has changed"
PYTHON

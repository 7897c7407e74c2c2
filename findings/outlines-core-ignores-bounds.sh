#!/usr/bin/env bash
# outlines_core 0.2.14 ignores the bounds of numbers and the length of objects, without a word.
#
# The regular expression that it builds from a JSON schema is the one of a number without bounds.
# The same library raises an error for other keywords that it does not know ("Unsupported JSON
# Schema structure"), so a schema that builds looks as if it were kept.
#
# Seen: each document accepted by outlines_core (True), refused by jsonschema 4.26.0 (False).
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



CASES = [
    ({"type": "integer", "minimum": 0}, "-1"),
    ({"type": "number", "minimum": 0, "maximum": 1}, "2"),
    ({"type": "integer", "exclusiveMaximum": 3}, "3"),
    ({"type": "integer", "multipleOf": 5}, "7"),
    (
        {"type": "object", "additionalProperties": {"type": "integer"}, "maxProperties": 1},
        '{"b": 1, "c": 2}',
    ),
]
seen = []
for schema, text in CASES:
    seen.append((accepts(schema, text), is_valid(schema, text)))
    print(f"{text:18}", *seen[-1], json.dumps(schema))
assert len(seen) == 5 and set(seen) == {(True, False)}, "the behaviour has changed"
PYTHON

#!/usr/bin/env bash
# lm-format-enforcer 0.11.3: enum values with a quotation mark or a line break cannot be answered rightly.
#
# In JSON the value 3.5" disk is written "3.5\" disk". The parser compares the characters of the answer
# with the value itself. It allows no backslash before the mark, only the mark, and takes it for the end:
# the one answer for this value is "3.5", which the schema refuses. At a line break it allows only a bare
# line break, which JSON refuses. "const" does the same, and nothing warns. A backslash is right.
#
# Seen (value: the text that a model can write for it, and whether json.loads gives the value):
#   'tape': "tape" True
#   'C:\\data': "C:\\data" True
#   '3.5" disk': "3.5" False
#   'two\nlines': "two<line break>lines" False
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --quiet lm-format-enforcer==0.11.3
cd "$work"
"$work/env/bin/python" - <<'PYTHON'
import json

from lmformatenforcer import JsonSchemaParser


def accepts(schema, text):
    parser = JsonSchemaParser(schema)
    for character in text:
        if character not in parser.get_allowed_characters():
            return False
        parser = parser.add_character(character)
    return parser.can_end()


def only_text(schema):
    """Return the only text that the parser allows, without spaces around it."""
    parser, text = JsonSchemaParser(schema), ""
    while not parser.can_end():
        allowed = set(parser.get_allowed_characters())
        if not text:
            allowed &= {'"'}  # the parser allows white space before the value
        assert len(allowed) == 1, allowed
        text += allowed.pop()
        parser = parser.add_character(text[-1])
    assert not parser.get_allowed_characters().strip()
    return text


def reads(text):
    try:
        return json.loads(text)
    except ValueError:
        return None


seen = {}
for value in ("tape", "C:\\data", '3.5" disk', "two\nlines"):
    for schema in ({"enum": [value]}, {"const": value}):
        right = accepts(schema, json.dumps(value))
        text = json.dumps(value) if right else only_text(schema)
        assert seen.setdefault(value, (right, text)) == (right, text)
    print(f"{value!r}: {text.replace(chr(10), '<line break>')} {reads(text) == value}")
assert seen["tape"][0] and seen["C:\\data"][0]
assert seen['3.5" disk'] == (False, '"3.5"'), "changed"
assert seen["two\nlines"] == (False, '"two\nlines"') and reads('"two\nlines"') is None, "changed"
PYTHON

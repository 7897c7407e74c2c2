#!/usr/bin/env bash
# partial-json-parser 0.2.1.1.post7: a number after a blank loses as many digits as there are blanks.
#
# The parser reads answers that are still being streamed; vLLM and others depend on it. It strips the text to
# find where the value ends, and then cuts the text that was not stripped at that place. A model that
# begins its answer with a blank, as many do, says " 1250" and is read as 125. A text that is not
# finished loses its last letters, and a finished text, true, false and null raise an error of JSON. Objects
# and lists are read rightly, so a test with an object shows nothing. Nothing warns.
#
# Seen (text: partial-json-parser, json):
#   "1250"      1250             1250
#   " 1250"     125              1250
#   "\n\n1250"  12               1250
#   " 0.75"     0.7              0.75
#   " true"     JSONDecodeError  True
#   " [1250]"   [1250]           [1250]
#   " \"abc"    ab               not finished
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --quiet partial-json-parser==0.2.1.1.post7
cd "$work"
"$work/env/bin/python" - 2> log <<'PYTHON' || { cat log; exit 1; }
import json
import warnings

import partial_json_parser

warnings.simplefilter("error")
SEEN = {
    "1250": 1250,
    " 1250": 125,
    "\n\n1250": 12,
    " 0.75": 0.7,
    " true": "JSONDecodeError",
    " [1250]": [1250],
    ' "abc': "ab",
}


def value(parse, text, otherwise):
    try:
        return parse(text)
    except json.JSONDecodeError:
        return otherwise


for text, expected in SEEN.items():
    read = value(partial_json_parser.loads, text, "JSONDecodeError")
    right = value(json.loads, text, "not finished")
    print(f"{json.dumps(text):11} {read!s:16} {right}")
    assert read == expected, "changed"
assert partial_json_parser.loads('"abc') == "abc"
PYTHON
test ! -s log || { cat log; exit 1; }

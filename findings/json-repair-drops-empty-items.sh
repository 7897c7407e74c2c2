#!/usr/bin/env bash
# json-repair 0.64.6: the last item of a list is lost if it is empty and the list has lines of its own.
#
# The parser takes an empty text, list or object for the end of a list unless a comma or the bracket
# follows at once. In a list that is written with one item a line, a line break follows. A row of a
# table whose last cell is empty gets shorter, and the list of a tool's arguments loses its last entry.
# This hits all lists of a document that has one fault anywhere, here a comma at its end. Of a
# document without a fault json-repair keeps all items. Nothing warns. Open issue 164 reports a part.
#
# Seen (the text, with \n for a line break -> the value):
#   {"row": ["Kim", ""],}          -> {'row': ['Kim', '']}
#   {"row": [\n"Kim",\n""\n],}     -> {'row': ['Kim']}
#   {"row": [\n"Kim",\n""\n]}      -> {'row': ['Kim', '']}
#   {"calls": [\n[1],\n[]\n],}     -> {'calls': [[1]]}
#   {"calls": [\n{"a": 1},\n{}\n],} -> {'calls': [{'a': 1}]}
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --quiet json-repair==0.64.6
cd "$work"
"$work/env/bin/python" - <<'PYTHON'
import json
import warnings

import json_repair

# The text without its last comma is valid JSON. Its value is what the repair should give.
SEEN = {
    '{"row": ["Kim", ""],}': {"row": ["Kim", ""]},
    '{"row": [\n"Kim",\n""\n],}': {"row": ["Kim"]},
    '{"row": [\n"Kim",\n""\n]}': {"row": ["Kim", ""]},
    '{"calls": [\n[1],\n[]\n],}': {"calls": [[1]]},
    '{"calls": [\n{"a": 1},\n{}\n],}': {"calls": [{"a": 1}]},
}
warnings.simplefilter("error")
lost = 0
for text, seen in SEEN.items():
    value = json_repair.loads(text)
    right = json.loads(text.replace(",}", "}"))
    shown = text.replace("\n", "\\n")
    print(f"{shown:31} -> {value}")
    assert value == seen, "changed"
    lost += value != right
assert lost == 3, "changed"
PYTHON

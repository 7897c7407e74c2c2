#!/usr/bin/env bash
# mlcroissant 1.1.1: text in a CSV file is read as other text, and "false" as true.
#
# A Croissant file describes a data set and gives each field its type. The library lets pandas guess the
# types of a CSV file, and then converts the guess to the declared type. A text of digits has become a
# number: 007 is "7", and in a column with an empty cell "7.0". The texts NA and None, which can be labels
# or answers, are missing. A boolean that a transform cuts out of a text is converted by Python's bool,
# which is true for "false". The file validates without an error, and nothing warns of a value.
#
# Seen (text in the file, declared type of the field: value of the record):
#   007             Text                    '7'
#   007, after ""   Text                    '7.0'
#   NA              Text                    None
#   false|true      Boolean, separator "|"  [True, True]
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --quiet mlcroissant==1.1.1 pandas==3.1.1 numpy==2.4.6
cd "$work"
"$work/env/bin/python" - 2> log <<'PYTHON' || { cat log; exit 1; }
import hashlib
import json
from pathlib import Path

import mlcroissant

ROWS = "code,part,label,checks\n100,,yes,true|true\n007,007,NA,false|true\n"
Path("rows.csv").write_text(ROWS)
TYPES = {"code": "sc:Text", "part": "sc:Text", "label": "sc:Text", "checks": "sc:Boolean"}
fields = []
for name, data_type in TYPES.items():
    source = {"fileObject": {"@id": "rows.csv"}, "extract": {"column": name}}
    field = {"@type": "cr:Field", "@id": f"rows/{name}", "dataType": data_type, "source": source}
    if name == "checks":
        field["repeated"] = True
        source["transform"] = {"separator": "|"}
    fields.append(field)
context = mlcroissant.Metadata(name="rows", url="https://example.org/rows").to_json()["@context"]
document = {
    "@context": context,
    "@type": "sc:Dataset",
    "name": "rows",
    "description": "three texts and a list of booleans",
    "conformsTo": "http://mlcommons.org/croissant/1.0",
    "license": "https://creativecommons.org/publicdomain/zero/1.0/",
    "url": "https://example.org/rows",
    "version": "1.0.0",
    "datePublished": "2026-01-01",
    "citeAs": "none",
    "distribution": [{
        "@type": "cr:FileObject",
        "@id": "rows.csv",
        "contentUrl": "rows.csv",
        "encodingFormat": "text/csv",
        "sha256": hashlib.sha256(ROWS.encode()).hexdigest(),
    }],
    "recordSet": [{"@type": "cr:RecordSet", "@id": "rows", "field": fields}],
}
Path("croissant.json").write_text(json.dumps(document))
records = list(mlcroissant.Dataset("croissant.json").records("rows"))
assert len(records) == 2
record = {key.split("/")[1]: value for key, value in records[1].items()}
for name in ("code", "part"):
    record[name] = record[name].decode()
print("007            ", "Text                   ", repr(record["code"]))
print('007, after ""  ', "Text                   ", repr(record["part"]))
print("NA             ", "Text                   ", record["label"])
print("false|true     ", 'Boolean, separator "|" ', record["checks"])
assert record["code"] == "7" and record["part"] == "7.0", "changed"
assert record["label"] is None and record["checks"] == [True, True], "changed"
PYTHON

#!/usr/bin/env bash
# datasets 5.2.0: Dataset.to_json keeps ten decimals, so a small probability is 0 in the file.
#
# The method hands each batch to pandas, which rounds to ten places behind the point, and only numbers
# below 1e-15 to ten digits. Python's own JSON and to_parquet keep all digits. A column of
# log-probabilities or rewards that is written and read again has other numbers. A probability of 1e-11
# is exactly 0, although 2.5e-16 is not, and an infinite value is null. Nothing warns, and the
# documentation of to_json does not say it. double_precision=15, the most that can be asked for, loses
# digits too.
#
# Seen (value: from to_json, from to_json with double_precision=15, from to_parquet):
#   -1.2345678901234567: -1.2345678901, -1.234567890123457, -1.2345678901234567
#   1e-11: 0.0, 1e-11, 1e-11
#   2.5e-16: 2.5e-16, 2.5e-16, 2.5e-16
#   inf: None, None, inf
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --quiet datasets==5.2.0 pandas==3.1.1 pyarrow==26.0.1
cd "$work"
HF_HUB_OFFLINE=1 "$work/env/bin/python" - 2> log <<'PYTHON' || { cat log; exit 1; }
import json
import warnings
from pathlib import Path

import pyarrow.parquet
from datasets import Dataset

VALUES = [-1.2345678901234567, 1e-11, 2.5e-16, float("inf")]
dataset = Dataset.from_dict({"value": VALUES})
assert dataset["value"][:] == VALUES


def from_json(**options):
    dataset.to_json("file.jsonl", **options)
    return [json.loads(line)["value"] for line in Path("file.jsonl").read_text().splitlines()]


with warnings.catch_warnings():
    warnings.simplefilter("error", UserWarning)
    default, longest = from_json(), from_json(double_precision=15)
    dataset.to_parquet("file.parquet")
parquet = pyarrow.parquet.read_table("file.parquet")["value"].to_pylist()
for value, *found in zip(VALUES, default, longest, parquet):
    print(f"{value}:", *found)
assert parquet == VALUES
assert [json.loads(json.dumps(value)) for value in VALUES] == VALUES
assert default == [-1.2345678901, 0.0, 2.5e-16, None], "changed"
assert longest[0] != VALUES[0] and longest[1:] == [1e-11, 2.5e-16, None], "changed"
PYTHON

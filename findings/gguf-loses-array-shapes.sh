#!/usr/bin/env bash
# gguf 0.19.0: an empty array is not written, and a nested array is read back flat.
#
# GGUFWriter.add_array takes both without a word. The file has no key for the empty list, so a
# reader cannot tell an empty list (a tokenizer without merges, for example) from a missing one.
# GGUFReader's contents() of [[1, 2], [3]] is [1, 2, 3]: which number belongs to which list is lost.
#
# Seen:
#   x.numbers [1, 2] -> [1, 2]
#   x.nested [[1, 2], [3]] -> [1, 2, 3]
#   x.empty [] -> no such key
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --quiet gguf==0.19.0 numpy==2.4.6
cd "$work"
"$work/env/bin/python" - <<'PYTHON'
import gguf

arrays = {"x.numbers": [1, 2], "x.nested": [[1, 2], [3]], "x.empty": []}
writer = gguf.GGUFWriter("file.gguf", "llama")
for key, values in arrays.items():
    writer.add_array(key, values)
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
fields = gguf.GGUFReader("file.gguf").fields
seen = {key: fields[key].contents() if key in fields else "no such key" for key in arrays}
for key, values in arrays.items():
    print(key, values, "->", seen[key])
assert seen == {"x.numbers": [1, 2], "x.nested": [1, 2, 3], "x.empty": "no such key"}, (
    "the behaviour has changed"
)
PYTHON

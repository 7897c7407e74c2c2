#!/usr/bin/env bash
# safetensors 0.8.0: safetensors.numpy stores a transposed matrix with its numbers in another order.
#
# A converter between two layouts saves weight.T, which NumPy keeps as a view. Version 0.8.0 writes
# the memory of the view and the shape of the transposed matrix: the file has the right name, shape
# and type and the wrong weights, without an error or a warning. The documentation asks for contiguous
# tensors; a Fortran-ordered matrix is contiguous. safetensors.torch refuses such a tensor, and
# safetensors.numpy 0.7.0 stored it rightly. np.ascontiguousarray before the call avoids it. Issue 825
# is open.
#
# Seen: [[0, 1, 2], [3, 4, 5]] transposed is [[0, 3], [1, 4], [2, 5]]; the file gives
#   0.8.0: [[0, 1], [2, 3], [4, 5]]
#   0.7.0: [[0, 3], [1, 4], [2, 5]]
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --quiet safetensors==0.8.0 numpy==2.4.6
"$work/env/bin/pip" install --quiet --quiet --no-deps --target "$work/older" safetensors==0.7.0
cd "$work"
cat >round_trip.py <<'PYTHON'
import importlib.metadata
import json

import numpy as np
from safetensors.numpy import load_file, save_file

weight = np.arange(6, dtype=np.float32).reshape(2, 3)
turned = weight.T
assert turned.flags.f_contiguous
save_file({"weight": turned}, "model.safetensors")
found = load_file("model.safetensors")["weight"]
assert found.shape == turned.shape and found.dtype == turned.dtype
version = importlib.metadata.version("safetensors")
print(version, json.dumps(found.astype(int).tolist()))
expected = weight.reshape(3, 2) if version == "0.8.0" else turned
assert np.array_equal(found, expected), "changed"
PYTHON
"$work/env/bin/python" round_trip.py
PYTHONPATH="$work/older" "$work/env/bin/python" round_trip.py

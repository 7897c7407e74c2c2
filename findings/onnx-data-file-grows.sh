#!/usr/bin/env bash
# onnx 1.23.2: a model that is saved again to the same place appends its weights to the data file.
#
# save_model(..., save_as_external_data=True, location=NAME) writes weights next to the model. If the
# data file exists, the new weights go to its end and the old ones stay, without an error or a warning.
# A loop that exports, checks and exports again fills the disk, and a digest of the data file changes
# although the model does not. Removing the file first avoids both.
#
# Seen: the data file of one matrix of 1 MiB has 1, 2 and 3 MiB after three saves.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --quiet onnx==1.23.2 numpy==2.4.6
cd "$work"
mkdir out
"$work/env/bin/python" - <<'PYTHON'
import copy
import warnings
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

weight = numpy_helper.from_array(np.ones((512, 512), np.float32), "w")
graph = helper.make_graph(
    [helper.make_node("MatMul", ["x", "w"], ["y"])],
    "graph",
    [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 512])],
    [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 512])],
    [weight],
)
model = helper.make_model(graph)
sizes = []
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for _ in range(3):
        onnx.save_model(
            copy.deepcopy(model), "out/model.onnx", save_as_external_data=True,
            location="model.data",
        )
        sizes.append(Path("out/model.data").stat().st_size / 2**20)
print(sizes, [str(warning.message) for warning in caught])
assert sizes == [1.0, 2.0, 3.0] and not caught, "changed"
PYTHON

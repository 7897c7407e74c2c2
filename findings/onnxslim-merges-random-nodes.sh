#!/usr/bin/env bash
# onnxslim 0.1.98: two draws of random numbers become one, so two samples are equal.
#
# onnxslim keeps one of two nodes with equal type, attributes and inputs. Two RandomNormalLike or
# RandomUniformLike nodes of one tensor are such a pair, although each of them draws its own numbers:
# torch.randn_like(x) twice is exported so. The smaller model passes ONNX's checker, and nothing
# warns. The difference of two samples is 0 everywhere. skip_optimizations keeps both nodes.
#
# Seen for 1000 numbers (node: share that differs between the two draws before slimming, after it, and
# with skip_optimizations=["subexpression_elimination"]):
#   RandomNormalLike   1.00  0.00  1.00
#   RandomUniformLike  1.00  0.00  1.00
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --quiet onnxslim==0.1.98 onnx==1.23.2 onnxruntime==1.31.1 numpy==2.4.6
cd "$work"
"$work/env/bin/python" - 2> log <<'PYTHON' || { cat log; exit 1; }
import numpy as np
import onnx
import onnxruntime
import onnxslim
from onnx import TensorProto, helper

NUMBERS = np.full(1000, 0.5, np.float32)


def two_draws(kind):
    nodes = [
        helper.make_node(kind, ["x"], ["a"], name="a"),
        helper.make_node(kind, ["x"], ["b"], name="b"),
        helper.make_node("Sub", ["a", "b"], ["y"], name="y"),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1000]) for name in "xy")
    graph = helper.make_graph(nodes, "draws", [x], [y])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def share_that_differs(model):
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return float(np.mean(session.run(None, {"x": NUMBERS})[0] != 0))


for kind in ("RandomNormalLike", "RandomUniformLike"):
    before = share_that_differs(two_draws(kind))
    after = share_that_differs(onnxslim.slim(two_draws(kind)))
    kept = share_that_differs(
        onnxslim.slim(two_draws(kind), skip_optimizations=["subexpression_elimination"])
    )
    print(f"{kind:17}  {before:.2f}  {after:.2f}  {kept:.2f}")
    assert before > 0.9 and kept > 0.9
    assert after == 0, "changed"
PYTHON

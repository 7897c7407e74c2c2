#!/usr/bin/env bash
# openvino 2026.4.1: attributes of ONNX operators that it does not know are dropped, and the model runs.
#
# OpenVINO reads an ONNX model without a check of the attributes of its operators. A window of Attention,
# from operator set 25, the layout of recurrent layers, from 14, and Resize's antialias and
# keep_aspect_ratio_policy, from 18, are dropped. The model compiles and computes what the default
# says, or gives another shape. A language model with sliding windows sees the whole text. Nothing warns.
# The models are those of ONNX's own tests, which ONNX's reference computes as expected.
#
# Seen (test: largest difference to the expected output, or the expected and the computed shape):
#   attention_local_window                    0.16
#   attention_bidirectional_window            1.50
#   lstm_batchwise                            0.26
#   gru_batchwise                             0.26
#   resize_downsample_scales_linear_antialias 0.21
#   resize_upsample_sizes_nearest_not_larger  (1, 1, 7, 7) (1, 1, 7, 8)
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --quiet openvino==2026.4.1 onnx==1.23.2 numpy==2.4.6
cd "$work"
cat >attributes.py <<'PYTHON'
import numpy as np
import openvino
from onnx.backend.test.case.node import collect_testcases
from onnx.reference import ReferenceEvaluator

TESTS = {
    "test_attention_local_window": {"left_window_size"},
    "test_attention_bidirectional_window": {"left_window_size", "right_window_size"},
    "test_lstm_batchwise": {"layout"},
    "test_gru_batchwise": {"layout"},
    "test_resize_downsample_scales_linear_antialias": {"antialias"},
    "test_resize_upsample_sizes_nearest_not_larger": {"keep_aspect_ratio_policy"},
}
core = openvino.Core()
cases = {case.name: case for case in collect_testcases(None) if case.name in TESTS}
for name, attributes in TESTS.items():
    model = cases[name].model
    assert attributes <= {attribute.name for attribute in model.graph.node[0].attribute}
    inputs, outputs = cases[name].data_sets[0]
    named = {value.name: data for value, data in zip(model.graph.input, inputs, strict=True)}
    reference = ReferenceEvaluator(model).run(None, named)[0]
    assert np.allclose(reference, outputs[0], atol=1e-5)
    compiled = core.compile_model(
        core.read_model(model.SerializeToString()), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    seen = compiled(named)[0]
    if seen.shape == outputs[0].shape:
        difference = float(np.abs(seen - outputs[0]).max())
        assert difference > 0.05, "changed"
        print(f"{name[5:]:41} {difference:.2f}")
    else:
        print(f"{name[5:]:41} {outputs[0].shape} {seen.shape}")
PYTHON
"$work/env/bin/python" attributes.py 2>log || { cat log; exit 1; }
! grep -i -E "attribute|unsupported|openvino" log

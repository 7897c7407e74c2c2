#!/usr/bin/env bash
# ddsketch 3.0.1: a sketch that was sent has the sum 0, so the mean of a fleet is too small.
#
# Workers count latencies in a sketch each and send it in the package's protobuf form; the receiver
# merges them. The form holds the buckets only. from_proto gives back the count, and sets sum to 0
# instead of no value. avg, the sum over the count, is 0 for such a sketch. Merged into one that was
# not sent, it counts all requests and sums up a part of them. Quantiles are right, and nothing warns.
#
# Seen for two workers with 100 requests of 2 s each (count, avg, median):
#   before sending   100  2.00  2.0
#   after sending    100  0.00  2.0
#   merged           200  1.00  2.0
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --quiet ddsketch==3.0.1 protobuf==7.36.2
cd "$work"
"$work/env/bin/python" - <<'PYTHON'
import statistics
import warnings

from ddsketch import DDSketch
from ddsketch.pb.ddsketch_pb2 import DDSketch as Message
from ddsketch.pb.proto import DDSketchProto

warnings.simplefilter("error")
LATENCIES = [2.0] * 100


def worker():
    sketch = DDSketch(0.01)
    for latency in LATENCIES:
        sketch.add(latency)
    return sketch


sent = DDSketchProto.to_proto(worker()).SerializeToString()
received = DDSketchProto.from_proto(Message.FromString(sent))
merged = worker()
merged.merge(received)
seen = []
for name, sketch in (("before sending", worker()), ("after sending", received), ("merged", merged)):
    median = sketch.get_quantile_value(0.5)
    seen.append((sketch.count, round(sketch.avg, 9)))
    print(f"{name:15}  {sketch.count:.0f}  {sketch.avg:.2f}  {median:.1f}")
    assert abs(median - statistics.median(LATENCIES)) <= 0.01 * 2
assert seen[0] == (100, statistics.mean(LATENCIES))
assert seen[1:] == [(100, 0.0), (200, 1.0)], "changed"
PYTHON

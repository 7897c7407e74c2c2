#!/usr/bin/env bash
# tdigest 0.5.2.2: a percentile of a few values can lie far below the smallest of them.
#
# A digest keeps few values as they are, so percentiles of ten latencies should be nearly exact, and a
# percentile lies between the minimum and the maximum. The library draws a line through neighbouring
# values and follows it beyond the values themselves. One slow request among nine equal ones gives a
# negative tenth percentile, and a median that is three times what most requests took. An issue about
# negative percentiles (16) is closed as corrected. fastdigest 0.12.0 is right.
#
# Seen for nine requests of 5 ms and one of 100 ms (percentile: tdigest, fastdigest):
#   10: -61.5 5.0
#   50: 14.5 5.0
#   80: 71.5 5.0
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --quiet tdigest==0.5.2.2 fastdigest==0.12.0 numpy==2.4.6
cd "$work"
"$work/env/bin/python" - <<'PYTHON'
import fastdigest
import numpy as np
import tdigest

latencies = [5.0] * 9 + [100.0]
digest = tdigest.TDigest()
digest.batch_update(latencies)
peer = fastdigest.TDigest.from_values(latencies)
seen = {}
for percentile in (10, 50, 80):
    seen[percentile] = (round(float(digest.percentile(percentile)), 3), peer.percentile(percentile))
    print(percentile, *seen[percentile])
    assert seen[percentile][1] == np.percentile(latencies, percentile)
assert seen[10][0] < min(latencies) and seen[50][0] > 2 * np.median(latencies), "changed"
PYTHON

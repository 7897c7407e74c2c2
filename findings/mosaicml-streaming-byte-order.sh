#!/usr/bin/env bash
# mosaicml-streaming 0.13.0: an array of big-endian numbers is read back with other numbers.
#
# Columns of the encoding "ndarray" keep arrays of any type, such as token ids, in the shards of a data set.
# The encoder writes the name of the type, which has no byte order in NumPy, and the bytes as they lie in
# memory. The reader takes them for little-endian: token 1 becomes 16777216, and a weight of 1.0 a number near
# zero. IDX files and programs in Java write such arrays, and np.memmap reads them. Nothing warns. An
# encoding with a fixed type refuses the array, and says "expected int32, got int32".
#
# Seen (type of the array: the array that was written, the array that is read):
#   <i4  [1, 2, 3]        [1, 2, 3]
#   >i4  [1, 2, 3]        [16777216, 33554432, 50331648]
#   >f4  [1.0, 0.5, 2.0]  [4.6e-41, 8.8e-44, 9e-44]
# The file itself imports NumPy and Pillow; the package around it imports torch and clients of clouds.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --quiet numpy==2.4.6 pillow==13.0.0 typing_extensions==4.16.0
"$work/env/bin/pip" install --quiet --quiet --no-deps mosaicml-streaming==0.13.0
cd "$work"
"$work/env/bin/python" - 2> log <<'PYTHON' || { cat log; exit 1; }
import importlib.util
import sysconfig
import warnings
from pathlib import Path

import numpy as np

path = Path(sysconfig.get_path("purelib"), "streaming/base/format/mds/encodings.py")
spec = importlib.util.spec_from_file_location("encodings_of_mds", path)
mds = importlib.util.module_from_spec(spec)
spec.loader.exec_module(mds)

warnings.simplefilter("error")
seen = {}
for kind, values in {"<i4": [1, 2, 3], ">i4": [1, 2, 3], ">f4": [1.0, 0.5, 2.0]}.items():
    written = np.array(values, dtype=kind)
    read = mds.mds_decode("ndarray", mds.mds_encode("ndarray", written))
    print(kind, written.tolist(), [float(f"{value:.1e}") if read.dtype.kind == "f" else value for value in read.tolist()])
    expected = np.frombuffer(written.tobytes(), dtype=written.dtype.newbyteorder("<"))
    assert np.array_equal(read, expected), "changed"
    seen[kind] = np.array_equal(read, written)
assert seen == {"<i4": True, ">i4": False, ">f4": False}, "changed"
try:
    mds.mds_encode("ndarray:int32", np.array([1, 2, 3], dtype=">i4"))
except ValueError as error:
    print(error)
else:
    raise AssertionError("changed")
PYTHON

#!/usr/bin/env bash
# verl 0.9.1: an answer to GSM8K gets no reward if a full stop follows its number.
#
# The reward compares the text of the number with the solution. Its pattern takes each full stop and
# comma for a part of the number. "#### 18." gives "18.", which is not "18". The method "strict" takes
# commas out. "flexible" keeps them too: it accepts neither the last number of a sentence nor 1,000
# for 1000. A model that ends its sentences learns that its right answers are wrong. Nothing warns.
#
# Seen (solution 1000, answer: reward with strict, with flexible):
#   #### 1000             1.0 1.0
#   #### 1,000            1.0 0.0
#   #### 1000.            0.0 0.0
#   It costs 1000.        0   0.0
#   It costs 1000 dollars 0   1.0
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --quiet --no-deps verl==0.9.1
cd "$work"
"$work/env/bin/python" - <<'PYTHON'
import importlib.util
import pathlib
import sysconfig

# The file itself imports only `re`; the package around it imports torch and ray.
file = pathlib.Path(sysconfig.get_path("purelib"), "verl/utils/reward_score/gsm8k.py")
spec = importlib.util.spec_from_file_location("gsm8k", file)
gsm8k = importlib.util.module_from_spec(spec)
spec.loader.exec_module(gsm8k)

SEEN = {
    "#### 1000": (1.0, 1.0),
    "#### 1,000": (1.0, 0.0),
    "#### 1000.": (0.0, 0.0),
    "It costs 1000.": (0, 0.0),
    "It costs 1000 dollars": (0, 1.0),
}
for answer, seen in SEEN.items():
    found = tuple(
        gsm8k.compute_score(answer, "1000", method=method) for method in ("strict", "flexible")
    )
    print(f"{answer:21}", *found)
    assert found == seen, "changed"
PYTHON

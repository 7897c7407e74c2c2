#!/usr/bin/env bash
# rouge-score 0.1.2: ROUGE-L of Korean text is 0 for equal sentences and 1 for different ones.
#
# The default tokenizer keeps ASCII letters and digits only. A sentence in Hangul has no token, so
# a right answer scores 0. Two sentences that share nothing but a digit have one token each, and
# score 1.
#
# Seen: equal sentences without a digit 0; different sentences with the digit 3 in both 1.0.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --quiet rouge-score==0.1.2 numpy==2.4.6
cd "$work"
"$work/env/bin/python" - <<'PYTHON'
from rouge_score.rouge_scorer import RougeScorer

score = RougeScorer(["rougeL"]).score
equal = score("프린터가 멈췄어요", "프린터가 멈췄어요")["rougeL"].fmeasure
different = score("환불은 3일 걸립니다", "비밀번호를 3번 틀렸습니다")["rougeL"].fmeasure
print("equal:", equal, "different:", different)
assert (equal, different) == (0, 1.0), "the behaviour has changed"
PYTHON

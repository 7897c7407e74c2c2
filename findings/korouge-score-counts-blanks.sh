#!/usr/bin/env bash
# korouge-score 0.1.4: a blank at the end of a text counts as a word, so an empty answer scores 0.67.
#
# The library makes ROUGE work for Korean: it leaves out the filter of rouge-score that keeps ASCII
# letters only, and with it the removal of empty tokens. A blank or line break at the start or end of a
# text is an empty token, and equal to that of the other text. An empty text has one such token too. A
# file whose references end in a line break gives points for nothing. Models that begin each answer with
# a blank get points for wrong answers. Nothing warns. Strip both texts before scoring.
#
# Seen (reference, answer: ROUGE-L as given, of the stripped texts with - for an empty one):
#   '환불됩니다\n'      ''                 0.67 0.00
#   ' 네'               ' 아니요'          0.50 0.00
#   '내일 오전에 와요'  '내일 오전에 와요'  1.00 1.00
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --quiet korouge-score==0.1.4 numpy==2.4.6
cd "$work"
"$work/env/bin/python" - 2> log <<'PYTHON' || { cat log; exit 1; }
import warnings

from korouge_score.rouge_scorer import RougeScorer

PAIRS = [
    ("환불됩니다\n", ""),
    (" 네", " 아니요"),
    ("내일 오전에 와요", "내일 오전에 와요"),
]
warnings.simplefilter("error", UserWarning)
score = RougeScorer(["rougeL"]).score
seen = []
for reference, answer in PAIRS:
    given = score(reference, answer)["rougeL"].fmeasure
    stripped = score(reference.strip(), answer.strip() or "-")["rougeL"].fmeasure
    print(repr(reference), repr(answer), f"{given:.2f} {stripped:.2f}")
    seen.append((round(given, 2), round(stripped, 2)))
assert seen == [(0.67, 0.0), (0.5, 0.0), (1.0, 1.0)], "changed"
PYTHON

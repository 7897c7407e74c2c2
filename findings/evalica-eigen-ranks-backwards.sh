#!/usr/bin/env bash
# evalica 0.4.2: the eigenvector ranking puts the model that loses most on top.
#
# evalica builds a leaderboard from comparisons of two answers each. Its results are sorted, best first, and
# a higher score is better in every method but one. eigen() multiplies the transposed matrix of wins: the
# weight of a model is the weight of those that beat it. The documentation says "the eigenvalue-based
# scores" and names no direction. A leaderboard, or a choice of the best checkpoint, is upside down.
# Both solvers do so, and nothing warns. The leading eigenvector of the matrix itself, by NumPy, has the
# right order.
#
# Seen for three models, of which the first wins 9 of 10 comparisons with each of the others, and the
# second 9 of 10 with the third (method: models as sorted, with their scores):
#   bradley_terry     first 5.12, second 1.00, third 0.20
#   pagerank          first 0.41, second 0.33, third 0.25
#   average_win_rate  first 0.90, second 0.50, third 0.10
#   eigen             third 0.88, second 0.42, first 0.20
#   numpy's vector    first 0.88, second 0.42, third 0.20
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --quiet evalica==0.4.2 numpy==2.4.6 pandas==3.1.1
cd "$work"
"$work/env/bin/python" - <<'PYTHON'
import warnings

import evalica
import numpy as np
from evalica import Winner

NAMES = ["first", "second", "third"]
games = []
for better, worse in (("first", "second"), ("second", "third"), ("first", "third")):
    games += [(better, worse, Winner.X)] * 9 + [(better, worse, Winner.Y)]
left, right, winners = zip(*games)


def show(name, scores):
    print(f"{name:16}", ", ".join(f"{model} {score:.2f}" for model, score in scores.items()), sep="  ")


with warnings.catch_warnings():
    warnings.simplefilter("error")
    for method in ("bradley_terry", "pagerank", "average_win_rate", "eigen"):
        result = getattr(evalica, method)(left, right, winners).scores
        show(method, result)
        if method != "eigen":
            assert list(result.index) == NAMES
    other = evalica.eigen(left, right, winners, solver="naive").scores
wins = np.zeros((3, 3))
for one, two, winner in games:
    pair = (one, two) if winner == Winner.X else (two, one)
    wins[NAMES.index(pair[0]), NAMES.index(pair[1])] += 1
values, vectors = np.linalg.eig(wins)
expected = np.abs(vectors[:, np.argmax(values.real)].real)
show("numpy's vector", dict(zip(NAMES, expected)))
assert list(np.argsort(-expected)) == [0, 1, 2]
for scores in (result, other):
    assert list(scores.index) == NAMES[::-1], "changed"
PYTHON

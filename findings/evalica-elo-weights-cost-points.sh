#!/usr/bin/env bash
# evalica 0.4.2: a comparison with a small weight takes Elo points from its winner.
#
# All methods take a weight for each comparison, to count a doubtful judge less. elo() multiplies the
# outcome by the weight, and not the expectation that is taken from it: a win that counts half is a draw
# for the winner and still a loss for the loser. A weight below 1 takes points from both models, a weight
# above 1 gives points to both, so a model that plays more often has another rating. The documentation
# calls them "the example weights". Nothing warns. A weight of 2 is not two comparisons either, as it is in
# bradley_terry().
#
# Seen for one win of a over b, both at 1000 before (weight: ratings of a and b), and for 20 wins of each
# over the other:
#   1    1002.0  998.0     999.6  1000.4
#   0.5  1000.0  998.0     959.8  960.2
#   0.1  998.4  998.0      928.0  928.0
#   2    1006.0  998.0     1079.3  1080.7
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --quiet evalica==0.4.2 numpy==2.4.6 pandas==3.1.1
cd "$work"
"$work/env/bin/python" - <<'PYTHON'
import warnings

import evalica
from evalica import Winner


def ratings(winners, weight, solver):
    count = len(winners)
    result = evalica.elo(["a"] * count, ["b"] * count, winners, weights=[weight] * count, solver=solver)
    return result.scores["a"], result.scores["b"]


seen = {}
with warnings.catch_warnings():
    warnings.simplefilter("error")
    for weight in (1, 0.5, 0.1, 2):
        one = ratings([Winner.X], weight, "pyo3")
        many = ratings([Winner.X, Winner.Y] * 20, weight, "pyo3")
        assert abs(one[0] - ratings([Winner.X], weight, "naive")[0]) < 1e-6
        print(f"{weight:<3}", *(f"{a:.1f}  {b:.1f}" for a, b in (one, many)), sep="  ")
        seen[weight] = one, many
    games = ["a", "a", "b"], ["b", "c", "c"], [Winner.Draw, Winner.X, Winner.Draw]
    twice = evalica.bradley_terry(*games, weights=[1, 2, 1]).scores
    repeated = evalica.bradley_terry(*(part + [part[1]] for part in games)).scores
assert abs(twice["a"] - repeated["a"]) < 1e-6
for ratings_of_pair in seen[1]:
    assert abs(sum(ratings_of_pair) - 2000) < 1e-6
assert seen[0.1][0][0] < 1000 and seen[0.1][1][0] < 950, "changed"
assert seen[2][1][0] > 1050 and seen[2][1][1] > 1050, "changed"
PYTHON

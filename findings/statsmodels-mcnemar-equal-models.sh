#!/usr/bin/env bash
# statsmodels 0.15.0: McNemar's test finds that a model differs from itself, with p = 0.
#
# The test compares two models on the same questions. It counts the questions that only one of them
# answers rightly; two models that answer alike have none. With exact=False, the form for large tables,
# the function subtracts the continuity correction of 1 from the difference of 0, squares it and
# divides it by 0. The statistic is infinite and p is 0. A gate that stops a release at p < 0.05 stops
# a copy of the released model. Only NumPy warns of the division. scipy's binomial test of the same
# counts gives 1, and so does exact=True.
#
# Seen for a model and its copy, 500 right and 500 wrong answers:
#   exact=False: statistic inf, p 0.0; exact=True: p 1.0
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --quiet statsmodels==0.15.0 scipy==1.17.1 numpy==2.4.6 \
  pandas==3.1.1
cd "$work"
"$work/env/bin/python" -W ignore::RuntimeWarning - <<'PYTHON'
import math

from scipy.stats import binom
from statsmodels.stats.contingency_tables import mcnemar

answers = [True] * 500 + [False] * 500
copy = list(answers)
table = [
    [sum(a is first and b is second for a, b in zip(answers, copy)) for second in (True, False)]
    for first in (True, False)
]
large, exact = mcnemar(table, exact=False), mcnemar(table, exact=True)
print(f"exact=False: statistic {large.statistic}, p {large.pvalue}; exact=True: p {exact.pvalue}")
one_sided = table[0][1] + table[1][0]
assert one_sided == 0 and min(1.0, 2 * binom.cdf(0, one_sided, 0.5)) == exact.pvalue == 1.0
assert math.isinf(large.statistic) and large.pvalue == 0.0, "changed"
PYTHON

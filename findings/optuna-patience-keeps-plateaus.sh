#!/usr/bin/env bash
# optuna 5.0.0: PatientPruner never stops a trial that no longer improves, and min_delta works backwards.
#
# The documentation says that the pruner ends a trial whose improvement after the patience is below a
# threshold, min_delta, and that it is early stopping if it wraps no pruner. The code adds min_delta to
# the best value before the patience and prunes only if everything after is worse than that. A trial
# whose loss stays where it was runs to its last step, and so does one that gains less than min_delta. A
# larger min_delta, which asks for more improvement, stops less. An issue of 2022 (3835) was closed as
# stale. A search that counts on it pays for every step of every trial.
#
# Seen for patience 2 and eight reported losses (pruned at the steps):
#   min_delta 0.0  5 4 4 4 4 4 4 4                     never
#   min_delta 0.1  5 4 4 4 4 4 4 4                     never
#   min_delta 0.0  4.0 4.05 4.05 4.05 4.05 ...         3 4 5 6 7
#   min_delta 0.1  4.0 4.05 4.05 4.05 4.05 ...         never
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --quiet optuna==5.0.0 numpy==2.4.6
cd "$work"
"$work/env/bin/python" - <<'PYTHON'
import warnings

import optuna
from optuna.exceptions import ExperimentalWarning

optuna.logging.set_verbosity(optuna.logging.WARNING)
warnings.simplefilter("ignore", ExperimentalWarning)


def pruned_at(losses, min_delta):
    pruner = optuna.pruners.PatientPruner(None, patience=2, min_delta=min_delta)
    trial = optuna.create_study(direction="minimize", pruner=pruner).ask()
    steps = []
    for step, loss in enumerate(losses):
        trial.report(loss, step)
        if trial.should_prune():
            steps.append(step)
    print("min_delta", min_delta, *losses, "pruned at", *(steps or ["no step"]))
    return steps


plateau = [5.0] + [4.0] * 7
worse = [4.0] + [4.05] * 7
found = [pruned_at(losses, delta) for losses in (plateau, worse) for delta in (0.0, 0.1)]
assert found[2] == [3, 4, 5, 6, 7]
assert found[0] == found[1] == found[3] == [], "changed"
PYTHON

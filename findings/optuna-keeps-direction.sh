#!/usr/bin/env bash
# optuna 5.0.0: a study that is opened again keeps its first direction, whatever is asked.
#
# create_study(direction="maximize", load_if_exists=True) returns an existing study that minimizes,
# without an error or a warning. A search that continues after a change of its metric then looks for
# the worst value, and best_trial names it.
#
# Seen: direction MINIMIZE, no warning; of the values 0.2 and 0.9 the best is 0.2.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --quiet optuna==5.0.0
cd "$work"
"$work/env/bin/python" - <<'PYTHON'
import warnings

import optuna

optuna.logging.set_verbosity(optuna.logging.ERROR)
storage = "sqlite:///study.db"
optuna.create_study(study_name="search", storage=storage, direction="minimize")
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    study = optuna.create_study(
        study_name="search", storage=storage, direction="maximize", load_if_exists=True
    )
told = [str(warning.message) for warning in caught if "direction" in str(warning.message)]
values = iter([0.2, 0.9])
study.optimize(lambda trial: next(values), n_trials=2)
print(study.direction.name, told, study.best_value)
assert (study.direction.name, told, study.best_value) == ("MINIMIZE", [], 0.2), "changed"
PYTHON

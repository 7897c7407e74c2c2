#!/usr/bin/env bash
# optuna 5.0.0: a journal file whose last line was cut cannot be read after the next line is written.
#
# A full disk or a power failure leaves half of the last line. Optuna skips that half while it is the
# last line. The next record is appended to the same line, and from the record after it on, every
# process that opens the study ends with a JSON error. Finished trials are lost, though all but one
# record are whole.
#
# Seen: a study with 3 finished trials is read after the cut, takes another trial, and then
# raises JSONDecodeError.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --quiet optuna==5.0.0
cd "$work"
"$work/env/bin/python" - <<'PYTHON'
import json
from pathlib import Path

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

optuna.logging.set_verbosity(optuna.logging.ERROR)


def opened():
    storage = JournalStorage(JournalFileBackend("journal.log"))
    return optuna.create_study(study_name="search", storage=storage, load_if_exists=True)


opened().optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=3)
journal = Path("journal.log")
whole = journal.read_bytes()
journal.write_bytes(whole[:-10])  # the last record is half written
number = len(opened().trials)
try:
    opened().optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
    found = f"{len(opened().trials)} trials"
except json.JSONDecodeError as error:
    found = type(error).__name__
print(number, "trials after the cut, then", found)
assert (number, found) == (3, "JSONDecodeError"), "changed"
PYTHON

#!/usr/bin/env bash
# common-expression-language 0.10.0: an element that fails ends exists() and all(), whatever the others say.
#
# In CEL, exists() is a chain of || and all() a chain of &&: an element that gives true, or false,
# decides, although another one fails. The library does so for || and && themselves, but not in the
# macros, so a rule of a custom resource that a cluster evaluates is an error here.
#
# Seen: 1/0 == 1 || 1/1 == 1 is true; [0, 1].exists(i, 1/i == 1) and [0, 1].all(i, 1/i == 2) raise
# ZeroDivisionError. Expected true and false.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --quiet common-expression-language==0.10.0
cd "$work"
"$work/env/bin/python" - <<'PYTHON'
import cel


def value(expression: str) -> object:
    try:
        return cel.evaluate(expression)
    except ZeroDivisionError:
        return "ZeroDivisionError"


found = [
    value(expression)
    for expression in (
        "1/0 == 1 || 1/1 == 1", "[0, 1].exists(i, 1/i == 1)",
        "1/0 == 2 && 1/1 == 2", "[0, 1].all(i, 1/i == 2)",
    )
]
print(found)
assert found == [True, "ZeroDivisionError", False, "ZeroDivisionError"], "changed"
PYTHON

#!/usr/bin/env bash
# math-verify 0.9.0: a thin space between thousands is a sum or a product, so 12\,345 is 357.
#
# LaTeX groups the digits of a large number by a thin space, 12\,345, as the SI rules ask. Of a number
# that is grouped by {,} the library drops the mark. At a thin space it sees two numbers. It adds them,
# like the parts of 1\frac12, or multiplies them if the second one is 000. A reward or an evaluation then
# refuses the right answer, and accepts 0 for each reference that ends in three zeros. Nothing warns.
# Take \, between two digits out before parsing.
#
# Seen (reference: its value; whether the number and whether that value is accepted as the answer):
#   $12{,}345$     12345 True True
#   $12\,345$      357   False True
#   $10\,000$      0     False True
#   \boxed{7\,200} 207   False True
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --quiet "math-verify[antlr4_13_2]==0.9.0"
cd "$work"
"$work/env/bin/python" - <<'PYTHON'
from math_verify import parse, verify

CASES = {
    r"$12{,}345$": (12345, 12345),
    r"$12\,345$": (12345, 12 + 345),
    r"$10\,000$": (10000, 0),
    r"\boxed{7\,200}": (7200, 7 + 200),
}
seen = {}
for reference, (number, value) in CASES.items():
    gold = parse(reference)
    accepted = [verify(gold, parse(f"${answer}$")) for answer in (number, value)]
    seen[reference] = (gold[0].doit(), *accepted)
    print(f"{reference:15}", *seen[reference])
first, *others = CASES
assert seen[first] == (12345, True, True)
for reference in others:
    assert seen[reference] == (CASES[reference][1], False, True), "changed"
PYTHON

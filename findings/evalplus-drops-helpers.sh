#!/usr/bin/env bash
# evalplus 0.3.1: the sanitizer takes functions out of right programs, which then fail their tests.
#
# evalplus.codegen sanitizes each answer, and evalplus.evaluate tests the result. The sanitizer keeps
# imports, assignments, classes and functions. It drops each function without a return statement, so also a
# helper that changes a list in place and a generator, and each function or class with a decorator.
# A decorated answer is lost as a whole. Of two functions with one name it keeps the first, Python the
# last. A NameError then counts as the model's mistake. No message says what was dropped.
#
# Seen (what the program has: its result before, and after sanitize(program, "answer")):
#   plain helper        6 -> 6
#   in-place helper     6 -> NameError
#   generator           6 -> NameError
#   @lru_cache helper   6 -> NameError
#   function twice      6 -> 0
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --quiet tree-sitter==0.26.1 tree-sitter-python==0.25.0 \
  wget==3.2 tempdir==0.7.1 appdirs==1.4.4 termcolor==3.3.0 tqdm==4.70.1
"$work/env/bin/pip" install --quiet --quiet --no-deps evalplus==0.3.1
cd "$work"
"$work/env/bin/python" - 2> log <<'PYTHON' || { cat log; exit 1; }
import sys
import types

# evalplus reads its tests by the large package datasets, which the sanitizer does not use.
sys.modules["datasets"] = types.ModuleType("datasets")
sys.modules["datasets"].load_dataset = None

from evalplus.sanitize import sanitize

PROGRAMS = {
    "plain helper": """
def double(n):
    return 2 * n

def answer(n):
    return double(n)
""",
    "in-place helper": """
def double(numbers):
    numbers[0] *= 2

def answer(n):
    numbers = [n]
    double(numbers)
    return numbers[0]
""",
    "generator": """
def parts(n):
    yield n
    yield n

def answer(n):
    return sum(parts(n))
""",
    "@lru_cache helper": """
from functools import lru_cache

@lru_cache(None)
def double(n):
    return 2 * n

def answer(n):
    return double(n)
""",
    "function twice": """
def double(n):
    return 0

def double(n):
    return 2 * n

def answer(n):
    return double(n)
""",
}


def result(program):
    names = {}
    try:
        exec(program, names)
        return names["answer"](3)
    except NameError as error:
        return type(error).__name__


seen = {}
for name, program in PROGRAMS.items():
    before, after = result(program), result(sanitize(program, "answer"))
    print(f"{name:18}  {before} -> {after}")
    assert before == 6
    seen[name] = after
assert seen == {
    "plain helper": 6, "in-place helper": "NameError", "generator": "NameError",
    "@lru_cache helper": "NameError", "function twice": 0,
}, "changed"
PYTHON

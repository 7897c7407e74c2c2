#!/usr/bin/env bash
# inspect-ai 0.3.285: match(numeric=True) compares five digits, so 123461 is right where 123456 is asked.
#
# The scorer reads the last number of the answer as a float. It writes this number and the target with
# five significant digits, and compares the two texts. A wrong sum, price or count of six digits or more
# counts as correct if it begins alike. The documentation says that numbers are normalized, and names
# currency signs, separators and marks only. Nothing warns. match() without numeric compares the text.
#
# Seen (target, answer: numeric=True, numeric=False):
#   12345      12346    I I
#   123456     123461   C I
#   100000     100004   C I
#   0.3333333  0.33333  C I
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --quiet inspect-ai==0.3.285
cd "$work"
HOME="$work" "$work/env/bin/python" - 2> log <<'PYTHON' || { cat log; exit 1; }
import inspect_ai
from inspect_ai.dataset import Sample
from inspect_ai.model import ModelOutput, ModelUsage, get_model
from inspect_ai.scorer import match
from inspect_ai.solver import generate

PAIRS = [("12345", "12346"), ("123456", "123461"), ("100000", "100004"), ("0.3333333", "0.33333")]


def values(numeric):
    outputs = [
        ModelOutput.from_content("mockllm/model", f"The answer is {answer}") for _, answer in PAIRS
    ]
    for output in outputs:  # else inspect-ai counts the tokens, with a tokenizer that it downloads
        output.usage = ModelUsage(input_tokens=1, output_tokens=4, total_tokens=5)
    log, = inspect_ai.eval(
        inspect_ai.Task(
            dataset=[Sample(input="?", target=target) for target, _ in PAIRS],
            solver=generate(),
            scorer=match(numeric=numeric),
        ),
        model=get_model("mockllm/model", custom_outputs=outputs),
        max_samples=1, max_connections=1, display="none", log_dir="logs",
    )
    assert log.status == "success", log.error.message
    assert [sample.output.completion.split()[-1] for sample in log.samples] == [
        answer for _, answer in PAIRS
    ]
    return [sample.scores["match"].value for sample in log.samples]


numbers, texts = values(True), values(False)
for pair, *found in zip(PAIRS, numbers, texts):
    print("{:10} {:8}".format(*pair), *found)
assert texts == ["I"] * 4
assert numbers == ["I", "C", "C", "C"], "changed"
PYTHON

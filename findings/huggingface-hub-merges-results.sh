#!/usr/bin/env bash
# huggingface_hub 2.4.0: a model card that is read and written has other evaluation results.
#
# ModelCard.load, and each save or push after it, reads the results of the card's model-index and builds
# them anew. Results of one task and dataset become one result. The number of examples in the prompt is
# in the dataset's `args`, which are not compared: a score with 25 examples stands next to one
# with none, under the args of the first. Of two models the results all go to the last one. A key
# that the library does not know, such as a metric's note, is gone. A change of the licence alone
# does all this, and nothing warns.
#
# Seen (model, args, scores and keys of their metrics):
#   before  small {'num_few_shot': 25} [0.5] name note type value
#   before  small {'num_few_shot': 0} [0.25] name type value
#   before  large {'num_few_shot': 25} [0.75] name type value
#   after   large {'num_few_shot': 25} [0.5, 0.25, 0.75] name type value
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --quiet huggingface_hub==2.4.0 pyyaml==6.0.3
cd "$work"
HF_HUB_OFFLINE=1 "$work/env/bin/python" - <<'PYTHON'
import warnings
from pathlib import Path

import yaml
from huggingface_hub import ModelCard


def result(shots, value, **more):
    return {
        "task": {"type": "text-generation"},
        "dataset": {
            "type": "ai2_arc", "name": "ARC", "config": "ARC-Challenge", "split": "test",
            "args": {"num_few_shot": shots},
        },
        "metrics": [{"type": "accuracy", "name": "accuracy", "value": value} | more],
    }


METADATA = {
    "license": "mit",
    "model-index": [
        {"name": "small", "results": [result(25, 0.5, note="five seeds"), result(0, 0.25)]},
        {"name": "large", "results": [result(25, 0.75)]},
    ],
}


def shown(label, path):
    metadata = yaml.safe_load(Path(path).read_text().split("---")[1])
    rows = [
        (
            model["name"], entry["dataset"]["args"], [metric["value"] for metric in entry["metrics"]],
            " ".join(sorted({key for metric in entry["metrics"] for key in metric})),
        )
        for model in metadata["model-index"] for entry in model["results"]
    ]
    for row in rows:
        print(f"{label:7}", *row)
    return rows


Path("README.md").write_text(f"---\n{yaml.safe_dump(METADATA)}---\n# A card\n")
with warnings.catch_warnings():
    warnings.simplefilter("error")
    card = ModelCard.load("README.md")
    card.data.license = "apache-2.0"
    card.save("changed.md")
before, after = shown("before", "README.md"), shown("after", "changed.md")
assert [row[0] for row in before] == ["small", "small", "large"]
assert after == [("large", {"num_few_shot": 25}, [0.5, 0.25, 0.75], "name type value")], "changed"
PYTHON

#!/usr/bin/env bash
# cyclonedx-python-lib 11.12.0 reads a bill of materials for a model and loses its model card.
#
# CycloneDX 1.5 and later describe models by "modelCard" and datasets by "data". The library knows
# the component types machine-learning-model and data, and its validator knows both keys. Reading a
# valid document with Bom.from_json and writing it again drops both keys, without a warning, and
# the shorter document is valid too. A tool that adds a licence or a hash this way publishes a bill
# without task, datasets, figures and sensitive data.
#
# Seen: the keys of the two components before and after; both documents validate.
#   machine-learning-model: bom-ref modelCard name type version -> bom-ref name type version
#   data: bom-ref data name type -> bom-ref name type
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --quiet "cyclonedx-python-lib[validation]==11.12.0"
cd "$work"
"$work/env/bin/python" - <<'PYTHON'
import json
import warnings

from cyclonedx.model.bom import Bom
from cyclonedx.output import make_outputter
from cyclonedx.schema import OutputFormat, SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

warnings.simplefilter("error")
document = {
    "bomFormat": "CycloneDX",
    "specVersion": "1.6",
    "version": 1,
    "components": [
        {
            "type": "machine-learning-model",
            "bom-ref": "model",
            "name": "support-model",
            "version": "1",
            "modelCard": {
                "modelParameters": {"task": "text-generation", "datasets": [{"ref": "tickets"}]},
                "quantitativeAnalysis": {
                    "performanceMetrics": [{"type": "exact match", "value": "0.93"}]
                },
            },
        },
        {
            "type": "data",
            "bom-ref": "tickets",
            "name": "tickets",
            "data": [{"type": "dataset", "sensitiveData": ["customer names"]}],
        },
    ],
}
validator = JsonStrictValidator(SchemaVersion.V1_6)
assert validator.validate_str(json.dumps(document)) is None
bom = Bom.from_json(document)
text = make_outputter(bom, OutputFormat.JSON, SchemaVersion.V1_6).output_as_string()
assert validator.validate_str(text) is None
before = {entry["type"]: sorted(entry) for entry in document["components"]}
after = {entry["type"]: sorted(entry) for entry in json.loads(text)["components"]}
for kind, keys in before.items():
    print(f"{kind}: {' '.join(keys)} -> {' '.join(after[kind])}")
lost = {kind: sorted(set(keys) - set(after[kind])) for kind, keys in before.items()}
assert lost == {"machine-learning-model": ["modelCard"], "data": ["data"]}, (
    "the behaviour has changed"
)
PYTHON

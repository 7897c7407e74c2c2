#!/usr/bin/env bash
# in-toto-attestation 0.9.3: the integers of a predicate become floats, and large ones are rounded.
#
# A Statement keeps its predicate as a protobuf Struct, which knows one type of number. A predicate
# that is read back from the statement has 64.0 for 64, and a number of tokens above 2**53 is another
# number. A digest of the predicate as it was written no longer fits, and validate() finds no fault.
#
# Seen: {"num_prompts": 64, "num_tokens": 9007199254740993} comes back as
# {"num_prompts": 64.0, "num_tokens": 9007199254740992.0}.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --quiet in-toto-attestation==0.9.3
cd "$work"
"$work/env/bin/python" - <<'PYTHON'
import json

from google.protobuf.json_format import MessageToDict
from in_toto_attestation.v1.resource_descriptor import ResourceDescriptor
from in_toto_attestation.v1.statement import Statement

predicate = {"num_prompts": 64, "num_tokens": 2**53 + 1}
subject = ResourceDescriptor(name="model.safetensors", digest={"sha256": "0" * 64})
statement = Statement([subject.pb], "https://example.com/figures/v1", predicate)
statement.validate()
found = MessageToDict(statement.pb)["predicate"]
print(json.dumps(predicate), json.dumps(found))
assert json.dumps(found["num_prompts"]) == "64.0", "changed"
assert int(found["num_tokens"]) == 2**53, "changed"
PYTHON

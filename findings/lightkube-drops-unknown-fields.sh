#!/usr/bin/env bash
# lightkube 1.0.1: a key that its models do not know is taken out of a manifest before it is sent.
#
# codecs.load_all_yaml reads a manifest into typed objects, which the client applies to the cluster. A
# key that the type does not have is dropped: a misspelt probe, or a field of a newer Kubernetes than
# lightkube-models. An API server answers such a key with an error or a warning, but never sees it here.
# The pod runs without its probe, and nothing warns. A missing required key is an error, and the fields
# of a generic resource are all kept.
#
# Seen (keys of the container in the manifest -> in what lightkube sends):
#   image livenesProbe name newerField -> image name
#   without name: ValidationError
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --quiet lightkube==1.0.1 lightkube-models==1.37.0.8 pyyaml==6.0.3
cd "$work"
"$work/env/bin/python" - <<'PYTHON'
import warnings

import msgspec
import yaml
from lightkube import codecs
from lightkube.generic_resource import create_namespaced_resource

CONTAINER = {
    "name": "server",
    "image": "vllm",
    "livenesProbe": {"httpGet": {"path": "/health", "port": 8000}},
    "newerField": "x",
}


def sent(container, **kind):
    manifest = {
        **kind, "metadata": {"name": "model"}, "spec": {"containers": [container]},
    }
    (loaded,) = codecs.load_all_yaml(yaml.safe_dump(manifest))
    return yaml.safe_load(codecs.dump_all_yaml([loaded]))["spec"]["containers"][0]


warnings.simplefilter("error")
create_namespaced_resource("example.com", "v1", "Model", "models")
found = sent(CONTAINER, apiVersion="v1", kind="Pod")
print(*sorted(CONTAINER), "->", *sorted(found))
assert sent(CONTAINER, apiVersion="example.com/v1", kind="Model") == CONTAINER
try:
    sent({"image": "vllm"}, apiVersion="v1", kind="Pod")
    refused = None
except msgspec.ValidationError as error:
    refused = type(error).__name__
print("without name:", refused)
assert found == {"name": "server", "image": "vllm"}, "changed"
assert refused == "ValidationError", "changed"
PYTHON

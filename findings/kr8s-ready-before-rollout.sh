#!/usr/bin/env bash
# kr8s 0.20.15: Deployment.ready() is true while every pod still serves the old version.
#
# A release changes the image of a Deployment and waits until it is ready. During a rolling update with
# maxUnavailable 0, the usual choice for a model that loads for minutes, the old pods stay ready until
# the new ones are. ready() compares the number of ready pods, old or new, with the number of
# replicas, and does not look at updatedReplicas. It is true from the first moment of the update, and stays
# so if the new pods never start. A smoke test behind it asks the old model. `kubectl rollout status` waits
# for the updated pods. The documentation says "Check if the deployment is ready." Nothing warns.
#
# Seen of a server that gives the status of a Deployment with two replicas (state: new pods of two that are
# ready, ready()):
#   update not observed yet        0  False
#   first new pod loads            0  True
#   first new pod crashes          0  True
#   one replaced, next one loads   1  True
#   update complete                2  True
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --quiet kr8s==0.20.15
cd "$work"
"$work/env/bin/python" - <<'PYTHON'
import json
import threading
import warnings
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import kr8s
from kr8s.objects import Deployment

DEPLOYMENT = {
    "apiVersion": "apps/v1",
    "kind": "Deployment",
    "metadata": {"name": "model", "namespace": "default", "generation": 2},
    "spec": {
        "replicas": 2,
        "selector": {"matchLabels": {"app": "model"}},
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
        "template": {
            "metadata": {"labels": {"app": "model"}},
            "spec": {"containers": [{"name": "server", "image": "model:new"}]},
        },
    },
}
progress = {"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded"}
STATES = {  # observedGeneration, replicas, updatedReplicas, readyReplicas, conditions; ready new pods
    "update not observed yet": (1, 2, 2, 2, [], 0),
    "first new pod loads": (2, 3, 1, 2, [], 0),
    "first new pod crashes": (2, 3, 1, 2, [progress], 0),
    "one replaced, next one loads": (2, 3, 2, 2, [], 1),
    "update complete": (2, 2, 2, 2, [], 2),
}
status = {}


class ApiServer(BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path.startswith("/version"):
            answer = {"major": "1", "minor": "34", "gitVersion": "v1.34.0"}
        else:
            assert self.path.startswith("/apis/apps/v1/namespaces/default/deployments/model"), self.path
            answer = DEPLOYMENT | {"status": status}
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), ApiServer)
threading.Thread(target=server.serve_forever, daemon=True).start()
Path("kubeconfig").write_text(json.dumps({
    "apiVersion": "v1",
    "kind": "Config",
    "current-context": "test",
    "clusters": [{"name": "test", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}],
    "users": [{"name": "test", "user": {}}],
    "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
}))
seen = {}
with warnings.catch_warnings():
    warnings.simplefilter("error", UserWarning)
    deployment = Deployment(DEPLOYMENT, api=kr8s.api(kubeconfig="kubeconfig"))
    for state, (generation, replicas, updated, ready, conditions, new) in STATES.items():
        status.update(observedGeneration=generation, replicas=replicas, updatedReplicas=updated,
                      readyReplicas=ready, availableReplicas=ready, unavailableReplicas=replicas - ready,
                      conditions=conditions)
        seen[state] = deployment.ready()
        print(f"{state:29}", new, seen[state], sep="  ")
assert not seen["update not observed yet"] and seen["update complete"]
assert seen["first new pod loads"] and seen["first new pod crashes"], "changed"
PYTHON

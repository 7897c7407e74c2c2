"""`deploy render` with adapters at run time: the list has the artifacts that are here."""

from __future__ import annotations

import json
from pathlib import Path

from k8s.render.kustomize import build
from k8s.rules.objects import of_kind, servers
from tests.integration.k8s.cluster.conftest import Released
from tuneline.core.artifact import open_artifact

ADAPTERS = {
    "loadtest_image": "registry.example.com/tuneline-loadtest:1",
    "keys_secret_name": "team-keys",
    "adapters": {"claim": "adapters"},
}
SERVING = {"keys_file": "keys.toml", "adapters": {"root": "runs"}}


def test_the_list_names_the_artifacts_and_the_server_takes_them(tmp_path: Path) -> None:
    released = Released(tmp_path / "line", 1.0, ADAPTERS, serving=SERVING)
    adapter = released.line.artifact("adapter")
    reference = released.line.artifact("reference")
    wanted = f"k8s.adapters.desired.replies={adapter.parent.name}/{adapter.name}"
    done = released.deploy("render", "--out", str(tmp_path / "out"), "--set", wanted)
    assert done.returncode == 0, done.stderr
    assert f"kubectl apply -k {tmp_path / 'out' / 'adapters'}" in done.stdout
    objects = build(tmp_path / "out" / "adapters") or []
    (item,) = of_kind(objects, "ConfigMap")
    assert json.loads(item["data"]["desired.json"]) == {
        "replies": {
            "adapter": f"/adapters/{adapter.parent.name}/{adapter.name}",
            "reference": f"/adapters/{reference.parent.name}/{reference.name}",
            "digest": open_artifact(adapter).digest,
        }
    }
    ((_, container),) = servers(build(tmp_path / "out") or [])
    env = {entry["name"]: entry.get("value") for entry in container["env"]}
    settings = json.loads(env["TUNELINE_ADAPTERS"])
    assert (settings["root"], settings["state_dir"], settings["base_digest"]) == (
        "/adapters", "/adapters/state-support-tickets", released.digest,
    )  # fmt: skip
    # Without the claim, the server would have a list of none.
    alone = released.deploy(
        "render", "--out", str(tmp_path / "alone"), "--set", "k8s.adapters=null"
    )
    assert alone.returncode == 2
    assert "serving.adapters and k8s.adapters go together" in alone.stderr

"""Write the schemas of custom resources that `k8s/` renders: `python scripts/crd_schemas.py DIR`.

DIR holds CustomResourceDefinition files as their projects publish them. Only the version that the
manifests use is kept, without descriptions: 30 KB in place of 600 KB.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import yaml

CRDS = Path(__file__).parents[1] / "k8s" / "crds"
KINDS = {
    "argoproj.io_analysistemplates": "v1alpha1",
    "gateway.networking.k8s.io_httproutes": "v1",
    "inference.networking.k8s.io_inferencepools": "v1",
    "jobset.x-k8s.io_jobsets": "v1alpha2",
    "keda.sh_scaledobjects": "v1alpha1",
    "leaderworkerset.x-k8s.io_leaderworkersets": "v1",
    "monitoring.coreos.com_prometheusrules": "v1",
    "monitoring.coreos.com_servicemonitors": "v1",
    "serving.kserve.io_llminferenceservices": "v1alpha2",
    "trainer.kubeflow.org_trainingruntimes": "v1alpha1",
    "trainer.kubeflow.org_trainjobs": "v1alpha1",
}


def plain(schema: Any, *, names_fields: bool = False) -> Any:
    """Return a schema without its descriptions; a field of that name stays."""
    if isinstance(schema, list):
        return [plain(entry) for entry in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: plain(value, names_fields=key == "properties" and not names_fields)
        for key, value in schema.items()
        if names_fields or key != "description"
    }


def main(source: Path) -> None:
    """Write one JSON file for each row of KINDS."""
    for name, version in KINDS.items():
        text = (source / f"{name}.yaml").read_text(encoding="utf-8")
        definition = yaml.safe_load(text)["spec"]
        (found,) = (entry for entry in definition["versions"] if entry["name"] == version)
        kept = {
            "group": definition["group"],
            "kind": definition["names"]["kind"],
            "version": version,
            "schema": plain(found["schema"]["openAPIV3Schema"]),
        }
        path = CRDS / f"{name}.json"
        path.write_text(json.dumps(kept, separators=(",", ":"), sort_keys=True) + "\n", "utf-8")
        print(f"{path.name}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

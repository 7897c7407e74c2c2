"""A rendered tree as a Helm chart, for clusters that take nothing else.

The templates are the objects of the tree, with four values in the place of the run's: the image,
the number of replicas, the resources and the host names. Every other value is a part of the proof
and stays. `helm template DIR` with the chart's own values gives the objects of the tree.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, cast

from k8s.render.facts import Document, Facts
from k8s.render.kustomize import dump_yaml, write_yaml
from k8s.render.workloads.write import OBJECTS, PARTS, built
from k8s.rules.objects import pods
from tuneline import __version__
from tuneline.core.digests import short_digest

HOLES = {name: f"@@{name}@@" for name in ("image", "replicas", "resources", "hostnames")}
FILLED = {
    "image": "{{ .Values.image | quote }}",
    "replicas": "{{ .Values.replicas }}",
    # JSON is YAML on one line, whatever the indentation.
    "resources": "{{ .Values.resources | toJson }}",
    "hostnames": "{{ .Values.hostnames | toJson }}",
}
IMAGE = r"(:[\w][\w.-]{0,127}|@sha256:[0-9a-f]{64})$"
SCHEMAS: dict[str, dict[str, Any]] = {
    "image": {"type": "string", "pattern": IMAGE, "not": {"pattern": ":latest$"}},
    "replicas": {"type": "integer", "minimum": 1},
    "resources": {
        "type": "object",
        "required": ["requests", "limits"],
        "additionalProperties": False,
        "properties": {part: {"type": "object"} for part in ("requests", "limits")},
    },
    "hostnames": {"type": "array", "items": {"type": "string"}, "minItems": 1},
}
WORKLOADS = ("Deployment", "LeaderWorkerSet", "LLMInferenceService")
IGNORED = ("render.json", "load-test/", "judge/", "adapters/", "k8s/")
"""Helm keeps every other file of a chart in the Secret of each release."""


def write_chart(tree: Path, facts: Facts) -> None:
    """Replace the kustomization of a tree by a chart; the load test stays a kustomization.

    Raises:
        MissingError: Neither kubectl nor kustomize is here.
    """
    objects = built(tree)
    values = _take_values(objects, facts)
    for part in PARTS:
        shutil.rmtree(tree / "k8s" / part, ignore_errors=True)
    for file in ("kustomization.yaml", "server.yaml", OBJECTS):
        (tree / file).unlink(missing_ok=True)
    (tree / "templates").mkdir()
    for item in objects:
        name = f"{item['kind'].lower()}-{item['metadata']['name']}.yaml"
        (tree / "templates" / name).write_text(_template(item), encoding="utf-8")
    write_yaml(tree / "Chart.yaml", _chart(facts))
    write_yaml(tree / "values.yaml", values)
    (tree / "values.schema.json").write_text(_schema(values), encoding="utf-8")
    (tree / ".helmignore").write_text("".join(f"{name}\n" for name in IGNORED), encoding="utf-8")


def _take_values(objects: list[Document], facts: Facts) -> Document:
    """Put a hole into the objects for each value, and return the values."""
    values: Document = {"image": facts.config.image}
    # Rules only read pods; here the objects are this function's own.
    for pod in cast(list[Any], pods(objects)):
        for container in pod.containers:
            if container["image"] == facts.config.image:
                container["image"] = HOLES["image"]
        for container in pod.spec["containers"]:
            values["resources"] = container["resources"]
            container["resources"] = HOLES["resources"]
    for item in objects:
        if item["kind"] in WORKLOADS and "replicas" in item["spec"]:
            values["replicas"] = item["spec"]["replicas"]
            item["spec"]["replicas"] = HOLES["replicas"]
    for item in objects:
        if item["kind"] == "HTTPRoute" and "hostnames" in item["spec"]:
            values["hostnames"] = item["spec"]["hostnames"]
            item["spec"]["hostnames"] = HOLES["hostnames"]
    return values


def _template(item: Document) -> str:
    """Return an object as a template of Go.

    Alerts and dashboards have braces of their own, which must reach Prometheus and Grafana.
    """
    text = dump_yaml(item).replace("{{", '{{ "{{" }}')
    for name, hole in HOLES.items():
        text = text.replace(f'"{hole}"', FILLED[name])
    return text


def _chart(facts: Facts) -> Document:
    digest = short_digest(facts.model_digest)
    return {
        "apiVersion": "v2",
        "type": "application",
        "name": facts.name,
        "description": f"The model {facts.name}@{digest}, served by vLLM.",
        "version": f"{__version__}+{digest}",
        "appVersion": digest,
        "kubeVersion": ">=1.34.0-0",
    }


def _schema(values: Document) -> str:
    """Return the schema of values.yaml, which takes only values that a template reads."""
    schema = {
        "$schema": "https://json-schema.org/draft-07/schema#",
        "type": "object",
        "additionalProperties": False,
        "required": sorted(values),
        # Helm itself puts these next to the values.
        "properties": {"global": {}, **{name: SCHEMAS[name] for name in values}},
    }
    return json.dumps(schema, indent=2) + "\n"

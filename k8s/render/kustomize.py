"""Write kustomizations, and have kubectl build them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from k8s.config import DeployConfig
from k8s.render.facts import Facts
from k8s.rules.objects import DIGEST_LABEL, Object
from tuneline.core.digests import short_digest
from tuneline.core.errors import ConfigError

MANIFESTS = Path(__file__).parents[1] / "manifests"
# The one in C takes a twentieth of the time.
LOADER: Any = type("Loader", (getattr(yaml, "CSafeLoader", yaml.SafeLoader),), {})
# For kustomize, `=` and `2026-11-28` are strings.
LOADER.yaml_implicit_resolvers = {
    first: [entry for entry in entries if not entry[0].endswith((":value", ":timestamp"))]
    for first, entries in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
UNRELEASED = "tuneline/unreleased"
"""The label and annotation of every object that was rendered without a release."""
WAIVED = "tuneline/waived"
"""The annotation with the gates that the release waives."""
INSTANCE_LABEL = "app.kubernetes.io/instance"


def build(directory: Path) -> list[Object] | None:
    """Return the objects that `kubectl apply -k` would send; None without kubectl and kustomize.

    Raises:
        ConfigError: The directory is not a kustomization that builds.
    """
    if tool := find_kubectl():
        command = [tool, "kustomize", str(directory)]
    elif tool := shutil.which("kustomize"):
        command = [tool, "build", str(directory)]
    else:
        return None
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=120,
        # A process of half a second: collecting its garbage takes a third of its time.
        env={**os.environ, "GOGC": "off"},
    )  # fmt: skip
    if done.returncode != 0:
        raise ConfigError(f"{directory}: {done.stderr.strip()}")
    return [item for item in yaml.load_all(done.stdout, Loader=LOADER) if item]


def find_kubectl() -> str | None:
    """Return the user's kubectl, or the one that pip installed next to the interpreter."""
    return shutil.which("kubectl") or shutil.which("kubectl", path=Path(sys.executable).parent)


def common(facts: Facts) -> dict[str, Any]:
    """Return the fields that all kustomizations of one run have."""
    return {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "namespace": facts.config.namespace,
        "namePrefix": f"{facts.name}-",
        "commonAnnotations": {
            DIGEST_LABEL: facts.model_digest,
            **(
                {UNRELEASED: "rendered with --allow-unreleased"}
                if facts.release is None
                else {"tuneline/release": facts.release}
            ),
            **({WAIVED: ",".join(facts.waived)} if facts.waived else {}),
        },
    }


def plain_labels(facts: Facts, part: str) -> dict[str, Any]:
    """Return the entry of `labels` that no selector has: every model has another digest."""
    digest = short_digest(facts.model_digest)
    pairs = {
        "app.kubernetes.io/name": part,
        "app.kubernetes.io/component": part,
        "app.kubernetes.io/part-of": "tuneline",
        "app.kubernetes.io/managed-by": "tuneline",
        "app.kubernetes.io/version": digest,
        DIGEST_LABEL: digest,
        **({UNRELEASED: "true"} if facts.release is None else {}),
    }
    return {"pairs": pairs, "includeTemplates": True}


def key_from_secret(config: DeployConfig) -> dict[str, Any]:
    """Return the entry of the API key in `env`, for the server and the load test."""
    reference = {"name": config.secret_name, "key": "api-key"}
    return {"name": "VLLM_API_KEY", "valueFrom": {"secretKeyRef": reference}}


def write_yaml(path: Path, content: Mapping[str, Any]) -> None:
    """Write YAML with the keys in the order given, so that equal content gives equal bytes."""
    path.write_text(dump_yaml(dict(content)), encoding="utf-8")


# Strings that YAML 1.1, YAML 1.2 and the mixture of both in kustomize all read as strings.
_PLAIN = re.compile(r"[A-Za-z][\w./@-]*")
_NOT_PLAIN = frozenset({"y", "n", "yes", "no", "on", "off", "true", "false", "null", "nan", "inf"})


class _Dumper(yaml.SafeDumper):
    """A dumper that quotes every string that another reader may take for a number or a boolean.

    PyYAML writes `y`, `1e5` and `123456789e01` without quotes; kustomize reads a boolean and two
    numbers. It writes a part that appears twice as a reference, which people have to look up.
    """

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 (PyYAML's signature)
        """Write every part whole."""
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    if "\n" in text and all(line == line.rstrip() for line in text.splitlines()):
        return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|")
    is_plain = _PLAIN.fullmatch(text) and text.lower() not in _NOT_PLAIN
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if is_plain else '"')


_Dumper.add_representer(str, _represent_text)


def dump_yaml(content: Any) -> str:
    """Return YAML that every reader reads as the same strings."""
    text: str = yaml.dump(
        content, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10_000
    )
    return text

"""The changes that an apply would make: in words first, then field by field.

The server merges in a dry run, so defaults, admission and fields of other managers are those of the
real apply. A value of a Secret is never shown.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from k8s.rules.objects import DIGEST_LABEL, LAST_APPLIED, ref
from tuneline.core.secrets import HIDDEN, hide_flags, hide_secrets, is_secret_name
from tuneline.core.shorten import shorten

RELEASE = "tuneline/release"
"""The annotation with the digest of the release."""
REVISION = "deployment.kubernetes.io/revision"
_OF_THE_SERVER = {
    "managedFields", "generation", "resourceVersion", "uid", "creationTimestamp", "selfLink",
}  # fmt: skip
_NAMED_BY = ("name", "containerPort", "port", "mountPath", "key", "ip", "topologyKey")
ABSENT = "(none)"

Action = Literal["create", "change", "remove"]


@dataclass(frozen=True)
class FieldChange:
    """One field of an object; `old` or `new` is None if the field is absent."""

    path: str
    old: Any
    new: Any

    def line(self) -> str:
        """Return the change in one line."""
        return f"{self.path}: {_text(self.old)} -> {_text(self.new)}"


@dataclass(frozen=True)
class ObjectChange:
    """One object that is created, changed or removed."""

    action: Action
    object: str
    """Kind and name, such as `Deployment/support-tickets-model-server`."""
    fields: tuple[FieldChange, ...] = ()


def identity(item: Mapping[str, Any]) -> tuple[str, str, str]:
    """Return an object's group, kind and name, which stay when its API version changes."""
    group = item["apiVersion"].rpartition("/")[0]
    return group, item["kind"], item["metadata"]["name"]


def compare_objects(
    live: Sequence[Mapping[str, Any]],
    merged: Sequence[Mapping[str, Any]],
    leaving: Sequence[Mapping[str, Any]] = (),
) -> list[ObjectChange]:
    """Return the changes from the live objects to those that the server would have.

    Args:
        leaving: Live objects of the earlier version that the manifests no longer have.
    """
    before = {identity(item): item for item in live}
    found = []
    for item in merged:
        old = before.get(identity(item))
        if old is None:
            found.append(ObjectChange("create", ref(item)))
        elif fields := tuple(_differences(item["kind"], clean(old), clean(item))):
            found.append(ObjectChange("change", ref(item), fields))
    return found + [ObjectChange("remove", ref(item)) for item in leaving]


def clean(item: Mapping[str, Any]) -> dict[str, Any]:
    """Return an object without the fields that the server keeps for itself."""
    kept = {key: value for key, value in item.items() if key != "status"}
    metadata = {k: v for k, v in item["metadata"].items() if k not in _OF_THE_SERVER}
    annotations = {
        key: value
        for key, value in metadata.pop("annotations", {}).items()
        if key not in (REVISION, LAST_APPLIED)
    }
    return {
        **kept,
        "metadata": {**metadata, **({"annotations": annotations} if annotations else {})},
    }


def _differences(kind: str, old: Any, new: Any, path: str = "") -> Iterator[FieldChange]:
    """Return the leaves that differ; a list of named things is compared by name."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in [*old, *(key for key in new if key not in old)]:
            where = f"{path}.{key}" if path else str(key)
            yield from _differences(kind, old.get(key), new.get(key), where)
        return
    named = _by_name(old), _by_name(new)
    if named[0] is not None and named[1] is not None:
        for key in [*named[0], *(key for key in named[1] if key not in named[0])]:
            yield from _differences(kind, named[0].get(key), named[1].get(key), f"{path}[{key}]")
        return
    if old != new:
        if _is_hidden(kind, path, old, new):
            old, new = (None if value is None else HIDDEN for value in (old, new))
        yield FieldChange(path, _without_values(old), _without_values(new))


def _without_values(value: Any) -> Any:
    """Return a value in which secrets are hidden: variables with such a name, flags, texts.

    A container that is added or removed is one field, with its variables and flags inside.
    """
    if isinstance(value, str):
        return hide_secrets(value)
    if isinstance(value, list):
        if all(isinstance(item, str) for item in value):
            return hide_flags(value)
        return [_without_values(item) for item in value]
    if not isinstance(value, Mapping):
        return value
    kept = {key: _without_values(item) for key, item in value.items()}
    if "value" in kept and is_secret_name(str(kept.get("name", ""))):
        kept["value"] = HIDDEN
    return kept


def _is_hidden(kind: str, path: str, *values: Any) -> bool:
    """Return whether a field holds a secret: a Secret's value, or a variable with such a name."""
    if kind == "Secret" and path.split(".")[0].split("[")[0] in ("data", "stringData"):
        return True
    name = path.rpartition("env[")[2].partition("]")[0] if "env[" in path else ""
    names = [v.get("name", "") for v in values if isinstance(v, Mapping) and "value" in v]
    is_value = path.endswith(".value") or bool(names)
    return is_value and any(is_secret_name(one) for one in (name, *names) if one)


def _by_name(value: Any) -> dict[str, Any] | None:
    """Return a list of objects by the field that names them; None for any other value."""
    if value is None:
        return {}
    if not isinstance(value, list) or not all(isinstance(item, Mapping) for item in value):
        return None
    for key in _NAMED_BY:
        names = [str(item[key]) for item in value if key in item]
        if len(names) == len(value) == len(set(names)):
            return dict(zip(names, value, strict=True))
    return None


def _text(value: Any) -> str:
    """Return a value in one short line."""
    import json

    if value is None:
        return ABSENT
    text = value if isinstance(value, str) else json.dumps(value)
    return shorten(text.replace("\n", "\\n"), 120)


def change_lines(
    live: Sequence[Mapping[str, Any]],
    merged: Sequence[Mapping[str, Any]],
    changes: Sequence[ObjectChange],
) -> list[str]:
    """Return the changes for people: release, model, image, replicas and flags first."""
    old, new = _deployment(live), _deployment(merged)
    lines = [] if old is None or new is None else _headline(old, new)
    verbs = {"create": "created", "change": "changed", "remove": "removed"}
    for action, verb in verbs.items():
        named = [change.object for change in changes if change.action == action]
        if named:
            lines.append(f"{verb}: {', '.join(named)}")
    for change in changes:
        if change.fields:
            lines.append(f"{change.object}:")
            lines += [f"  {field.line()}" for field in change.fields]
    return lines


def _headline(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return the changes of a Deployment that a person asks about first."""
    pairs = [
        ("release", *(_annotation(item, RELEASE) for item in (old, new))),
        ("model", *(_annotation(item, DIGEST_LABEL) for item in (old, new))),
        ("image", *(_container(item).get("image") for item in (old, new))),
        ("replicas", *(item["spec"].get("replicas") for item in (old, new))),
    ]
    lines = [f"{name}: {_text(a)} -> {_text(b)}" for name, a, b in pairs if a != b]
    before, after = (_container(item).get("args") or [] for item in (old, new))
    gone = _missing(before, after)
    come = _missing(after, before)
    lines += [f"flags, removed: {' '.join(gone)}"] * bool(gone)
    return lines + [f"flags, added: {' '.join(come)}"] * bool(come)


def _missing(flags: Sequence[str], others: Sequence[str]) -> list[str]:
    """Return the flags that others do not have, without the values of secret ones."""
    shown = zip(flags, hide_flags(flags), strict=True)
    return [words for flag, words in shown if flag not in others]


def _deployment(objects: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    return next((item for item in objects if item["kind"] == "Deployment"), None)


def _annotation(item: Mapping[str, Any], name: str) -> str | None:
    found: str | None = item["metadata"].get("annotations", {}).get(name)
    return found


def _container(item: Mapping[str, Any]) -> Mapping[str, Any]:
    found: Mapping[str, Any] = item["spec"]["template"]["spec"]["containers"][0]
    return found

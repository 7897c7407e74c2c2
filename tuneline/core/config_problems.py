"""The problems of a configuration in words, each under the key that the user wrote."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from tuneline.core.secrets import hide_secrets

MAPPINGS = ("model_type", "model_attributes_type", "dict_type")
LISTS = ("list_type", "tuple_type")
"""Types of pydantic's errors, whose own words are those of Python."""
BRANCHES = ("str", "int", "float", "bool")
"""Types of a union, which pydantic names in the place of a problem as if they were keys."""

NAME = r"^[a-z]([-a-z0-9]{0,40}[a-z0-9])?$"
"""Names of runs and studies. The pattern is a field's, so that a message can have words for it."""
IN_WORDS = {
    NAME: "a lower-case letter, then lower-case letters, digits and hyphens, at most 42 characters"
}
FIRST_KEYS = ("path", "type")
"""Keys that a section's only value is most likely meant for."""
MOST_SHOWN = 200
"""Characters of a wrong value in a message."""


class Place(NamedTuple):
    """The place of a problem.

    Attributes:
        keys: The keys and indices that the user wrote, and one that is missing.
        union: The keys of the value that fits no type of a union; None outside of unions.
        branch: The type of the union that the problem is about, as pydantic names it.
    """

    keys: tuple[str | int, ...]
    union: tuple[str | int, ...] | None = None
    branch: str = ""


def problems_of(
    error: ValidationError, model: type[BaseModel], where: str, values: Mapping[str, Any]
) -> list[str]:
    """Return each problem as `where: key: problem`.

    Args:
        error: The error of the model.
        model: The model.
        where: The file, or what else has the values.
        values: The values that were validated.
    """
    found = [(entry, _place(entry["loc"], values)) for entry in error.errors(include_url=False)]
    problems = []
    for entry, place in _of_likely_branches(found):
        key, problem = ".".join(map(str, place.keys)), _words(entry, model)
        if entry["type"].startswith("union_tag"):
            key = f"{key}.{entry['ctx']['discriminator'].strip(chr(39))}"
        problems.append(": ".join(part for part in (where, key, problem) if part))
    return problems


def near_keys(model: type[BaseModel], path: str) -> list[str]:
    """Return keys of a model, by their path, that an unknown path may mean, the likeliest first.

    They have the same last name or another tool calls them so; without such a key, keys that are
    spelt alike.
    """
    paths = _paths(model)
    last = path.rpartition(".")[2].replace("-", "_")
    leaves = {known.rpartition(".")[2] for known in paths}
    if same := _same_keys(paths, last):
        return same
    alike = difflib.get_close_matches(path, paths, n=1, cutoff=0.75)
    near = difflib.get_close_matches(last, leaves, n=1, cutoff=0.75)
    alike += [known for known in paths if known.rpartition(".")[2] in near]
    return [known for known in dict.fromkeys(alike) if " " not in known]


def _same_keys(paths: Mapping[str, str], last: str) -> list[str]:
    """Return the keys with a last name, or which another tool calls so."""
    same = [known for known in paths if known.rpartition(".")[2] == last]
    called = [paths[known] for known in paths if known.rpartition(".")[2] == f"{last} is called"]
    return list(dict.fromkeys([*same, *called]))


def _paths(model: type[BaseModel], above: str = "") -> dict[str, str]:
    """Return the path of each key; the name that another tool has leads to the path here."""
    found: dict[str, str] = {}
    for name, field in model.model_fields.items():
        inner = _inner_models(field.annotation)
        path = f"{above}{name}"
        found |= {} if inner else {path: path}
        for each in inner:
            found |= _paths(each, f"{path}.")
    for other, name in getattr(model, "other_names", {}).items():
        if name in model.model_fields:
            found[f"{above}{other} is called"] = f"{above}{name}"
    return found


def _place(location: Sequence[str | int], values: Any) -> Place:
    """Return the place of a problem without the types of unions that its location has."""
    keys: list[str | int] = []
    union: tuple[str | int, ...] | None = None
    branch = ""
    for index, part in enumerate(location):
        if isinstance(values, Mapping) and part in values:  # noqa: SIM114 (narrowed one by one)
            values = values[part]
        elif isinstance(values, list | tuple) and isinstance(part, int) and part < len(values):
            values = values[part]
        elif not (
            isinstance(values, Mapping)
            and index == len(location) - 1
            and str(part).isidentifier()
            and part not in BRANCHES
        ):
            union, branch = (tuple(keys), str(part)) if union is None else (union, branch)
            continue
        keys.append(part)
    return Place(tuple(keys), union, branch)


def _of_likely_branches(
    found: Sequence[tuple[ErrorDetails, Place]],
) -> list[tuple[ErrorDetails, Place]]:
    """Leave out the problems with types of a union that the user's keys do not fit."""
    counts: dict[tuple[str | int, ...], dict[str, int]] = {}
    for entry, place in found:
        if place.union is None:
            continue
        branches = counts.setdefault(place.union, {})
        if len(place.keys) > len(place.union):
            branches[place.branch] = branches.get(place.branch, 0) + 1
        elif entry["type"] == "value_error":  # all keys fit: the type refuses the whole
            branches[place.branch] = 0
    likely = {
        union: min(branches, key=branches.__getitem__)
        for union, branches in counts.items()
        if branches
    }
    return [
        (entry, place)
        for entry, place in found
        if place.union is None or likely.get(place.union, place.branch) == place.branch
    ]


def _words(entry: ErrorDetails, model: type[BaseModel]) -> str:
    if entry["type"] == "extra_forbidden":
        return _unknown_key(model, entry["loc"])
    if entry["type"] in ("missing", "union_tag_not_found"):
        return "missing; it is required"
    if entry["type"] == "union_tag_invalid":
        return (
            f"{entry['ctx']['tag']!r} is unknown; expected one of {entry['ctx']['expected_tags']}"
        )
    if entry["type"] in MAPPINGS:
        return f"expected keys below it, {_found(entry['input'])}{_meant(model, entry)}"
    if entry["type"] == "string_pattern_mismatch" and entry["ctx"]["pattern"] in IN_WORDS:
        return f"{_found(entry['input'])}; expected {IN_WORDS[entry['ctx']['pattern']]}"
    if entry["type"] in LISTS:
        return f"expected a list in brackets, {_found(entry['input'])}"
    message = entry["msg"].removeprefix("Value error, ")
    problem = message[0].lower() + message[1:]
    return problem if entry["type"] == "value_error" else f"{problem}, {_found(entry['input'])}"


def _found(value: Any) -> str:
    if value is None:
        return "found nothing"
    text = hide_secrets(repr(value))
    return f"found {text if len(text) <= MOST_SHOWN else f'{text[:MOST_SHOWN]}…'}"


def _unknown_key(model: type[BaseModel], location: tuple[int | str, ...]) -> str:
    """Return the key that another tool's name stands for, or the nearest known key.

    A key that is spelt alike in the same section is nearer than one of that name elsewhere.
    """
    known = _section(model, location[:-1])
    if known is None:
        return "unknown key"
    key = str(location[-1])
    other_names = getattr(known, "other_names", {})
    if key in other_names:
        return f"is called {other_names[key]} here"
    near = difflib.get_close_matches(key, known.model_fields, n=1, cutoff=0.7)
    near = near or _same_keys(_paths(model), key)[:3]
    if not near and "extra_args" in known.model_fields:
        return f"unknown key (a flag of vLLM belongs below extra_args: extra_args.{key})"
    near = near or difflib.get_close_matches(key, known.model_fields, n=1, cutoff=0.5)
    if near:
        return f"unknown key (did you mean {' or '.join(near)}?)"
    return f"unknown key (known: {', '.join(known.model_fields)})"


def _meant(model: type[BaseModel], entry: ErrorDetails) -> str:
    """Return the key below a section that a plain text in its place is most likely meant for."""
    known, text = _section(model, entry["loc"]), entry["input"]
    if known is None or not isinstance(text, str):
        return ""
    key = next((name for name in FIRST_KEYS if name in known.model_fields), None)
    return "" if key is None else f" (did you mean {key}: {hide_secrets(text)[:MOST_SHOWN]}?)"


def _section(model: type[BaseModel], location: Sequence[int | str]) -> type[BaseModel] | None:
    """Return the model of a section, by its place; None for a place without one."""
    known: type[BaseModel] | None = model
    for part in location:
        if isinstance(part, int) or known is None or part not in known.model_fields:
            continue
        known = _inner_model(known.model_fields[part].annotation)
    return known


def _inner_model(annotation: Any) -> type[BaseModel] | None:
    return next(iter(_inner_models(annotation)), None)


def _inner_models(annotation: Any) -> list[type[BaseModel]]:
    """Return the models of a field: of a union, each."""
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return [annotation] if issubclass(annotation, BaseModel) else []
    return [model for argument in typing.get_args(annotation) for model in _inner_models(argument)]

"""The strict configuration base, and reading YAML into it with every problem shown at once."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

from tuneline.core.bounded_yaml import BoundedLoader
from tuneline.core.config_problems import problems_of
from tuneline.core.errors import ConfigError


class StrictModel(BaseModel):
    """A frozen section of configuration. Unknown keys are errors: a misspelt option that is
    silently ignored costs a training run.

    A field that cannot change a result is declared with `json_schema_extra={"keyed": False}`; a
    change of it leaves every artifact current.
    """

    other_names: ClassVar[dict[str, str]] = {}
    """Earlier names of keys, and names that other tools have for them, each with the name here; a
    key that moved has a short text instead."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        validate_default=True,
        allow_inf_nan=False,
        # Each command imports all sections, and few of them are validated by themselves.
        defer_build=True,
    )


Model = TypeVar("Model", bound=BaseModel)


def load_config(
    path: Path,
    model: type[Model],
    overrides: Sequence[str] = (),
    values: Mapping[str, Any] | None = None,
) -> Model:
    """Read a YAML file into `model`, with `key.sub=value` overrides applied on top.

    Args:
        values: More overrides, by the path of their key; they come last.

    Raises:
        ConfigError: The file is missing or no YAML mapping, an override is malformed, or values
            do not fit; every problem reads `file: key: problem (did you mean ...?)`.
    """
    document = read_document(path, overrides, values)
    try:
        return model.model_validate(document)
    except ValidationError as error:
        raise ConfigError(problems_of(error, model, str(path), document)) from None


def read_document(
    path: Path, overrides: Sequence[str] = (), values: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return a YAML file with overrides applied, before it is validated.

    Raises:
        ConfigError: The file is missing or no YAML mapping, or an override is malformed.
    """
    document = _read_yaml(path)
    for override in overrides:
        apply_override(document, override)
    for key, value in (values or {}).items():
        set_value(document, key, value)
    return document


def validate_config(model: type[Model], values: dict[str, Any], where: str) -> Model:
    """Build `model` from options that did not come from a file.

    Raises:
        ConfigError: Values do not fit; every problem names `where` and its key.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise ConfigError(problems_of(error, model, where, values)) from None


def first_problem(error: ValidationError, whole: str = "") -> str:
    """Return the place and the words of a document's first problem: `files.0.path: ...`.

    Args:
        error: The error of the document's model.
        whole: What to call the place of a problem that no key has, such as `the document`.
    """
    first = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in first["loc"]) or whole
    return f"{place}: {first['msg']}" if place else first["msg"]


def keyed_values(section: BaseModel) -> dict[str, Any]:
    """Return the fields of a section that can change a result, as JSON values.

    Stages are keyed by them, and so is other work that may continue under the same configuration.
    """
    values: dict[str, Any] = to_jsonable_python(_keyed(section))
    return values


def field_docs(model: type[BaseModel]) -> dict[str, str]:
    """Return the docstring of each field that has one, from the source of its class.

    Only pages and `--help` need them. Read at import, as pydantic offers it, those of all sections
    take a quarter of a second in each process.
    """
    import ast
    import inspect
    import textwrap

    found: dict[str, str] = {}
    for section in reversed(model.__mro__):
        if not issubclass(section, BaseModel) or section is BaseModel:
            continue
        (parsed,) = ast.parse(textwrap.dedent(inspect.getsource(section))).body
        for field, text in itertools.pairwise(getattr(parsed, "body", [])):
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(field.target, ast.Name)
                and isinstance(text, ast.Expr)
                and isinstance(text.value, ast.Constant)
            ):
                found[field.target.id] = inspect.cleandoc(str(text.value.value))
    return found


def is_keyed(field: FieldInfo) -> bool:
    """Return whether a field can change a result, so that it is part of a stage's key."""
    extra = field.json_schema_extra
    return not (isinstance(extra, dict) and extra.get("keyed") is False)


def _keyed(value: Any) -> Any:
    if isinstance(value, BaseModel):
        fields = type(value).model_fields.items()
        keyed = {name: _keyed(getattr(value, name)) for name, field in fields if is_keyed(field)}
        return keyed | (value.model_extra or {})
    if isinstance(value, Mapping):
        return {key: _keyed(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_keyed(entry) for entry in value]
    return value


MERGE = "tag:yaml.org,2002:merge"
"""The tag of the key `<<`, which takes over the keys of another mapping."""


class _UniqueKeyLoader(BoundedLoader):
    """A loader that refuses a repeated key; YAML itself keeps the last value."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == MERGE:
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str | int | float | bool | None):
                raise yaml.constructor.ConstructorError(
                    None, None, "a key is a list or a mapping", key_node.start_mark
                )
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key!r} appears twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


# YAML 1.1 takes `1e-4` for a text, since it has no point. An option of a library would stay one.
_UniqueKeyLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+[eE][-+][0-9]+$"), list("-+0123456789")
)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(
            f"{path}: no such file",
            hint="Check the path. For a first run.yaml: tuneline init --data FILE --base MODEL",
        ) from None
    except IsADirectoryError:
        found = next(iter(sorted(path.glob("*.y*ml"))), path / "run.yaml")
        raise ConfigError(
            f"{path}: is a directory; expected a run.yaml", hint=f"Try: {found}"
        ) from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: byte {error.start}: not UTF-8 text") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    is_yaml = path.suffix in (".yaml", ".yml")
    hint = None if is_yaml else "A run.yaml is read. Try: tuneline init --data FILE --base MODEL"
    try:
        values = yaml.load(text, Loader=_UniqueKeyLoader)  # noqa: S506 (a SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = f"line {mark.line + 1}: " if mark else ""
        raise ConfigError(f"{path}: {line}not valid YAML: {error.problem}", hint=hint) from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}", hint=hint) from None
    if values is None:
        raise ConfigError(f"{path}: is empty; expected sections such as data and training")
    if not isinstance(values, dict):
        raise ConfigError(
            f"{path}: expected a mapping of sections, found {type(values).__name__}", hint=hint
        )
    return values


def apply_override(values: dict[str, Any], override: str) -> None:
    """Set one `key.sub=value` in nested mappings and lists; the value is YAML.

    Raises:
        ConfigError: It has no such form, or leads through a value.
    """
    key, equals, text = override.partition("=")
    if not equals or not all(key.split(".")):
        raise ConfigError(
            f"--set {override}: expected key=value", hint="Try: --set training.learning_rate=1e-4"
        )
    try:
        value = yaml.load(text, Loader=_UniqueKeyLoader)  # noqa: S506 (a SafeLoader)
    except yaml.YAMLError:
        raise ConfigError(f"--set {override}: the value is not valid YAML") from None
    set_value(values, key, value, f"--set {override}")


def set_value(values: dict[str, Any], key: str, value: Any, where: str = "") -> None:
    """Set a value in nested mappings and lists, by the path of its key.

    Args:
        where: The place of the key, for the message.

    Raises:
        ConfigError: The path leads through a value.
    """
    where = where or key
    names = key.split(".")
    section: Any = values
    for name in names[:-1]:
        section = _step_into(section, name, where)
    if isinstance(section, list):
        section[_index(section, names[-1], where)] = value
    else:
        section[names[-1]] = value


def _step_into(section: Any, name: str, where: str) -> Any:
    """Return the section or the list called `name`; make it if it is not there yet."""
    if isinstance(section, list):
        inner = section[_index(section, name, where)]
    else:
        inner = section.get(name)
        if inner is None:
            inner = section[name] = {}
    if not isinstance(inner, dict | list):
        raise ConfigError(f"{where}: {name} is a value, not a section")
    return inner


def _index(items: list[Any], name: str, where: str) -> int:
    if not name.isdecimal() or int(name) >= len(items):
        raise ConfigError(
            f"{where}: {name!r}: expected the index of one of {len(items)} entries, from 0"
        )
    return int(name)

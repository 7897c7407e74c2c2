"""Write the pages and tables that come from the code: `python scripts/config_reference.py`.

docs/configuration.md comes from the classes of run.yaml, and the table of forms in docs/export.md
from `export.FORMS`.
"""

from __future__ import annotations

import sys
import types
import typing
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from export import FORMS
from export.config import FormName
from tuneline.core.config import field_docs
from tuneline.pipeline.run_config import RunConfig

PAGE = Path(__file__).parents[1] / "docs" / "configuration.md"
FORMS_PAGE = PAGE.with_name("export.md")
FORMS_BEGIN = "<!-- forms: scripts/config_reference.py writes this table -->"
FORMS_END = "<!-- end of forms -->"
HEAD = """# Configuration: run.yaml

One file describes a whole line. Unknown keys are errors, and all problems are shown at once.
`--set training.learning_rate=1e-4` overrides a key; paths start from the file's own directory;
only environment variables hold secrets. `scripts/config_reference.py` writes this page.

Only `name` and `data.path` (or `data.sources`) are required. `tuneline init` writes a first file,
and `tuneline check` says what is wrong with one.

| section | decides | page |
| --- | --- | --- |
| [data](#data) | the rows, and which are held out | [data](data.md), [checks](data-checks.md) |
| [training](#training) | method, adapter, batch, number of processes | [training](training.md) |
| [search](#search) | which keys many trainings try | [search](search.md) |
| [evaluation](#evaluation) | how answers are scored | [evaluation](evaluation.md) |
| [reference](#reference) | the recorded answers that every proof reads | [parity](parity.md) |
| [export](#export) | merge, quantization, further forms, their tolerances | [export](export.md) |
| [serving](#serving) | vLLM's flags, keys, limits, routes | [serving](serving.md) |
| [loadtest](#loadtest) | load and objectives | [load testing](loadtest.md) |
| [release](#release) | limits of the gates | [release](release.md) |
| [k8s](#k8s) | the manifests | [Kubernetes](kubernetes.md) |
"""


def page() -> str:
    """Return the whole page, one table per section."""
    return HEAD + "".join(_section("", RunConfig))


def form_table() -> str:
    """Return the table of forms, in Markdown."""
    lines = [
        "| form | what it is | artifact | weights | options of `tuneline export form` |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, form in FORMS.items():
        options = [*form.open_options, *(["data"] if form.needs_data else [])]
        cells = (
            f"`{name}`", form.title, f"`{form.kind}`", form.weights,
            ", ".join(f"`--{key.replace('_', '-')}`" for key in options),
        )  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def with_form_table(page: str) -> str:
    """Return a page with the table of forms between the two marks."""
    before, rest = page.split(FORMS_BEGIN)
    _, after = rest.split(FORMS_END)
    return f"{before}{FORMS_BEGIN}\n{form_table()}{FORMS_END}{after}"


def _section(prefix: str, model: type[BaseModel]) -> list[str]:
    title = f"`{prefix.removesuffix('.')}`" if prefix else "The file"
    summary = (model.__doc__ or "").strip()
    lines = [f"\n## {title}\n\n{_one_line(summary)}\n\n| key | type | default | meaning |\n"]
    lines.append("| --- | --- | --- | --- |\n")
    inner: list[tuple[str, type[BaseModel]]] = []
    docs = field_docs(model)
    for name, field in model.model_fields.items():
        nested, listed = _nested(field.annotation)
        variants = _variants(field.annotation)
        for variant in variants:
            kind = typing.get_args(variant.model_fields["type"].annotation)[0]
            inner.append((f"{prefix}{name} ({kind}).", variant))
        if nested is not None and not variants:
            inner.append((f"{prefix}{name}{'[]' if listed else ''}.", nested))
        default = "required" if field.is_required() else _default(field.get_default())
        meaning = docs.get(name) or (
            f"see [{prefix}{name}](#{_anchor(inner[-1][0])})" if nested else ""
        )
        kind = _type(field.annotation)
        cells = (f"`{name}`", f"{kind}", default, _one_line(meaning).replace("|", "\\|"))
        lines.append("| " + " | ".join(cells) + " |\n")
    for inner_prefix, nested in inner:
        lines += _section(inner_prefix, nested)
    return lines


def _variants(annotation: Any) -> list[type[BaseModel]]:
    """Return the models of a union whose member is named by `type`."""
    if typing.get_origin(annotation) is typing.Annotated:
        return _variants(typing.get_args(annotation)[0])
    found = [argument for argument in typing.get_args(annotation) if isinstance(argument, type)]
    models = [model for model in found if issubclass(model, BaseModel)]
    return models if len(models) > 1 else []


def _nested(annotation: Any) -> tuple[type[BaseModel] | None, bool]:
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return (annotation, False) if issubclass(annotation, BaseModel) else (None, False)
    for argument in typing.get_args(annotation):
        found, _ = _nested(argument)
        if found is not None:
            return found, typing.get_origin(annotation) in (list, tuple)
    return None, False


def _type(annotation: Any) -> str:
    if annotation == FormName:
        return "form"
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _type(arguments[0])
    if origin is typing.Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(_type(a) for a in arguments if a is not type(None)))
    if origin in (list, tuple):
        return f"list of {_type(arguments[0])}"
    if origin is dict:
        return "mapping"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section"
    names = {"str": "text", "int": "integer", "float": "number", "bool": "true or false"}
    name = getattr(annotation, "__name__", str(annotation))
    return names.get(name, name)


def _default(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, BaseModel) or value is PydanticUndefined:
        return ""
    if isinstance(value, list | tuple) and any(isinstance(item, BaseModel) for item in value):
        return "two short scenarios"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{value}`"


def _anchor(prefix: str) -> str:
    kept = prefix.removesuffix(".").lower()
    return "".join(c for c in kept if c.isalnum() or c in "-_")


def _one_line(text: str) -> str:
    return " ".join(text.split())


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    forms_page = with_form_table(FORMS_PAGE.read_text(encoding="utf-8"))
    FORMS_PAGE.write_text(forms_page, encoding="utf-8")
    print(f"written: {PAGE}, {FORMS_PAGE}", file=sys.stderr)

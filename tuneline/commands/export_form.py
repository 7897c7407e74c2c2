"""`tuneline export form NAME`: one command for each row of the table of forms."""

from __future__ import annotations

import inspect
import types
import typing
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from tuneline.commands.option_values import required
from tuneline.commands.options import AsJson, ModelId, OutDir
from tuneline.commands.printing import emit_artifact


class FormGroup(TyperGroup):
    """A group that reads its commands from the table when it is used, since the table loads
    pydantic and `tuneline --help` does not."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002 (typer calls it so)
        from export import FORMS

        return list(FORMS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ARG002 (typer calls it so)
        from export.config import known_form
        from tuneline.core.errors import ConfigError

        try:
            return _command(known_form(cmd_name))
        except ValueError as error:
            raise ConfigError(f"tuneline export form: {error}") from None


form_app = typer.Typer(
    cls=FormGroup,
    help="Write a model as one of the forms that a run can export.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)


@form_app.callback()
def _group() -> None:
    """Write a model as one of the forms that a run can export."""


def _command(name: str) -> Any:
    """Return the command of one form; its options are the fields of the form's `config`."""
    from export import FORMS, make_form
    from tuneline.core.config import field_docs

    form = FORMS[name]
    fields = form.open_options

    def run(model: str, out: Path, as_json: bool, **given: Any) -> None:
        from tuneline.core.config import validate_config
        from tuneline.models.source import resolve_model
        from tuneline.pipeline.calibration import read_calibration

        data = read_calibration(required(given["data"], "--data")) if form.needs_data else None
        chosen = {key: given[key] for key in fields if given[key] is not None}
        where = f"tuneline export form {name}"
        options = validate_config(form.config, {**chosen, **form.fixed}, where)
        emit_artifact(make_form(name, resolve_model(model), out, options, data), as_json)

    hints: dict[str, Any] = {"model": ModelId, "out": OutDir}
    docs = field_docs(form.config)
    for key in fields:
        field = form.config.model_fields[key]
        default = "" if field.default is None else f" Default: {field.default}."
        text = " ".join(docs.get(key, "").split()) + default
        hints[key] = Annotated[_plain_type(field.annotation) | None, typer.Option(help=text)]
    if form.needs_data:
        text = "Training rows, or a dataset artifact."
        hints["data"] = Annotated[Path | None, typer.Option(metavar="FILE|DIR", help=text)]
    hints["as_json"] = AsJson
    defaults = dict.fromkeys((*fields, "data")) | {"as_json": False}
    run.__annotations__ = hints
    run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(
                key, inspect.Parameter.KEYWORD_ONLY, annotation=hint,
                default=defaults.get(key, inspect.Parameter.empty),
            )
            for key, hint in hints.items()
        ]
    )  # fmt: skip
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command(name, help=f"{form.title}.")(run)
    return typer.main.get_command(app)


def _plain_type(annotation: Any) -> Any:
    """Return str, int or float for a field's type."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _plain_type(arguments[0])
    if origin is typing.Literal:
        return type(arguments[0])
    if origin in (typing.Union, types.UnionType):
        return _plain_type(next(a for a in arguments if a is not type(None)))
    return annotation

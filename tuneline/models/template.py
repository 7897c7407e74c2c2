"""A chat template with fixed values: the variables that a run sets, and the date that it writes.

transformers and vLLM hand a template its variables (`chat_template_kwargs`) and the date of the day
(`strftime_now`) with every call. Here both become lines at the top of the template, so that every
reader of a model folder renders the same text. A request may still set such a variable.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tuneline.core.artifact import Artifact
from tuneline.core.errors import ConfigError
from tuneline.models.companion_files import chat_template

DATE_FUNCTION = "strftime_now"

_DEFAULT = re.compile(r"\{% set (\w+) = \1 if \1 is defined else (.*) %\}\n")


@dataclass(frozen=True)
class TemplateSettings:
    """How a run renders its conversations.

    Attributes:
        kwargs: Variables of the template, as `chat_template_kwargs` of a request gives them.
        date: The day that the template takes for today; None takes the day of the call.
        serves_date: Whether the trained model's own template writes `date`. Otherwise a server
            writes the day of the request.
        named: The name of the template for a base model without one, a row of `NAMED_TEMPLATES`.
    """

    kwargs: Mapping[str, Any] = field(default_factory=dict)
    date: datetime.date | None = None
    serves_date: bool = False
    named: str | None = None


def dataset_settings(dataset: Artifact) -> TemplateSettings:
    """Return the settings that every stage of a dataset's run renders with.

    Without a date in the configuration, the date is the day on which the dataset was made.
    """
    config = dataset.manifest.config
    given = config.get("chat_template_date")
    return TemplateSettings(
        kwargs=config.get("chat_template_kwargs") or {},
        date=datetime.date.fromisoformat(given or dataset.manifest.created_at[:10]),
        serves_date=given is not None,
        named=config.get("chat_template"),
    )


def with_settings(template: str, settings: TemplateSettings) -> str:
    """Return a template that renders with the settings by itself."""
    dated = template if settings.date is None else with_date(template, settings.date)
    return with_defaults(dated, settings.kwargs)


def with_defaults(template: str, kwargs: Mapping[str, Any]) -> str:
    """Return a template whose variables have values if the caller gives none."""
    # The first newline after a block is not rendered: transformers and vLLM set trim_blocks.
    lines = (
        f"{{% set {name} = {name} if {name} is defined else {_literal(value)} %}}\n"
        for name, value in kwargs.items()
    )
    return "".join(lines) + template


def default_kwargs(template: str) -> dict[str, Any]:
    """Return the values that `with_defaults` wrote into a template."""
    from jinja2 import Environment

    found: dict[str, Any] = {}
    at = 0
    while match := _DEFAULT.match(template, at):
        found.setdefault(match[1], Environment().compile_expression(match[2])())  # noqa: S701
        at = match.end()
    return found


def folder_defaults(folder: Path) -> dict[str, Any]:
    """Return the values that `with_defaults` wrote into the template of a model folder.

    Raises:
        ArtifactError: A file of the folder cannot be read.
    """
    template = chat_template(folder)
    return default_kwargs(template) if isinstance(template, str) else {}


def with_date(template: str, date: datetime.date) -> str:
    """Return a template that writes one date on every day.

    A template that reads no date, or that computes the format of the date, stays as it is.
    """
    formats = date_formats(template)
    if not formats:
        return template
    day = datetime.datetime.combine(date, datetime.time())
    texts = json.dumps({text: day.strftime(text) for text in formats}, ensure_ascii=False)
    macro = f"{{% macro {DATE_FUNCTION}(format) %}}{{{{ {texts}[format] }}}}{{% endmacro %}}\n"
    return macro + template


def date_formats(template: str) -> list[str]:
    """Return the formats in which a template asks for the date; none if it computes one."""
    from jinja2 import nodes

    formats = []
    for call in _parsed(template).find_all(nodes.Call):
        if isinstance(call.node, nodes.Name) and call.node.name == DATE_FUNCTION:
            if len(call.args) != 1 or not isinstance(call.args[0], nodes.Const):
                return []
            formats.append(str(call.args[0].value))
    return sorted(set(formats))


def template_variables(template: str) -> set[str]:
    """Return the names that a template reads from its caller."""
    from jinja2 import meta

    return set(meta.find_undeclared_variables(_parsed(template)))


def require_variables(template: str, kwargs: Mapping[str, Any]) -> None:
    """Check that a template reads every variable that is set.

    Raises:
        ConfigError: It does not read one of them.
    """
    known = template_variables(template)
    unknown = [name for name in kwargs if name not in known]
    if unknown:
        own = sorted(known - GIVEN_VARIABLES)
        raise ConfigError(
            [
                f"data.chat_template_kwargs.{name}: the chat template reads no such variable"
                for name in unknown
            ],
            hint=f"It reads: {', '.join(own)}." if own else "It reads no variable of its own.",
        )


GIVEN_VARIABLES = frozenset({
    "add_generation_prompt", "bos_token", "content", "documents", "eos_token", "messages",
    "pad_token", "raise_exception", "tools", "unk_token", DATE_FUNCTION,
})  # fmt: skip
"""Names that transformers itself hands to a template."""


def _parsed(template: str) -> Any:
    """Return the syntax tree of a template.

    Raises:
        ConfigError: The template is not valid Jinja.
    """
    from jinja2 import Environment, TemplateSyntaxError
    from jinja2.ext import Extension

    class Generation(Extension):
        """The block by which transformers marks the answers."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    extensions: list[str | type[Extension]] = [Generation, "jinja2.ext.loopcontrols"]
    try:
        return Environment(extensions=extensions).parse(template)  # noqa: S701 (nothing is rendered)
    except TemplateSyntaxError as error:
        raise ConfigError(
            f"the chat template is not valid: line {error.lineno}: {error.message}"
        ) from None


def _literal(value: Any) -> str:
    """Return a JSON value as an expression of Jinja, which differs in the name of null."""
    if isinstance(value, Mapping):
        entries = (f"{_literal(str(key))}: {_literal(entry)}" for key, entry in value.items())
        return f"{{{', '.join(entries)}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(_literal(entry) for entry in value)}]"
    return "none" if value is None else json.dumps(value, ensure_ascii=False)

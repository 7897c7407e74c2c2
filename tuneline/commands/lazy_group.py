"""A command group that imports a command when it is used, so that `--help` imports none."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import typer
from typer.core import TyperGroup

HELP = ("-h", "--help")


class Row(NamedTuple):
    """One command of a table.

    Attributes:
        where: `module:attribute` of the command's function, or of a `typer.Typer` with commands.
        help: One sentence for the list of commands; the first line of the function's docstring.
    """

    where: str
    help: str


class LazyCommands(MutableMapping[str, Any]):
    """The commands of a group by name, each imported on first use."""

    def __init__(self, table: Mapping[str, Row]) -> None:
        self.table = dict(table)
        self.loaded: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self.loaded:
            self.loaded[name] = load_command(name, self.table[name].where)
        return self.loaded[name]

    def __setitem__(self, name: str, command: Any) -> None:
        raise TypeError("commands are rows of the table")

    def __delitem__(self, name: str) -> None:
        raise TypeError("commands are rows of the table")

    def __iter__(self) -> Iterator[str]:
        return iter(self.table)

    def __len__(self) -> int:
        return len(self.table)

    def __contains__(self, name: object) -> bool:
        return name in self.table


class LazyGroup(TyperGroup):
    """A group whose commands are the rows of `table`.

    With `default`, the group can be used without naming a command: `loadtest RUN.yaml` is
    `loadtest run RUN.yaml`.
    """

    table: ClassVar[Mapping[str, Row]]
    default: ClassVar[str | None] = None

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands = LazyCommands(self.table)

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002 (the base class calls it so)
        return list(self.table)

    def format_commands(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002 (as above)
        with formatter.section("Commands"):
            formatter.write_dl([(name, row.help) for name, row in self.table.items()])

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if self.default is not None and args and args[0] not in (*self.table, *HELP):
            # A word that is neither a command nor a file is a misspelt command: the group says so.
            is_word = re.fullmatch(r"[a-z]+(-[a-z]+)*", args[0]) and not Path(args[0]).exists()
            args = args if is_word else [self.default, *args]
        return super().parse_args(ctx, args)


def load_command(name: str, where: str) -> Any:
    """Import `module:attribute` and return its command for the parser."""
    module, _, attribute = where.partition(":")
    found: typer.Typer | Callable[..., Any] = getattr(importlib.import_module(module), attribute)
    if isinstance(found, typer.Typer):
        return typer.main.get_group(found)
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command(name)(found)
    return typer.main.get_command(app)

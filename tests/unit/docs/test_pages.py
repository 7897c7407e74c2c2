"""The pages say what the code does: paths, commands, snippets and links are real."""

import ast
import importlib.util
import json
import re
import subprocess
import sys
from typing import Any, cast

import pytest
import typer
import yaml
from typer.core import TyperGroup

from tests.unit.docs import pages
from tests.unit.docs.pages import PAGES, ROOT, Found
from tuneline.core.config import apply_override
from tuneline.pipeline.run_config import RunConfig

USAGE_ERROR: type[Exception] = typer.BadParameter.__mro__[1]
MINIMAL = {"name": "a-run", "data": {"path": "rows.jsonl"}}


def test_no_page_is_unfinished() -> None:
    assert len(PAGES) > 8
    for page in PAGES:
        assert not re.search(r"@@|MEASURED|TODO|<{7}|>{7}", page.read_text()), page


def test_the_configuration_page_is_the_code_s() -> None:
    code = "import config_reference; print(config_reference.page(), end='')"
    printed = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT / "scripts",
        capture_output=True,
        text=True,
        check=True,
    )
    written = (ROOT / "docs" / "configuration.md").read_text()
    assert printed.stdout == written, "run: python scripts/config_reference.py"


def test_the_table_of_forms_is_the_code_s() -> None:
    code = "import config_reference as c; print(c.form_table(), end='')"
    printed = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT / "scripts",
        capture_output=True,
        text=True,
        check=True,
    )
    assert printed.stdout.count("\n") > 10
    assert printed.stdout in (ROOT / "docs" / "export.md").read_text()


def test_pages_name_enough_to_check() -> None:
    assert len(pages.paths()) > 60
    assert len(pages.commands()) > 50
    assert len(pages.links()) > 30
    assert len(pages.snippets("yaml")) >= 20
    assert len(pages.modules()) >= 2


def test_decisions_are_numbered_without_gaps() -> None:
    records = sorted((ROOT / "docs" / "decisions").glob("*.md"))
    assert len(records) > 10
    for number, record in enumerate(records, start=1):
        assert record.name.startswith(f"{number:04d}-")
        assert record.read_text("utf-8").startswith(f"# {number}. ")


def test_every_how_to_page_is_linked_from_the_architecture() -> None:
    linked = (ROOT / "ARCHITECTURE.md").read_text("utf-8")
    names = [page.name for page in (ROOT / "docs" / "how-to").glob("*.md")]
    assert len(names) > 5
    assert [name for name in names if f"docs/how-to/{name}" not in linked] == []


@pytest.mark.parametrize("path", pages.paths(), ids=str)
def test_every_path_on_a_page_exists(path: Found) -> None:
    assert list(ROOT.glob(path.text.rstrip("./"))), path


@pytest.mark.parametrize("module", pages.modules(), ids=str)
def test_every_module_that_a_page_runs_exists(module: Found) -> None:
    assert (ROOT / (module.text.replace(".", "/") + ".py")).exists() or (
        importlib.util.find_spec(module.text) is not None
    )


@pytest.mark.parametrize("link", pages.links(), ids=str)
def test_every_relative_link_leads_somewhere(link: Found) -> None:
    address, _, anchor = link.text.partition("#")
    page = ROOT / link.page
    target = page.parent / address if address else page
    assert target.exists()
    assert not anchor or anchor in pages.anchors(target)


@pytest.mark.parametrize("command", pages.commands(), ids=str)
def test_every_command_on_a_page_parses(command: Found) -> None:
    try:
        context = _parsed(pages.arguments(command.text))
    except USAGE_ERROR as error:
        # A sentence names a command or an option without its arguments.
        assert type(error).__name__ in ("MissingParameter", "NoArgsIsHelpError"), error
        assert not _is_in_a_block(command), error
        return
    for override in context.params.get("overrides") or ():
        RunConfig.model_validate(_with_override(override))


@pytest.mark.parametrize("snippet", pages.snippets("yaml"), ids=str)
def test_every_yaml_snippet_is_a_valid_run(snippet: Found) -> None:
    RunConfig.model_validate({**MINIMAL, **yaml.safe_load(snippet.text)})


@pytest.mark.parametrize("snippet", pages.snippets("sh", "bash"), ids=str)
def test_every_shell_snippet_is_valid_shell(snippet: Found) -> None:
    subprocess.run(["bash", "-n"], input=snippet.text, text=True, check=True)


@pytest.mark.parametrize("snippet", pages.snippets("python"), ids=str)
def test_every_python_snippet_is_valid_python(snippet: Found) -> None:
    ast.parse(snippet.text)


@pytest.mark.parametrize("snippet", pages.snippets("json"), ids=str)
def test_every_json_snippet_is_valid_json(snippet: Found) -> None:
    try:
        json.loads(snippet.text)
    except json.JSONDecodeError:
        assert [json.loads(line) for line in snippet.text.splitlines()]


@pytest.mark.parametrize(
    "arguments",
    [["no-such-command"], ["up", "run.yaml", "--no-such-option"], ["loadtest", "search", "--x"]],
)
def test_a_command_that_does_not_exist_is_seen(arguments: list[str]) -> None:
    with pytest.raises(USAGE_ERROR, match="No such"):
        _parsed(arguments)


def _parsed(arguments: list[str]) -> typer.Context:
    """Parse a command line with its own command's parser, without running it."""
    from tuneline.cli import app

    command: Any = typer.main.get_command(app)
    context = command.make_context("tuneline", list(arguments))
    while isinstance(command, TyperGroup):
        rest = [*context._protected_args, *context.args]
        name, found, rest = command.resolve_command(context, rest)
        assert found is not None
        command, context = found, found.make_context(name, rest, parent=context)
    return cast(typer.Context, context)


def _is_in_a_block(command: Found) -> bool:
    line = (ROOT / command.page).read_text("utf-8").splitlines()[command.line - 1]
    return line.strip() == command.text


def _with_override(override: str) -> dict[str, object]:
    values: dict[str, object] = {**MINIMAL}
    apply_override(values, override)
    return values

"""The keys, options, targets, variables and scripts that the pages name are those of the code."""

import re
import tomllib
from collections.abc import Iterator
from typing import Any

import pytest
import typer
from typer.core import TyperGroup

from tests.unit.docs import pages
from tests.unit.docs.pages import PAGES, ROOT, Found
from tuneline.cli import TunelineGroup, app
from tuneline.core.errors import TunelineError

KEYS = pages.known_keys()
SECTIONS = {key.rpartition(".")[0] for key in KEYS}
READMES = ("README.md", "README.ko.md")
NOT_KEYS = {
    "training.lora_rank": "another trainer's name, which Tuneline answers with its own",
    "export.flat": "the module of the toy form",
}
OPTIONS_OF_OTHERS = {
    "--build-arg": "docker", "--chmod": "docker", "--field-manager": "kubectl",
    "--flag": "notation", "--headless": "vllm", "--lora-target-modules": "vllm",
    "--node-rank": "vllm", "--now": "systemctl", "--user": "systemctl",
    "--no-flag": "notation", "--override-generation-config": "vllm", "--scheduling-policy": "vllm",
    "--server-side": "kubectl", "--shutdown-timeout": "vllm", "--structured-outputs-config": "vllm",
    "--max-num-queued-reqs": "vllm", "--default-chat-template-kwargs": "vllm", "--dtype": "vllm",
}  # fmt: skip
WORDS_OF_OTHERS = {
    "openai_frontend": "Triton", "guided_json": "vLLM", "reasoning_effort": "OpenAI",
    "previous_response_id": "OpenAI", "code_interpreter": "OpenAI", "web_search_preview": "OpenAI",
    "safety_identifier": "OpenAI", "tool_server": "vLLM", "t_intended": "a formula",
    "t_sent": "a formula", "proxy_buffering": "nginx",
}  # fmt: skip
CODE = ("tuneline", "training", "export", "serving", "loadtest", "k8s", "benchmarks", "scripts")


@pytest.fixture(scope="module")
def code() -> str:
    """Return all Python and YAML of the product and of its scripts."""
    files = [p for d in CODE for p in (ROOT / d).rglob("*") if p.suffix in (".py", ".yaml")]
    return "\n".join(path.read_text("utf-8") for path in files)


@pytest.fixture(scope="module")
def all_code(code: str) -> str:
    """Return the code with its tests and its examples, and the names of these files."""
    files = [p for d in ("tests", "examples", "findings") for p in (ROOT / d).rglob("*.py")]
    return "\n".join([code, *(f"{path.stem}\n{path.read_text('utf-8')}" for path in files)])


@pytest.fixture(scope="module")
def words(all_code: str) -> set[str]:
    """Return every name with an underscore in all code."""
    return set(re.findall(r"[a-z][a-z0-9]*(?:_[a-z0-9]+)+", all_code))


@pytest.fixture(scope="module")
def command_options() -> set[str]:
    """Return every option of every command."""
    return {option for _, command in _commands() for option in _options(command)}


def test_pages_name_enough_to_check() -> None:
    assert len(KEYS) > 400
    assert len(pages.keys()) > 150
    assert len(pages.options()) > 60
    assert len(pages.targets()) > 8
    assert len(pages.program_names()) > 15
    assert len(pages.scripts()) > 10
    assert len(pages.file_names()) > 40
    assert len(pages.snake_names()) > 300
    assert pages.extras()


def test_comments_of_the_examples_are_read() -> None:
    named = {f.page for f in (*pages.commands(), *pages.paths()) if not f.page.endswith(".md")}
    assert {
        "examples/support-tickets/run.yaml", "examples/preferences/run.yaml", "Makefile",
    } <= named  # fmt: skip


@pytest.mark.parametrize("key", pages.keys(), ids=str)
def test_every_key_on_a_page_exists(key: Found) -> None:
    assert key.text.split(":")[0] in NOT_KEYS or _is_key(key.text) or _is_module(key.text), key


def test_a_key_that_does_not_exist_is_seen() -> None:
    assert _is_key("serving.extra_args.chat_template")
    assert not _is_key("serving.max_model_length")
    assert not _is_key("serving.port.number")


@pytest.mark.parametrize("option", pages.options(), ids=str)
def test_every_option_on_a_page_exists(option: Found, command_options: set[str], code: str) -> None:
    assert (
        option.text in command_options
        or option.text in OPTIONS_OF_OTHERS
        or f'"{option.text}"' in code
    ), option


def test_every_option_of_another_program_is_on_a_page() -> None:
    written = "\n".join(page.read_text("utf-8") for page in PAGES)
    assert [option for option in OPTIONS_OF_OTHERS if option not in written] == []


@pytest.mark.parametrize("target", pages.targets(), ids=str)
def test_every_make_target_on_a_page_exists(target: Found) -> None:
    assert re.search(rf"(?m)^{target.text}:", (ROOT / "Makefile").read_text("utf-8")), target


@pytest.mark.parametrize("extra", pages.extras(), ids=str)
def test_every_extra_on_a_page_exists(extra: Found) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert extra.text in project["optional-dependencies"]


@pytest.mark.parametrize("name", pages.program_names(), ids=str)
def test_every_variable_and_metric_on_a_page_exists(name: Found, all_code: str) -> None:
    # The client library adds `_total` to the name of a counter; a rule's annotation has no slash.
    written = {name.text, name.text.removesuffix("_total"), name.text.replace("_", "/", 1)}
    assert any(text in all_code for text in written), name


@pytest.mark.parametrize("name", pages.snake_names(), ids=str)
def test_every_name_with_an_underscore_is_in_the_code(name: Found, words: set[str]) -> None:
    # Figures of a method and failures of HTTP have a prefix.
    plain = re.sub("^(?:best_)?eval_|^kl_|^http_", "", name.text)
    assert {name.text, plain} & words or plain.isalnum() or name.text in WORDS_OF_OTHERS, name


@pytest.mark.parametrize("name", pages.file_names(), ids=str)
def test_every_file_on_a_page_is_written_or_read_by_the_code(name: Found, code: str) -> None:
    # The file of prompts in a claim begins with the run's name.
    written = name.text.removeprefix("support-tickets")
    assert written in code or any(
        list((ROOT / folder).rglob(name.text)) for folder in ("examples", "tests", "tuneline")
    ), name


@pytest.mark.parametrize("call", pages.scripts(), ids=str)
def test_every_option_of_a_script_exists(call: Found) -> None:
    name = re.search(r"(?:benchmarks|scripts)[/.]\w+", call.text)
    assert name is not None
    script = (ROOT / (name[0].replace(".", "/") + ".py")).read_text("utf-8")
    options = re.findall(r"\s(--[a-z][a-z-]*)", call.text)
    assert [option for option in options if f'"{option}"' not in script] == [], call


def test_readme_names_every_command() -> None:
    rows = _table("README.md", "command")
    named = [word for first in rows for word in re.findall(r"`([a-z]+)[ a-z]*`", first)]
    assert len(TunelineGroup.table) > 20
    assert set(named) == set(TunelineGroup.table)


@pytest.mark.parametrize("page", READMES)
def test_readme_names_every_exit_code(page: str) -> None:
    head = {"README.md": "exit code", "README.ko.md": "종료 코드"}[page]
    named = {int(first) for first in _table(page, head) if first.strip().isdigit()}
    classes, left = set(), [TunelineError]
    while left:
        one = left.pop()
        classes.add(one.exit_code)
        left += one.__subclasses__()
    assert len(classes) > 6
    assert named == {0, *classes}


def test_every_command_of_a_group_is_on_a_page() -> None:
    written = "\n".join(page.read_text("utf-8") for page in PAGES)
    # A test of test_pages.py compares the forms with their table.
    names = [n for n, _ in _commands() if " " in n and not n.startswith("export form ")]
    assert len(names) > 25
    assert [name for name in names if name not in written] == []


def test_both_readmes_say_the_same() -> None:
    english, korean = (_outline((ROOT / name).read_text("utf-8")) for name in READMES)
    assert english["commands"] and english["links"] and english["rows"]
    assert korean == english


def test_every_page_can_be_reached_from_the_readme() -> None:
    reached, left = set(), [ROOT / "README.md"]
    while left:
        page = left.pop()
        if page not in reached and page.suffix == ".md":
            reached.add(page)
            left += [
                (page.parent / link.text.partition("#")[0]).resolve()
                for link in pages.links()
                if ROOT / link.page == page and link.text.partition("#")[0]
            ]
    docs = {page for page in PAGES if page.is_relative_to(ROOT / "docs")}
    assert {str(page) for page in docs - reached if page.parent.name != "decisions"} == set()


def _outline(text: str) -> dict[str, object]:
    """Return what two languages of one page must have in common."""
    blocks = re.findall(r"(?ms)^```sh\n(.*?)^```", text)
    lines = [line.split(" #")[0].strip() for block in blocks for line in block.splitlines()]
    rows = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| ")]
    return {
        "headings": len(re.findall("(?m)^## ", text)),
        "commands": lines,
        "links": [link for link in re.findall(r"\]\(([^)]+)\)", text) if "README" not in link],
        "rows": [row for row in rows if row.isascii() and re.match(r"`(?!make)|\d+( \+ n)?$", row)],
    }


def _table(page: str, head: str) -> list[str]:
    """Return the first column of the table whose first column is headed so."""
    lines = (ROOT / page).read_text("utf-8").splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| {head} |")) + 2
    end = next(i for i in range(start, len(lines)) if not lines[i].startswith("|"))
    return [line.split("|")[1] for line in lines[start:end]]


def _is_key(key: str) -> bool:
    """Return whether run.yaml has a key; below a mapping, every name is a key."""
    key = re.sub(r"\.\d+(?=\.)", "[]", key)  # an entry of a list, as `--set` names it
    if key in KEYS or f"{key}[]" in SECTIONS or key in SECTIONS:
        return True
    above = key.rpartition(".")[0]
    while above:
        if above in KEYS:
            return KEYS[above] == "mapping"
        above = above.rpartition(".")[0]
    return False


def _is_module(name: str) -> bool:
    """Return whether a module, or a name that one defines, is at this place."""
    module, _, attribute = name.rpartition(".")
    path = ROOT / name.replace(".", "/")
    if path.with_suffix(".py").exists() or path.is_dir():
        return True
    file = (ROOT / module.replace(".", "/")).with_suffix(".py")
    return file.exists() and re.search(rf"\b{attribute}\b", file.read_text("utf-8")) is not None


def _commands(command: Any = None, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every command with its name, such as `deploy apply`."""
    command = command or typer.main.get_command(app)
    yield name, command
    if isinstance(command, TyperGroup):
        context = typer.Context(command)
        for child in command.list_commands(context):
            yield from _commands(command.get_command(context, child), f"{name} {child}".strip())


def _options(command: Any) -> Iterator[str]:
    for parameter in command.params:
        yield from (*parameter.opts, *parameter.secondary_opts)

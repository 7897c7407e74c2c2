"""The prose check finds each banned phrase with its place, and leaves code and plain English."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[3]
SCRIPT = ROOT / "scripts" / "check_prose.py"


@pytest.fixture(scope="module")
def prose() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_prose", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# prose: off
BANNED = [
    "Secrets come from the environment alone.",
    "The adapter lies beside the base.",
    "A form stands twice.",
    "A form that stood twice.",
    "Nothing may stand between.",
    "That value is no weight.",
    "These are no tensors.",
    "It was no list.",
    "The copy is held against the reference.",
    "The tests hold the tree against it.",
    "Holds every form that the run makes, from the first to the last one, against the reference.",
    "As of the function.",
    "A graph that heeds its input.",
    "Two events hardly meet.",
    "The server starts meanwhile.",
    "It is fast, and correct at that.",
    "Equal but for spacing.",
    "Nothing is read, so nothing but headers.",
    "The probe asks a port which it has not.",
    "The tensor is that which is tied.",
    "Whoever publishes the model says so.",
    "Nothing is told of the licence.",
    "The golden answers.",
    "The merged rung fails.",
    "A request that fails for good.",
    "Return the rate; None where no rate holds.",
    "What is dropped is on the disk.",
    "A note. What is dropped is on the disk.",
]

PLAIN = [
    "There is no chat template.",
    "If there are no rows, the command fails.",
    "The value is no longer used.",
    "TTFT stands for time to first token.",
    "The middleware is stand-alone and lets pods stand by.",
    "Only the environment holds secrets.",
    "What to type next: `tuneline up`.",
    "What does the server hold?",
    "The folder holds the weights. Nothing speaks against it.",
    "The file is next to the weights.",
]


@pytest.mark.parametrize("sentence", BANNED)
def test_a_banned_phrase_is_found(prose: ModuleType, tmp_path: Path, sentence: str) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"# Title\n\nPlain.\n\n{sentence}\n")
    assert [line for line, _, _ in prose.check(page)] == [5]


@pytest.mark.parametrize("sentence", PLAIN)
def test_plain_english_passes(prose: ModuleType, tmp_path: Path, sentence: str) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"{sentence}\n")
    assert prose.check(page) == []


def test_every_banned_phrase_has_an_example(prose: ModuleType) -> None:
    assert len(prose.PATTERNS) > 15
    for pattern, _ in prose.PATTERNS:
        assert any(pattern.search(sentence) for sentence in BANNED), pattern.pattern


def test_a_phrase_that_a_line_break_splits_is_found(prose: ModuleType, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("The value is\nno weight.\n")
    assert [(line, phrase) for line, phrase, _ in prose.check(page)] == [(1, "is no weight")]


@pytest.mark.parametrize(
    "code",
    [
        "`alone`",
        "```\nrun it alone\n```",
        "    tuneline alone",
        "[page](beside.md)",
        "<!-- prose: off -->\nalone\n<!-- prose: on -->",
    ],
)
def test_code_on_a_page_is_not_prose(prose: ModuleType, tmp_path: Path, code: str) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"Text.\n\n{code}\n\nText.\n")
    assert prose.check(page) == []


def test_a_sentence_of_41_words_is_too_long(prose: ModuleType, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"Short.\n\n{'word ' * 40}word.\n\n{'word ' * 39}word.\n")
    assert [line for line, _, _ in prose.check(page)] == [3]


def test_strings_and_comments_of_python_are_checked(prose: ModuleType, tmp_path: Path) -> None:
    module = tmp_path / "module.py"
    module.write_text(
        '"""Only this module."""\n'
        "# It is\n# no list.\n"
        "alone = 1\n"
        'message = f"{alone} stands twice"\n'
        'kept = "it stands twice"  # prose: ok\n'
        '# prose: off\nexamples = ["it stands alone"]\n# prose: on\n'
        'last = "it lies beside"\n'
    )
    assert [(line, phrase) for line, phrase, _ in prose.check(module)] == [
        (2, "is no list"),
        (5, "stands"),
        (10, "beside"),
    ]


def test_the_command_prints_file_and_line(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("Plain.\n\nThe file lies alone.\n")
    done = subprocess.run([sys.executable, SCRIPT, page], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stdout.startswith(f"{page}:3: 'alone': write 'only'")


def test_the_command_accepts_a_clean_page(tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text("Plain.\n")
    done = subprocess.run([sys.executable, SCRIPT, tmp_path], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_command_refuses_to_check_nothing(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, SCRIPT, tmp_path], capture_output=True, text=True)
    assert done.returncode == 2

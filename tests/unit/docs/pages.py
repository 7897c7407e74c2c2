"""The repository's pages, and the paths, commands, keys and names that they have.

Comments of the Makefile and of the examples' YAML files count as pages, for paths and commands."""

from __future__ import annotations

import re
import shlex
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[3]
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "examples").rglob("*.md")),
]
FOLDERS = (
    "tuneline", "training", "export", "serving", "loadtest", "k8s", "tests", "docs", "scripts",
    "benchmarks", "examples", "constraints",
)  # fmt: skip
COMMENTED = [
    ROOT / "Makefile",
    *sorted((ROOT / "examples").rglob("run.yaml")),
    *sorted((ROOT / "examples").rglob("*.yml")),
]
SECTIONS = (
    "data", "training", "evaluation", "reference", "export", "serving", "loadtest", "k8s",
    "release", "search",
)  # fmt: skip
FILE_SUFFIXES = ("json", "jsonl", "md", "pem", "pub", "py", "sig")
NOT_PATHS = {
    "tuneline/formula-", "tuneline/model-digest", "tuneline/model-loader", "tuneline/release",
    "tuneline/role", "tuneline/unreleased", "tuneline/waived",
}  # fmt: skip
"""Names on Kubernetes objects."""


@dataclass(frozen=True)
class Found:
    """A piece of a page, with the place that a failure names."""

    page: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {self.text[:60]}"


def paths() -> list[Found]:
    """Return every repository path that a page names."""
    one = rf"(?<![\w/.@$<-])(?:{'|'.join(FOLDERS)})/[\w./*-]+"
    found = [f for page in PAGES for f in _matches(page, one)]
    found += [f for line in comments() for f in _inside(line, one)]
    return [f for f in found if f.text.rstrip(".") not in NOT_PATHS]


def comments() -> list[Found]:
    """Return every comment of the files in COMMENTED."""
    return [
        Found(_name(path), number, match[1].strip())
        for path in COMMENTED
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        if (match := re.search(r"(?:^|\s)#\s(.*)$", line))
    ]


def modules() -> list[Found]:
    """Return every module that a page runs with `python -m`."""
    return [
        Found(f.page, f.line, f.text.split()[-1])
        for page in PAGES
        for f in _matches(page, rf"python -m\s+(?:{'|'.join(FOLDERS)})[\w.]*")
    ]


def commands() -> list[Found]:
    """Return every `tuneline` command line, from code blocks and from code in sentences."""
    found = []
    for page in PAGES:
        fenced = False
        for number, line in enumerate(page.read_text("utf-8").splitlines(), 1):
            fenced ^= line.startswith("```")
            in_block = fenced or line.startswith("    ")
            texts = [line.strip()] if in_block else re.findall(r"`(tuneline [a-z][^`]*)`", line)
            found += [
                Found(_name(page), number, text) for text in texts if text.startswith("tuneline ")
            ]
    in_comments = [f for line in comments() for f in _inside(line, r"\btuneline [a-z][^;`]*")]
    return found + [Found(f.page, f.line, f.text.rstrip(" .,")) for f in in_comments]


def arguments(command: str) -> list[str]:
    """Return the arguments of a command line, with notation for choices made concrete."""
    # Brackets mark what may be left out, except for those of a quoted list.
    told = command.split(" # ")[0].replace("UNIX_S", "0")
    plain = re.sub(r"('[^']*')|[\[\]]", lambda match: match[1] or "", told)
    words = [word.split("|")[0] for word in shlex.split(plain, comments=True)]
    return [word for word in words[1:] if word not in ("...", "…")]


def keys() -> list[Found]:
    """Return every key of run.yaml that a page names with its section, such as `data.path`, and the
    keys in the first column of a table that is headed `key of SECTION`."""
    one = rf"(?<![\w./-])(?:{'|'.join(SECTIONS)})(?:\.[a-z_0-9]+)+"
    found = [f for page in PAGES for f in _matches(page, one)]
    found += [f for line in comments() for f in _inside(line, one)]
    for page in PAGES:
        section = None
        for number, line in enumerate(page.read_text("utf-8").splitlines(), 1):
            head = re.match(r"\| key of `([^`]+)` \|", line)
            section = head[1] if head else section if line.startswith("|") else None
            first = re.sub(r"\(.*?\)", "", line.split("|")[1]) if section and not head else ""
            names = re.findall(r"`([a-z_0-9]+)[^`]*`", first)
            found += [Found(_name(page), number, f"{section}.{name}") for name in names]
    is_file = re.compile(rf"\.(?:{'|'.join(FILE_SUFFIXES)})$")
    return _first(f for f in found if not is_file.search(f.text))


def known_keys() -> dict[str, str]:
    """Return the keys of docs/configuration.md, which is generated, with their types."""
    found, section = {}, ""
    for line in (ROOT / "docs" / "configuration.md").read_text("utf-8").splitlines():
        if line.startswith("## "):
            title = re.match(r"## `([^ `]+)", line)
            section = f"{title[1]}." if title else ""
        elif row := re.match(r"\| `(\w+)` \| ([^|]*) \|", line):
            found[section + row[1]] = row[2].strip()
    return found


def options() -> list[Found]:
    """Return every option that a sentence names by itself, such as `--json`."""
    one = r"(?<=`)--[a-z][a-z-]*(?![a-z-]*\()"
    return _first(f for page in PAGES for f in _matches(page, one))


def targets() -> list[Found]:
    """Return every target of the Makefile that a page names."""
    return [f for page in PAGES for f in _matches(page, r"(?m)(?<=`make )[a-z]+|(?<=^make )[a-z]+")]


def extras() -> list[Found]:
    """Return every extra of the package that a page installs."""
    return [f for page in PAGES for f in _matches(page, r"(?<=tuneline\[)\w+(?=\])")]


def program_names() -> list[Found]:
    """Return every environment variable and metric of Tuneline that a page names."""
    one = r"\b(?:TUNELINE|tuneline)_[a-zA-Z_]+"
    return _first(f for page in PAGES for f in _matches(page, one))


def scripts() -> list[Found]:
    """Return every call of a script of this repository, with its options."""
    one = r"python (?:-m )?(?:benchmarks|scripts)[/.]\w+[^`\n]*"
    return [f for page in PAGES for f in _matches(page, one)]


def snippets(*languages: str) -> list[Found]:
    """Return every block of code in one of the languages, such as `yaml`.

    An indented block counts as YAML if it begins with a section of run.yaml.
    """
    found = []
    blocks = [rf"(?ms)^ *```(?:{'|'.join(languages)})\n(.*?)^ *```"]
    if "yaml" in languages:
        blocks.append(rf"(?m)(?<=\n\n)((?= {{4}}(?:{'|'.join(SECTIONS)}):\n)(?: {{4}}.*\n)+)")
    for page in PAGES:
        text = page.read_text("utf-8")
        for match in (m for block in blocks for m in re.finditer(block, text)):
            code = textwrap.dedent(match[1])
            found.append(Found(_name(page), text.count("\n", 0, match.start()) + 1, code))
    return found


def snake_names() -> list[Found]:
    """Return every name such as `stall_after_s` that a page has as code."""
    one = r"(?<=`)(?!tuneline_)[a-z][a-z0-9]*(?:_[a-z0-9]+)+"
    read = [page for page in PAGES if page.name != "style.md"]
    return _first(f for page in read for f in _matches(page, one))


def file_names() -> list[Found]:
    """Return every file of an artifact that a page names without a folder."""
    one = r"(?<=`)[\w-]+\.(?:db|html|json|jsonl|png|sig)(?=`)"
    return _first(f for page in PAGES for f in _matches(page, one))


def links() -> list[Found]:
    """Return every relative link, with its anchor."""
    found = [f for page in PAGES for f in _matches(page, r"(?<=\]\()[^)\s]+(?=\))")]
    found += [f for page in PAGES for f in _matches(page, r'(?<=src=")[^"]+|(?<=srcset=")[^"]+')]
    return [f for f in found if not f.text.startswith("http")]


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"(?m)^#+ (.*)$", text)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


def _matches(page: Path, pattern: str) -> Iterator[Found]:
    text = page.read_text("utf-8")
    for match in re.finditer(pattern, text):
        yield Found(_name(page), text.count("\n", 0, match.start()) + 1, match[0])


def _first(found: Iterable[Found]) -> list[Found]:
    """Return the first place of each text."""
    places: dict[str, Found] = {}
    for one in found:
        places.setdefault(one.text, one)
    return list(places.values())


def _inside(found: Found, pattern: str) -> Iterator[Found]:
    for match in re.finditer(pattern, found.text):
        yield Found(found.page, found.line, match[0])


def _name(page: Path) -> str:
    return str(page.relative_to(ROOT))

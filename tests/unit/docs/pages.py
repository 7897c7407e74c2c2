"""The repository's pages, and the paths, commands and snippets that they name."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
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
    return [f for f in found if f.text.rstrip(".") not in NOT_PATHS]


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
    return found


def arguments(command: str) -> list[str]:
    """Return the arguments of a command line, with notation for choices made concrete."""
    plain = re.sub(r"[\[\]]", "", command.split(" # ")[0]).replace("UNIX_S", "0")
    words = [word.split("|")[0] for word in shlex.split(plain, comments=True)]
    return [word for word in words[1:] if word not in ("...", "…")]


def snippets() -> list[Found]:
    """Return every YAML block."""
    found = []
    for page in PAGES:
        text = page.read_text("utf-8")
        for match in re.finditer(r"^```yaml\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
            found.append(Found(_name(page), text.count("\n", 0, match.start()) + 1, match[1]))
    return found


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


def _name(page: Path) -> str:
    return str(page.relative_to(ROOT))

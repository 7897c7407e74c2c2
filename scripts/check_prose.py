"""Find phrases that docs/style.md bans: `python scripts/check_prose.py PATH...`.

Reads the prose of Markdown files (without code) and the docstrings, comments and messages of Python
files. Prints `file:line: phrase: what to write instead` and exits with 1 if it finds any.
A Markdown block between `<!-- prose: off -->` and `<!-- prose: on -->`, a Python block between
`# prose: off` and `# prose: on`, and a Python line that ends with `# prose: ok` are not checked.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path

MAX_WORDS = 40
"""Longest sentence on a Markdown page. The style page asks for 25; lists of names need more."""

BANNED: dict[str, str] = {
    r"(?<!stand-)\balone\b": "write 'only', or 'by itself' for a person or a process",
    r"\bbeside\b": "write 'next to' or 'with'",
    r"\b(?:stands?|stood)\b(?!-| for\b| by\b)": "write 'is' or 'appears'",  # prose: ok
    r"(?<![Tt]here )\b(?:is|are|was|were)\s+no\s+(?!(?:longer|more|less|later|earlier|fewer)\b)"
    r"\w+": "write 'is not a …'",
    r"\b(?:[Hh]eld|[Hh]olds?|[Hh]olding)\s+(?:[^\s.;:?]+\s+){0,20}?against\b": (
        "write 'compare … with …'"
    ),
    r"\b[Aa]s of\b": "name the function or the date",
    r"\b(?:heeds?|heeded|heeding)\b": "write 'uses' or 'reads'",
    r"\bhardly\b": "write 'rarely', 'almost never' or a number",
    r"\bmeanwhile[.;]": "move the time to the front of the sentence",
    r"\bat that[.;]": "write 'too', or nothing",
    r"\bbut for\b": "write 'except for'",
    r"\bnothing but\b": "write 'only'",
    r"\b(?:has|have|had) not[.,;]": "write 'does not have'",
    r"\bthat which\b": "name the noun",
    r"\b(?:[Ww]hoever|[Ww]hatsoever|[Tt]hereof|[Ww]herein|[Tt]hereby)\b": "name the noun",
    r"\b(?:is|are) (?:nothing )?told of\b": "write who says what to whom",
    r"\bgolden\b": "write 'reference'",
    r"\brungs?\b": "write 'row of the ladder'",
    r"\bfor good\b": "write 'permanently'",
    r"\b(?:[Nn]one|[Nn]ull|NaN|[Ee]mpty|[Ii]nfinite|[Ff]alse|PASS|FAIL|INVALID|INCONCLUSIVE) "
    r"where\b": "write 'if'",
    r"(?:^|(?<=[.:;]\s))What(?!\s+(?:to|next)\b)(?=\s)(?![^.?]*\?)": "begin with the noun",
}
PATTERNS = [(re.compile(pattern, re.MULTILINE), instead) for pattern, instead in BANNED.items()]

Finding = tuple[int, str, str]
"""Line, phrase, what to write instead."""


def check(path: Path) -> list[Finding]:
    """Return the findings in one Markdown or Python file, in the order of lines."""
    text = path.read_text(encoding="utf-8")
    found = _check_markdown(text) if path.suffix == ".md" else _check_python(text)
    return sorted(found)


def _check_markdown(text: str) -> Iterator[Finding]:
    prose = _without_code(text)
    yield from _banned(prose, first_line=1)
    for line, sentence in _sentences(prose):
        words = len(re.findall(r"[\w'’-]+", sentence))
        if words > MAX_WORDS:
            start = " ".join(sentence.split()[:6])
            yield line, f"{start} …", f"{words} words; write at most {MAX_WORDS}, better under 25"


def _without_code(text: str) -> str:
    """Return the text with code, links' addresses and switched-off blocks as spaces, lines kept."""

    def blank(match: re.Match[str]) -> str:
        return re.sub(r"[^\n]", " ", match[0])

    def keep_place(match: re.Match[str]) -> str:
        return "x" * len(match[0]) if "\n" not in match[0] else blank(match)

    for pattern in (r"<!-- prose: off -->.*?<!-- prose: on -->", r"^```.*?^```", r"^~~~.*?^~~~"):
        text = re.sub(pattern, blank, text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"(?m)^(?: {4}|\t)\S.*$", blank, text)
    text = re.sub(r"`[^`]*`", keep_place, text)
    text = re.sub(r"(?m)^#.*$", blank, text)
    return re.sub(r"\]\([^)]*\)", blank, text)


def _sentences(prose: str) -> Iterator[tuple[int, str]]:
    """Yield the first line and the text of each sentence outside tables."""
    prose = re.sub(r"(?m)^\s*\|.*$", "", prose)
    place = 0
    for part in re.split(r"((?<=[.!?:;])\s+|\n\s*\n|\n\s*(?:[-*]|\d+\.)\s)", prose):
        if part.strip():
            start = place + len(part) - len(part.lstrip())
            yield prose.count("\n", 0, start) + 1, part.strip()
        place += len(part)


def _check_python(text: str) -> Iterator[Finding]:
    lines = text.splitlines()
    off = _lines_switched_off(lines)
    seen = set()
    for line, prose in [*_strings(text), *_comments(text)]:
        for finding in _banned(prose, first_line=line):
            found_line = min(finding[0], len(lines))
            is_off = found_line in off or lines[found_line - 1].endswith("# prose: ok")
            if finding not in seen and not is_off:
                seen.add(finding)
                yield finding


def _lines_switched_off(lines: list[str]) -> set[int]:
    """Return the numbers of the lines between `# prose: off` and `# prose: on`."""
    off, is_off = set(), False
    for number, line in enumerate(lines, start=1):
        is_off = (is_off or line == "# prose: off") and line != "# prose: on"
        if is_off:
            off.add(number)
    return off


def _strings(text: str) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(text)):
        if (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and " " in node.value.strip()
        ):
            yield node.lineno, node.value


def _comments(text: str) -> Iterator[tuple[int, str]]:
    """Yield each block of neighbouring comment lines with the number of its first line."""
    block: list[str] = []
    first = last = 0
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type != tokenize.COMMENT:
            continue
        line = token.start[0]
        if block and line == last + 1:
            block.append(token.string.lstrip("# "))
        else:
            if block:
                yield first, "\n".join(block)
            first, block = line, [token.string.lstrip("# ")]
        last = line
    if block:
        yield first, "\n".join(block)


def _banned(prose: str, first_line: int) -> Iterator[Finding]:
    starts = [match.end() for match in re.finditer("\n", prose)]
    for pattern, instead in PATTERNS:
        for match in pattern.finditer(prose):
            line = first_line + bisect_right(starts, match.start())
            yield line, " ".join(match[0].split()), instead


def main(arguments: list[str]) -> int:
    """Check files, and folders with every .md and .py file in them; return the exit code."""
    files: list[Path] = []
    for argument in arguments:
        path = Path(argument)
        inside = [p for p in path.rglob("*") if p.suffix in (".md", ".py")]
        files += sorted(inside) if path.is_dir() else [path]
    if not files:
        print("usage: python scripts/check_prose.py PATH...", file=sys.stderr)
        return 2
    found = [(path, finding) for path in files for finding in check(path)]
    for path, (line, phrase, instead) in found:
        print(f"{path}:{line}: {phrase!r}: {instead}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

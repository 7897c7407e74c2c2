"""`python -m serving.command.parser_worker`: give flags to vLLM's own parser, without a server.

Reads a JSON list on standard input, with a list of words for each flag. The last line on standard
output is a JSON list with a problem, or null, for each flag. A problem with the flags as a whole is
one more entry. vLLM's log may fill the lines before.
"""

from __future__ import annotations

import contextlib
import difflib
import gc
import io
import json
import sys
from collections.abc import Iterator, Sequence
from typing import Any


class _Refused(Exception):
    """vLLM's parser ends the process on an error; this ends one flag."""


def main() -> None:
    gc.disable()  # the modules stay loaded until the process ends
    print(f"\n{json.dumps(problems_of(json.load(sys.stdin)))}", flush=True)


def problems_of(flags: Sequence[Sequence[str]]) -> list[str | None]:
    """Return why vLLM's parser refuses each flag, and, if it takes each, all of them together."""
    parser = _vllm_parser()
    problems = [_problem(parser, words) for words in flags]
    if not any(problems):
        problems.append(_problem_together(parser, [word for words in flags for word in words]))
    return problems


def _vllm_parser() -> Any:
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    class Parser(FlexibleArgumentParser):  # type: ignore[misc]
        def error(self, message: str) -> Any:
            raise _Refused(message)

        def exit(self, status: int = 0, message: str | None = None) -> Any:
            raise _Refused(message or f"ends vLLM with status {status}")

    return make_arg_parser(Parser(prog="vllm serve"))


def _problem(parser: Any, words: Sequence[str]) -> str | None:
    """Return why vLLM refuses a flag. A prefix of a flag's name is refused: argparse takes any
    prefix for the flag, and so passes the list of flags that Tuneline sets itself."""
    name = words[0].partition("=")[0].partition(".")[0].rstrip("+")
    known = parser._option_string_actions
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        return f"vLLM has no flag {name}" + (f"; did you mean {near[0]}?" if near else "")
    with _first_line_of_errors() as lines:
        parser.parse_args(["model", *words])
    return next(iter(lines), None)


def _problem_together(parser: Any, words: Sequence[str]) -> str | None:
    from vllm.entrypoints.launchers.cli_args import validate_parsed_serve_args

    with _first_line_of_errors() as lines:
        validate_parsed_serve_args(parser.parse_args(["model", *words]))
    return next(iter(lines), None)


@contextlib.contextmanager
def _first_line_of_errors() -> Iterator[list[str]]:
    lines: list[str] = []
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield lines
    except (_Refused, ValueError, TypeError, KeyError, ImportError, OSError) as error:
        text = str(error).strip() or type(error).__name__
        lines.append(" ".join(text.split())[:300])


if __name__ == "__main__":
    main()

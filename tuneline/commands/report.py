"""The command that makes the report of a run or of a release again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tuneline.commands.option_values import open_run, refuse
from tuneline.commands.options import AsJson, Overrides, RunsDir
from tuneline.commands.printing import emit
from tuneline.core.errors import ConfigError
from tuneline.pipeline import DEFAULT_RUNS


def report(
    target: Annotated[
        Path,
        typer.Argument(metavar="RUN.yaml|DIR", help="A run, or the directory of a release."),
    ],
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="A page for a browser.")] = None,
    markdown: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The same for a pull request.")
    ] = None,
    junit: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The gates as JUnit XML.")
    ] = None,
    overrides: Overrides = None,
    runs_dir: RunsDir = DEFAULT_RUNS,
    as_json: AsJson = False,
) -> None:
    """Write the report of a run or of its release, whatever its verdict.

    Without an option, the page goes to `report.html` in the run's directory.
    """
    from tuneline.report import facts_of_folder, facts_of_run
    from tuneline.report.write import HTML_FILE, write_files

    if target.is_dir():
        refuse("of a directory", {"--set": overrides})
        facts, folder = facts_of_folder(target), target.absolute().parent
    else:
        run = open_run(target, overrides, runs_dir)
        facts, folder = facts_of_run(run), run.dir
    if html is None and markdown is None and junit is None:
        html = folder / HTML_FILE
    named = {"html": html, "markdown": markdown, "junit": junit}
    paths = {name: path for name, path in named.items() if path is not None}
    for name, path in paths.items():
        _require_place(f"--{name}", path)
    write_files(facts, **paths)
    verdict = "not released" if facts.release is None else facts.release.verdict.value
    lines = [f"{facts.name}: {verdict}", *(f"written: {path}" for path in paths.values())]
    written = {name: str(path) for name, path in paths.items()}
    emit({"verdict": verdict, **written}, lines, as_json)


def _require_place(option: str, path: Path) -> None:
    """Check that a file can be written without a change of an artifact.

    Raises:
        ConfigError: The directory is missing or is an artifact, or the path is a directory.
    """
    from tuneline.core.files import MANIFEST

    folder = path.absolute().parent
    if path.is_dir():
        raise ConfigError(f"{option} {path}: is a directory; expected a file")
    if not folder.is_dir():
        raise ConfigError(
            f"{option} {path}: there is no directory {folder}", hint=f"Try: mkdir -p {folder}"
        )
    if (folder / MANIFEST).is_file():
        raise ConfigError(
            f"{option} {path}: {folder.name} is an artifact, which is written once; expected "
            "another directory"
        )

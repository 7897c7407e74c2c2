"""What the commands share: their options, and how they open inputs and print results."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from typer.core import TyperGroup

from tuneline.core.errors import ConfigError
from tuneline.core.progress import logger

if TYPE_CHECKING:
    from tuneline.core.artifact import Artifact
    from tuneline.core.endpoint import Endpoint
    from tuneline.pipeline.run_config import Run

RunFile = Annotated[Path, typer.Argument(metavar="RUN.yaml", help="The run's configuration.")]
RunOrDir = Annotated[
    Path, typer.Argument(metavar="RUN.yaml|DIR", help="A run, or the directory of one artifact.")
]
OptionalRun = Annotated[
    Path | None, typer.Argument(metavar="[RUN.yaml]", help="The run's configuration.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key: training.learning_rate=1e-4"),
]
RunsDir = Annotated[
    Path, typer.Option("--runs-dir", help="Where runs keep their artifacts.", metavar="DIR")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
Out = Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Where the result goes.")]
Url = Annotated[
    str | None, typer.Option("--url", help="An OpenAI-compatible server, up to and with /v1.")
]
ModelName = Annotated[str | None, typer.Option("--model", help="The model's name on that server.")]
KeyEnv = Annotated[
    str | None,
    typer.Option(
        "--api-key-env",
        metavar="VARIABLE",
        help="Environment variable with the key (VLLM_API_KEY).",
    ),
]
GroupSize = Annotated[
    int | None, typer.Option(help="Under w4a16, values that share a scale: 128, 64 or 32.")
]
T = TypeVar("T")
DEFAULT_RUNS = Path("runs")
DEFAULT_KEY_ENV = "VLLM_API_KEY"
HELP = ("-h", "--help")
emitted = False
"""Whether this command has printed its result."""


class DefaultCommand(TyperGroup):
    """A group that can be used without naming a command: `loadtest RUN.yaml` is
    `loadtest run RUN.yaml`, and `export RUN.yaml` is `export merge RUN.yaml`."""

    default: str

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        # A word that is no command and no file is a misspelt command: the group says so.
        is_word = bool(args) and args[0].isalpha() and not Path(args[0]).exists()
        if args and args[0] not in self.commands and not is_word and args[0] not in HELP:
            args = [self.default, *args]
        return super().parse_args(ctx, args)


def open_run(run_file: Path, overrides: list[str] | None, runs_dir: Path) -> Run:
    from tuneline.pipeline.run_config import load_run

    return load_run(run_file, overrides or (), runs_dir)


def run_stages(run: Run, until: tuple[str, ...], as_json: bool, *, ladder: bool = False) -> None:
    """Run stages of a line with a summary line each, then print the line's results.

    With `ladder` every rung is proven, also those after one that fails, and the ladder is kept.
    """
    from tuneline.pipeline.plan import Planned
    from tuneline.pipeline.results import of_kind, results, summarize
    from tuneline.pipeline.stage import Stage
    from tuneline.pipeline.up import up as up_run

    stages: list[dict[str, Any]] = []

    def on_stage(entry: Planned, artifact: Artifact, wall_s: float) -> None:
        ran = "up to date" if entry.state == "current" else f"{wall_s:.1f} s"
        logger.info("  %-18s %-10s  %s", entry.stage.name, ran, summarize(artifact))
        done.append((entry.stage, artifact))
        stages.append(
            {
                "stage": entry.stage.name,
                "ran": entry.state != "current",
                "wall_s": round(wall_s, 3),
                "path": str(artifact.path),
                "digest": artifact.digest,
                "metrics": artifact.manifest.metrics,
            }
        )

    done: list[tuple[Stage, Artifact]] = []
    try:
        up_run(run, until, on_stage, keep_going=ladder)
    finally:
        # What has been measured is shown, also where a verdict ends the line.
        if stages:
            document: dict[str, Any] = {"name": run.config.name, "stages": stages}
            lines = results(done)
            proofs = of_kind(done, "parity")
            if ladder and proofs:
                from tuneline.pipeline.ladder import write_ladder

                document["ladder"] = str(write_ladder(run.dir, proofs).path)
                lines.append(f"ladder: {document['ladder']}")
            emit(document, lines, as_json)


def endpoint_of(url: str, model: str | None, api_key_env: str | None) -> Endpoint:
    from tuneline.core.endpoint import Endpoint, read_key, split_url

    split_url(url)
    key = read_key(os.environ, api_key_env or DEFAULT_KEY_ENV)
    return Endpoint(url.rstrip("/"), required(model, "--model"), key)


def refuse(where: str, options: dict[str, Any]) -> None:
    """An option that would do nothing is an error, not a surprise."""
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise ConfigError(f"{', '.join(given)}: has no meaning {where}")


def required(value: T | None, option: str) -> T:
    if value is None:
        example = {"--out": "--out DIR", "--model": "--model NAME"}.get(option)
        raise ConfigError(f"{option} is required here", hint=f"Try: {example}" if example else None)
    return value


def emit_artifact(artifact: Artifact, as_json: bool) -> None:
    from tuneline.pipeline.results import describe_artifact

    document = {"path": str(artifact.path), **artifact.manifest.model_dump()}
    if artifact.kind == "load-report":
        # A pod's log is all that outlives it: the whole report goes there.
        document["report"] = json.loads((artifact.path / "report.json").read_text("utf-8"))
    emit(document, describe_artifact(artifact), as_json)


def emit(document: Any, lines: list[str], as_json: bool) -> None:
    global emitted
    emitted = True
    print(json.dumps(document, indent=2) if as_json else "\n".join(lines), flush=True)

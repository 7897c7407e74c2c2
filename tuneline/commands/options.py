"""The options that several commands take, as typer reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

RunFile = Annotated[Path, typer.Argument(metavar="RUN.yaml", help="The run's configuration.")]
RunOrDir = Annotated[
    Path, typer.Argument(metavar="RUN.yaml|DIR", help="A run, or the directory of one artifact.")
]
OptionalRun = Annotated[
    Path | None, typer.Argument(metavar="RUN.yaml", help="The run's configuration.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key: training.learning_rate=1e-4"),
]
RunsDir = Annotated[
    Path, typer.Option("--runs-dir", help="Where runs keep their artifacts.", metavar="DIR")
]
ReleaseDir = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="The release; by default the newest of the run's model."),
]
PushTo = Annotated[
    str | None,
    typer.Option(
        "--push-to",
        metavar="s3://BUCKET/PATH",
        help="Object storage that gets each artifact as soon as it is whole.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
Out = Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Where the result goes.")]
Url = Annotated[
    str | None, typer.Option("--url", help="An OpenAI-compatible server, up to and with /v1.")
]
ModelName = Annotated[
    str | None,
    typer.Option("--model", help="The model's name on that server (the only one)."),
]
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
ModelId = Annotated[str, typer.Option("--model", help="Model folder or Hugging Face id.")]
OutDir = Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the result goes.")]
Rate = Annotated[float | None, typer.Option(help="Open loop: requests per second.")]
Concurrency = Annotated[int | None, typer.Option(help="Closed loop: streams at once.")]
Requests = Annotated[int | None, typer.Option(help="How many requests to send.")]
Duration = Annotated[float | None, typer.Option(help="For how many seconds to send.")]
MaxTokens = Annotated[int | None, typer.Option(help="Most tokens per answer.")]
Prompts = Annotated[Path | None, typer.Option(help="JSON Lines, a list of chat messages per line.")]
NewRun = Annotated[
    Path | None,
    typer.Option("--out", metavar="FILE", help="The new run.yaml (next to the old one)."),
]

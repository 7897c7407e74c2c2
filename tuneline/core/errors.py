"""Every error a user can meet, and the exit code the command line gives it.

TunelineError
├── ConfigError            2  an option, a run.yaml or a value that cannot be used
│   └── DataError          2  a data file that cannot be used
├── ArtifactError          3  a directory that is not the artifact it should be
│   ├── NotAnArtifactError 3  no manifest: missing, foreign or half-written
│   └── TamperedError      3  the files differ from the manifest
├── MetricError            2  a search for a figure that its stage does not have; only of `search`
├── MissingError           4  a library, a device, a model or disk space that is not there
│   ├── DiskFullError      4
│   ├── GpuMemoryError     4  a GPU with too little memory for a step
│   └── PeerLostError      4  a process of a training that ended
├── ServerError            5  a server that does not start, dies or answers wrongly
└── VerdictError           6  a measured verdict that is not met
    ├── InconclusiveError  7  a measurement too small to judge by
    └── InvalidError       8  a measurement that does not describe the server

`MetricError` and `PeerLostError` are in the modules that raise them: `tuneline.pipeline.search` and
`training.launch.preflight`. A search records a `ConfigError` of one trial and goes on; a
`MetricError` ends it.

Exit code 1 is for bugs: an exception outside this tree. A message has the problem, its place and
the expected value; the hint says what to type next.
"""

from __future__ import annotations

from collections.abc import Sequence


class TunelineError(Exception):
    """Base of the tree; raise a class below it.

    Args:
        message: The problem, its place (value, path, line), and the expected value.
        hint: The next command to type, or the change to make.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  {self.hint}" if self.hint else self.message


class ConfigError(TunelineError):
    """One or more problems in options or configuration, all shown at once."""

    exit_code = 2

    def __init__(self, problems: str | Sequence[str], *, hint: str | None = None) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems), hint=hint)


class DataError(ConfigError):
    """One or more problems in a data file, each with its file and line."""


class ArtifactError(TunelineError):
    """A directory that is not the artifact it should be."""

    exit_code = 3


class NotAnArtifactError(ArtifactError):
    """No manifest: missing, foreign or half-written."""


class TamperedError(ArtifactError):
    """The files differ from the manifest."""


class MissingError(TunelineError):
    """A library, a device, a model or disk space that is not there."""

    exit_code = 4


class DiskFullError(MissingError):
    """The file system has too little space for the files of a step."""


class GpuMemoryError(MissingError):
    """A GPU that has too little memory for a step."""


class ServerError(TunelineError):
    """A server that does not start, dies or answers wrongly."""

    exit_code = 5


class VerdictError(TunelineError):
    """A measured verdict that is not met."""

    exit_code = 6


class InconclusiveError(VerdictError):
    """A measurement too small to judge by."""

    exit_code = 7


class InvalidError(VerdictError):
    """A measurement that does not describe the server."""

    exit_code = 8

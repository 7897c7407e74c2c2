"""One process of a training that `training.launch.processes` started: `python -m … SPEC`."""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tuneline.core.environment import refuse_fetched_kernels
from tuneline.core.errors import TunelineError
from tuneline.core.parent import end_with_parent

HELDOUT_FILE = "heldout.jsonl"


def error_file(folder: Path, rank: int) -> Path:
    """Return where a process writes what ended it."""
    return folder / f"rank-{rank}.error.json"


def main(spec_file: Path) -> int:
    """Train as the specification says, and write into a file what ended this process."""
    spec: dict[str, Any] = json.loads(spec_file.read_text(encoding="utf-8"))
    folder, rank = spec_file.parent, int(os.environ["RANK"])
    end_with_parent(int(spec["parent"]))
    refuse_fetched_kernels()
    try:
        _train(spec, folder if rank == 0 and spec["reports_heldout"] else None)
    except TunelineError as error:
        said = {"kind": type(error).__name__, "message": error.message, "hint": error.hint}
        error_file(folder, rank).write_text(json.dumps(said), encoding="utf-8")
        return error.exit_code
    except Exception:  # noqa: BLE001 (the parent says which process had which bug)
        said = {"kind": "", "message": traceback.format_exc(), "hint": None}
        error_file(folder, rank).write_text(json.dumps(said), encoding="utf-8")
        traceback.print_exc()
        return 1
    return 0


def _train(spec: dict[str, Any], reports: Path | None) -> None:
    from training.config import TrainingConfig
    from training.train import train_adapter
    from tuneline.core.artifact import open_artifact
    from tuneline.core.progress import set_up_logging
    from tuneline.models.source import ModelSource

    set_up_logging()
    base = ModelSource(**{**spec["base"], "path": Path(spec["base"]["path"])})

    def report(step: int, figures: Mapping[str, float]) -> None:
        assert reports is not None  # noqa: S101 (for the type checker)
        with (reports / HELDOUT_FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps([step, figures]) + "\n")

    train_adapter(
        TrainingConfig.model_validate(spec["config"]),
        open_artifact(Path(spec["dataset"])),
        base,
        Path(spec["out"]),
        relative_to=Path(spec["relative_to"]),
        on_heldout=None if reports is None else report,
    )


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))

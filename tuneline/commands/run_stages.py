"""How commands run stages of a line: a summary per stage on stderr, the results on stdout."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tuneline.commands.printing import emit, fault, set_goes_on
from tuneline.core.progress import logger

if TYPE_CHECKING:
    from tuneline.core.artifact import Artifact
    from tuneline.pipeline.plan import Planned
    from tuneline.pipeline.run_config import Run
    from tuneline.pipeline.stage import Stage


def run_stages(
    run: Run,
    until: tuple[str, ...] = (),
    *,
    as_json: bool,
    ladder: bool = False,
    push_to: str | None = None,
) -> None:
    """Run stages with those that they need, and print what the line has shown so far.

    Args:
        run: The run.
        until: Names of the stages; all of them by default.
        as_json: Whether one JSON document is printed.
        ladder: Whether a failed proof stops nothing, and all proofs are kept as a ladder.
        push_to: A place in object storage that gets a copy of each artifact when it is there.

    Raises:
        TunelineError: A stage fails, or a verdict is not PASS; the results are printed all the
            same.
    """
    from tuneline.core.storage import push_artifact
    from tuneline.pipeline.artifact_summary import summarize
    from tuneline.pipeline.parity_ladder import write_ladder
    from tuneline.pipeline.run_report import of_kind, run_report_lines
    from tuneline.pipeline.stored import place_of
    from tuneline.pipeline.up import up

    set_goes_on()
    done: list[tuple[Stage, Artifact]] = []
    entries: list[dict[str, Any]] = []

    def on_stage(entry: Planned, artifact: Artifact, wall_s: float) -> None:
        ran = "up to date" if entry.state == "current" else f"{wall_s:.1f} s"
        logger.info("  %-18s %-10s  %s", entry.stage.name, ran, summarize(artifact))
        done.append((entry.stage, artifact))
        if push_to is not None:
            push_artifact(artifact, place_of(run, artifact, push_to))
        entries.append(
            {
                "stage": entry.stage.name,
                "ran": entry.state != "current",
                "wall_s": round(wall_s, 3),
                "path": str(artifact.path),
                "digest": artifact.digest,
                "metrics": artifact.manifest.metrics,
            }
        )

    document: dict[str, Any] = {"name": run.config.name, "stages": entries}
    try:
        up(run, until, on_stage, keep_going=ladder)
    except (Exception, SystemExit) as error:  # a signal, too, leaves the line unfinished
        document["error"] = fault(error)
        raise
    finally:
        if done:
            lines = run_report_lines(done)
            proofs = of_kind(done, "parity")
            if ladder and proofs:
                document["ladder"] = str(write_ladder(run.dir, proofs).path)
                lines.append(f"ladder: {document['ladder']}")
            emit(document, lines, as_json)

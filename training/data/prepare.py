"""Data intake: check every row, clean, split, and write a `dataset` artifact with its report."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from training.config import DataConfig
from training.data.row import Row
from training.data.rows import Counts, stream_rows
from training.data.sources import Source, open_sources
from training.data.template_settings import write_template_settings
from training.data.weights import apply_weights
from tuneline.core.artifact import Artifact, Input, file_sha256, new_artifact, open_artifact
from tuneline.core.dataset import HELDOUT_FILE
from tuneline.core.errors import DataError, NotAnArtifactError
from tuneline.core.messages import Message, content_of
from tuneline.core.progress import logger

TRAIN_FILE = "train.jsonl"
REPORT_FILE = "report.json"


def prepare_dataset(config: DataConfig, *, relative_to: Path, out: Path) -> Artifact:
    """Check, clean and split rows into a `dataset` artifact.

    Exact duplicates are dropped. Rows whose prompt is also held out (compared without regard to
    case and spacing) are dropped from the training rows. Without held-out rows of their own, whole
    prompts are held out, chosen by a hash of seed and prompt: the same file splits the same way,
    and a prompt is never on both sides. The weights of sources apply to the training rows that are
    left.

    Args:
        config: The section `data`.
        relative_to: The folder that its paths start from.
        out: The new artifact.

    Raises:
        DataError: A file is missing, or rows cannot be used; all are named.
        MissingError: A dataset of the Hub cannot be had.
    """
    sources, heldout_source = open_sources(config, relative_to)
    inputs = [source.as_input() for source in [*sources, *filter(None, [heldout_source])]]
    where = ", ".join(source.config.path for source in sources)
    counts, heldout_counts = Counts(), Counts()
    rows = _read(config, sources, counts)
    report: dict[str, Any] = {"num_rows_read": counts.num_read}
    rows, report["num_duplicates_dropped"] = _without_duplicates(rows)
    counts.drop("exact duplicate", report["num_duplicates_dropped"])
    if heldout_source is None:
        train, heldout = _split(rows, config.heldout_fraction or 0.0, config.seed, where)
        counts.drop("held out", len(heldout))
        heldout_counts.num_read = len(heldout)
    else:
        train = rows
        heldout = _read(config, [heldout_source], heldout_counts)
        report["num_heldout_rows_read"] = heldout_counts.num_read
        heldout, report["num_heldout_duplicates_dropped"] = _without_duplicates(heldout)
        heldout_counts.drop("exact duplicate", report["num_heldout_duplicates_dropped"])
    train, report["num_leaked_dropped"] = _without_leaks(train, heldout)
    counts.drop("prompt is held out", report["num_leaked_dropped"])
    counts.check(len(train))
    heldout_counts.check(len(heldout))
    if not train:
        held = config.heldout_path or f"split {config.heldout_split}"
        raise DataError(f"{where}: every prompt is also held out in {held}; none is left")
    weights = [source.config.weight for source in sources]
    num_before = len(train)
    train, num_left_out = apply_weights(train, weights, config.seed)
    counts.drop("left out by weight", num_left_out)
    report |= {
        "dropped": counts.dropped,
        "heldout_dropped": heldout_counts.dropped,
        "num_repeated_by_weight": len(train) - (num_before - num_left_out),
        "num_train": len(train),
        "num_heldout": len(heldout),
        "num_prompts_with_different_answers": _contradictions(train),
        "num_heldout_prompts_with_different_answers": _contradictions(heldout),
        "prompt_characters": _lengths([sum(len(content_of(m)) for m in r.prompt) for r in train]),
        "answer_characters": _lengths([len(row.answer) for row in train]),
    }
    _say(report)
    with new_artifact(out, "dataset", config=config.recorded(), inputs=inputs) as draft:
        _write(draft.dir / TRAIN_FILE, train)
        _write(draft.dir / HELDOUT_FILE, heldout)
        write_template_settings(config, draft.dir)
        text = json.dumps(report, indent=2) + "\n"
        (draft.dir / REPORT_FILE).write_text(text, encoding="utf-8")
        draft.metrics.update(report)
    return open_artifact(out, kind="dataset")


def dataset_rows(dataset: Artifact, file: str, num_rows: int | None = None) -> list[Row]:
    """The rows of `TRAIN_FILE` or `HELDOUT_FILE`, in order; `Row.line` counts in that file."""
    rows = []
    # Only "\n" ends a line here: text may hold the other line ends that `splitlines` knows.
    lines = (dataset.path / file).read_text(encoding="utf-8").removesuffix("\n").split("\n")
    try:
        for number, line in enumerate(lines[:num_rows], start=1):
            rows.append(Row.from_json(json.loads(line), number, file))
    except (ValueError, KeyError, AttributeError, TypeError):
        raise NotAnArtifactError(
            f"{dataset.path / file}: line {number}: expected prompt and completion messages"
        ) from None
    return rows


def _read(config: DataConfig, sources: Sequence[Source], counts: Counts) -> list[Row]:
    return list(
        stream_rows(sources, counts, system_prompt=config.system_prompt, bad_rows=config.bad_rows)
    )


def file_input(role: str, path: Path) -> Input:
    """A file by its digest, for a manifest."""
    return Input(role=role, kind="file", digest=f"sha256:{file_sha256(path)}")


def _without_duplicates(rows: Sequence[Row]) -> tuple[list[Row], int]:
    kept: dict[str, Row] = {}
    for row in rows:
        kept.setdefault(json.dumps(replace(row, fields={}).as_json()), row)
    return list(kept.values()), len(rows) - len(kept)


def _without_leaks(train: Sequence[Row], heldout: Sequence[Row]) -> tuple[list[Row], int]:
    held = {_prompt_key(row.prompt) for row in heldout}
    kept = [row for row in train if _prompt_key(row.prompt) not in held]
    return kept, len(train) - len(kept)


def _split(
    rows: Sequence[Row], fraction: float, seed: int, where: str
) -> tuple[list[Row], list[Row]]:
    keys = {_prompt_key(row.prompt) for row in rows}
    if len(keys) < 2:
        raise DataError(
            f"{where}: has one distinct prompt; expected at least two, to hold one out",
            hint="Give more rows, or a second file as data.heldout_path.",
        )
    ranked = sorted(keys, key=lambda key: hashlib.sha256(f"{seed}\0{key}".encode()).digest())
    num_heldout = min(max(round(fraction * len(keys)), 1), len(keys) - 1)
    held = set(ranked[:num_heldout])
    train = [row for row in rows if _prompt_key(row.prompt) not in held]
    return train, [row for row in rows if _prompt_key(row.prompt) in held]


def _prompt_key(prompt: Sequence[Message]) -> str:
    """Return a key that is equal for prompts that differ only in case and spacing."""
    return json.dumps(
        [[message["role"], " ".join(content_of(message).casefold().split())] for message in prompt]
    )


def _contradictions(rows: Sequence[Row]) -> int:
    answers = defaultdict(set)
    for row in rows:
        answers[_prompt_key(row.prompt)].add(row.answer.strip())
    return sum(len(found) > 1 for found in answers.values())


def _lengths(lengths: Sequence[int]) -> dict[str, float]:
    ranked = sorted(lengths)
    p95 = ranked[max(-(-95 * len(ranked) // 100) - 1, 0)]
    return {"min": ranked[0], "median": median(ranked), "p95": p95, "max": ranked[-1]}


def _write(path: Path, rows: Sequence[Row]) -> None:
    lines = (json.dumps(row.as_json(), ensure_ascii=False) + "\n" for row in rows)
    path.write_text("".join(lines), encoding="utf-8")


def _say(report: dict[str, Any]) -> None:
    dropped = report["num_duplicates_dropped"] + report.get("num_heldout_duplicates_dropped", 0)
    logger.info("  %d rows to train on, %d held out", report["num_train"], report["num_heldout"])
    if dropped:
        logger.info("  %d exact duplicates dropped", dropped)
    if report["num_leaked_dropped"]:
        logger.warning(
            "  %d training rows dropped: their prompts are held out", report["num_leaked_dropped"]
        )
    for where in ("", "heldout_"):
        if report[f"num_{where}prompts_with_different_answers"]:
            logger.warning(
                "  %d %sprompts have different answers",
                report[f"num_{where}prompts_with_different_answers"],
                where.replace("_", "-").replace("-", " "),
            )

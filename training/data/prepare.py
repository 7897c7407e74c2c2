"""Data intake: check every row, clean, split, and write a `dataset` artifact with its counts."""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Container, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from training.config import DataConfig, TrainingConfig
from training.data.checks.contradictions import num_disputed
from training.data.checks.length import limit_of
from training.data.checks.report import describe_example, dropped_rows, report_of, warn_of
from training.data.checks.run import Checked, Split, check_rows, require_accepted
from training.data.checks.sides import describe_share, require_both_sides
from training.data.checks.spool import Spool
from training.data.row import Row
from training.data.rows import Counts, stream_rows
from training.data.sources import Source, open_sources
from training.data.template_settings import write_template_settings
from training.data.weights import copies_of
from tuneline.core.artifact import Artifact, new_artifact, open_artifact
from tuneline.core.dataset import HELDOUT_FILE, TRAIN_FILE
from tuneline.core.errors import DataError, NotAnArtifactError
from tuneline.core.progress import logger
from tuneline.models.source import ModelSource


def prepare_dataset(
    config: DataConfig,
    *,
    relative_to: Path,
    out: Path,
    limit: tuple[ModelSource, TrainingConfig] | None = None,
) -> Artifact:
    """Check, clean and split rows into a `dataset` artifact.

    `data.checks` says what happens to the rows that a check finds. Without held-out rows of their
    own, whole prompts are held out, chosen by a hash of seed and prompt: the same file splits the
    same way, and a prompt is never on both sides. The weights of sources apply to the training rows
    that are left. Rows are read once and kept on disk, so memory does not grow with their text.

    Args:
        config: The section `data`.
        relative_to: The folder that its paths start from.
        out: The new artifact.
        limit: The base model and the section `training`, which say how many tokens a row has and
            may have, if `data.checks.length` is `fix`.

    Raises:
        DataError: A file is missing, or rows cannot be used; all are named.
        MissingError: A dataset of the Hub cannot be had.
    """
    sources, heldout_source = open_sources(config, relative_to)
    inputs = [source.as_input() for source in [*sources, *filter(None, [heldout_source])]]
    counts, heldout_counts = Counts(), Counts()
    out.parent.mkdir(parents=True, exist_ok=True)
    with (
        TemporaryDirectory(prefix=".rows-", dir=out.parent) as folder,
        Spool(Path(folder) / "rows.jsonl") as spool,
    ):
        spool.add(_read(config, sources, counts))
        split, max_tokens = None, None
        if limit is not None:
            inputs.append(limit[0].as_input("base"))
            max_tokens = limit_of(config, limit[0].path, limit[1])
        if heldout_source is None:
            split = Split(config.heldout_fraction or 0.0, config.group_by, config.stratify_by)
        else:
            spool.add(_read(config, [heldout_source], heldout_counts), heldout=True)
        checked = check_rows(spool, config.checks, seed=config.seed, split=split, limit=max_tokens)
        require_accepted(checked)
        num_held_out = _count(checked, counts, heldout_counts, is_split=split is not None)
        require_both_sides(config, ", ".join(s.config.path for s in sources), checked)
        weights = [source.config.weight for source in sources]
        trained = checked.whole.kept(False)
        copies = copies_of([spool.sources[row] for row in trained], weights, config.seed)
        if not sum(copies):
            raise DataError(
                f"data.sources: the weights leave none of {len(copies):,} training rows; expected "
                "at least one",
                hint="Try: a greater weight.",
            )
        counts.drop("left out by weight", copies.count(0))
        found = report_of(checked)
        report = _counts_of(checked, counts, heldout_counts, found)
        report |= {
            "num_repeated_by_weight": sum(copies) - sum(1 for number in copies if number),
            "num_train": sum(copies),
            "num_heldout": num_held_out,
        }
        if heldout_source is not None:
            report["num_heldout_rows_read"] = heldout_counts.num_read
            num_twice = heldout_counts.dropped.get("exact duplicate", 0)
            report["num_heldout_duplicates_dropped"] = num_twice
        _say(report, checked, describe_share(config, checked))
        with new_artifact(out, "dataset", config=config.recorded(), inputs=inputs) as draft:
            _write(draft.dir / TRAIN_FILE, checked.rows(False), copies)
            _write(draft.dir / HELDOUT_FILE, checked.rows(True))
            write_template_settings(config, draft.dir)
            details = {name: found[name] for name in ("checks", "scripts", "languages", "labels")}
            # The digest covers the rows only: other checks that leave the same rows train nothing
            # again.
            draft.metrics.update(report | _without_folders(details))
    return open_artifact(out, kind="dataset")


def dataset_rows(
    dataset: Artifact, file: str, num_rows: int | None = None, *, drawn: bool = False
) -> list[Row]:
    """Return the rows of `TRAIN_FILE` or `HELDOUT_FILE` in order; `Row.line` counts in the file.

    Args:
        num_rows: The most rows; by default all.
        drawn: Whether they are a random sample, the same at every call, and not the first rows.
    """
    if num_rows is None or not drawn:
        return list(islice(stream_dataset(dataset, file), num_rows))
    total = num_dataset_rows(dataset, file)
    chosen = random.Random(0).sample(range(1, total + 1), num_rows) if num_rows < total else None
    return list(stream_dataset(dataset, file, None if chosen is None else set(chosen)))


def num_dataset_rows(dataset: Artifact, file: str) -> int:
    """Return the number of rows of `TRAIN_FILE` or `HELDOUT_FILE`."""
    with (dataset.path / file).open("rb") as lines:
        return sum(1 for _ in lines)


def stream_dataset(
    dataset: Artifact, file: str, chosen: Container[int] | None = None
) -> Iterator[Row]:
    """Return the rows of `TRAIN_FILE` or `HELDOUT_FILE` in order, one at a time.

    Args:
        chosen: The lines to return, counted from 1; by default all.
    """
    number = 1
    try:
        # Only "\n" ends a line here: text may hold the other line ends that Python knows.
        with (dataset.path / file).open(encoding="utf-8", newline="\n") as lines:
            for number, line in enumerate(lines, start=1):
                if chosen is None or number in chosen:
                    yield Row.from_json(json.loads(line), number, file)
    except (ValueError, KeyError, AttributeError, TypeError):
        raise NotAnArtifactError(
            f"{dataset.path / file}: line {number}: expected prompt and completion messages"
        ) from None


def _read(config: DataConfig, sources: Sequence[Source], counts: Counts) -> Iterator[Row]:
    return stream_rows(
        sources, counts, system_prompt=config.system_prompt, bad_rows=config.bad_rows
    )


def _count(checked: Checked, counts: Counts, heldout_counts: Counts, *, is_split: bool) -> int:
    """Count the rows that each side keeps and drops; return the number that is held out."""
    whole = checked.whole
    trained, held = len(whole.kept(False)), len(whole.kept(True))
    for reason, number in dropped_rows(checked, False).items():
        counts.drop(reason, number)
    if is_split:
        heldout_counts.num_read = int(whole.heldout.sum())
        counts.drop("held out", heldout_counts.num_read)
    for reason, number in dropped_rows(checked, True).items():
        heldout_counts.drop(reason, number)
    counts.check(trained)
    heldout_counts.check(held)
    return held


def _counts_of(
    checked: Checked, counts: Counts, heldout_counts: Counts, found: dict[str, Any]
) -> dict[str, Any]:
    """Return the counts of rows and the lengths, as the manifest has them."""
    return {
        "num_rows_read": counts.num_read,
        "num_duplicates_dropped": counts.dropped.get("exact duplicate", 0),
        "num_leaked_dropped": counts.dropped.get("prompt is held out", 0),
        "dropped": counts.dropped,
        "heldout_dropped": heldout_counts.dropped,
        "num_prompts_with_different_answers": num_disputed(checked.whole, False),
        "num_heldout_prompts_with_different_answers": num_disputed(checked.whole, True),
        "prompt_characters": found["prompt_characters"],
        "answer_characters": found["answer_characters"],
    }


def _without_folders(details: dict[str, Any]) -> dict[str, Any]:
    """Return the findings with names of files only: the same data gives the same report."""

    def short(place: str) -> str:
        return place.rpartition("/")[2]

    def shown(example: dict[str, Any]) -> dict[str, Any]:
        names = {key: short(example[key]) for key in ("file", "other") if key in example}
        return example | names

    checks = [
        check | {"examples": [shown(example) for example in check["examples"]]}
        for check in details["checks"]
    ]
    return details | {"checks": checks}


def _write(path: Path, rows: Iterable[Row], copies: Sequence[int] | None = None) -> None:
    with path.open("w", encoding="utf-8") as file:
        for index, row in enumerate(rows):
            line = json.dumps(row.as_json(), ensure_ascii=False) + "\n"
            file.write(line * (1 if copies is None else copies[index]))


def _say(report: dict[str, Any], checked: Checked, share: str | None) -> None:
    logger.info("  %d rows to train on, %d held out", report["num_train"], report["num_heldout"])
    if share is not None:
        logger.warning("  %s", share)
    for result in checked.results:
        line = warn_of(result)
        if line is not None:
            level = logging.INFO if result.check.name == "duplicates" else logging.WARNING
            logger.log(level, "  %s", line)
            if not result.num_dropped and not result.num_changed:
                logger.log(level, "    %s", describe_example(result.examples[0]))

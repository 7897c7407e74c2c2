from __future__ import annotations

from pathlib import Path

import pytest

from tuneline.core.artifact import Artifact, Manifest
from tuneline.pipeline.run_config import load_run
from tuneline.pipeline.run_report import run_report_lines
from tuneline.pipeline.stages import stages


@pytest.mark.parametrize(
    ("interval", "is_said"), [((-0.11, 0.23), True), ((0.27, 0.72), False), ((-0.4, -0.1), False)]
)
def test_a_difference_within_chance_says_what_to_try(
    tmp_path: Path, interval: tuple[float, float], is_said: bool
) -> None:
    (tmp_path / "run.yaml").write_text("{name: a, data: {path: rows.jsonl}}")
    stage = {s.kind: s for s in stages(load_run(tmp_path / "run.yaml"))}["evaluation-report"]
    entry = {
        "title": "exact match", "base": 0.0, "tuned": 0.05, "difference": 0.05,
        "interval": interval, "mcnemar_p": None,
    }  # fmt: skip
    manifest = Manifest(
        schema_version=1, kind=stage.kind, digest="sha256:0", config={}, inputs=[], files=[],
        environment={}, metrics={"metrics": {"exact_match": entry}}, created_at="",
    )  # fmt: skip
    text = "\n".join(run_report_lines([(stage, Artifact(tmp_path, manifest))]))
    assert "exact match            0.000 → 0.050" in text
    assert ("Try more epochs, such as --set training.num_train_epochs=10" in text) == is_said

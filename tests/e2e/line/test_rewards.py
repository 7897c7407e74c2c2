"""The line of a reward model: trained, merged, served by real vLLM, and its scores proven."""

from __future__ import annotations

import json
from pathlib import Path

from tests.commands import tuneline_here

RUN = Path(__file__).resolve().parents[3] / "examples" / "preferences" / "run.yaml"


def test_the_served_scores_are_those_of_the_trained_reward_model(tmp_path: Path) -> None:
    sets = {
        "training.method": "{type: reward}", "training.max_steps": "4",
        "evaluation.num_rows": "12", "serving.routes": "[pooling, classify]",
    }  # fmt: skip
    options = [word for name, value in sets.items() for word in ("--set", f"{name}={value}")]
    done = tuneline_here("up", str(RUN), "--runs-dir", str(tmp_path), "--json", *options)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "preferences").glob("parity-served-*")
    report = json.loads((folder / "rewards.json").read_text())
    assert report["verdict"] == "PASS"
    assert report["num_pairs"] == 12 and len(report["rewards"]) == 24
    # Its sigmoid would differ by more than the scores differ from one another.
    assert 0 < report["max_relative_difference"] < 2e-3
    assert len(set(report["rewards"])) > 12

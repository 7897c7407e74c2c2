"""Results of lm-evaluation-harness that ends with an error after it has written them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from training.evaluation import harness
from tuneline.core.endpoint import Endpoint
from tuneline.core.errors import ServerError

WRITES = """
import json, pathlib, sys
results = {"results": {"own": {"perplexity,none": float("inf"), "acc,none": 0.5}}}
pathlib.Path(sys.argv[1], "results_1.json").write_text(json.dumps(results))
"""
FAILS = "raise TypeError('no width for a number of 101 digits')"


@pytest.mark.parametrize("writes", [True, False])
def test_results_count_if_only_the_table_after_them_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writes: bool
) -> None:
    program = f"{WRITES if writes else ''}\n{FAILS}"
    monkeypatch.setattr(harness, "require", lambda *_: None)
    monkeypatch.setattr(
        harness, "_command", lambda *args: [sys.executable, "-c", program, args[-1]]
    )
    endpoint, out = Endpoint("http://127.0.0.1:1/v1", "m"), tmp_path / "out"
    if not writes:
        with pytest.raises(ServerError, match="ended with code 1"):
            harness.run_harness(endpoint, tmp_path, ["own"], out)
        return
    artifact = harness.run_harness(endpoint, tmp_path, ["own"], out)
    assert artifact.manifest.metrics["tasks"] == {"own": {"acc,none": 0.5}}
    written = json.loads((out / harness.RESULTS_FILE).read_text())
    assert written["results"]["own"]["perplexity,none"] is None

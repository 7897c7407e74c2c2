"""`deploy render` refuses a run that the manifests cannot serve before it looks for artifacts."""

from __future__ import annotations

from pathlib import Path

import pytest

from tuneline.core.errors import ConfigError
from tuneline.pipeline.deploy import render_run
from tuneline.pipeline.run_config import load_run

RUN = Path(__file__).parents[3] / "examples" / "support-tickets" / "run.yaml"


def test_a_run_that_serves_an_adapter_is_refused(tmp_path: Path) -> None:
    run = load_run(RUN, ["serving.mode=adapter"], runs_dir=tmp_path)
    with pytest.raises(ConfigError, match="the manifests run the merged model") as caught:
        render_run(run, tmp_path / "out")
    assert "serving.mode=merged" in (caught.value.hint or "")
    assert not (tmp_path / "out").exists()

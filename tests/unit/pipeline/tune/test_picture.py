"""The picture has a bar for every trial."""

from __future__ import annotations

from pathlib import Path

from loadtest.config import SLO
from tuneline.core.verdict import Verdict
from tuneline.pipeline.tune.picture import draw_trials
from tuneline.pipeline.tune.schema import Trial, TuneReport


def test_the_picture_is_drawn_for_every_state(tmp_path: Path) -> None:
    speculative = {"serving.extra_args.speculative_config": {"method": "ngram"}}
    trials = [
        Trial(number=0, knob="", settings={}, state="held", rate_rps=4.0, failing_rps=5.0),
        Trial(number=1, knob="a", settings=speculative, state="beaten", to_beat_rps=4.2),
        Trial(number=2, knob="b", settings={"serving.max_num_seqs": 8}, state="failed"),
    ]
    report = TuneReport(
        verdict=Verdict.PASS, problems=[], slo=SLO(), is_changed=False, settings={}, rate_rps=4.0,
        own_rate_rps=4.0, gain=None, gain_interval=None, comparison=None, is_complete=True,
        budget_s=60.0, spent_s=10.0, offers=[], trials=trials, winner=None,
    )  # fmt: skip
    draw_trials(report, tmp_path)
    picture = (tmp_path / "trials.png").read_bytes()
    assert picture.startswith(b"\x89PNG") and len(picture) > 5000

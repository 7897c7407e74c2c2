"""`tuneline tune` refuses a tuning that cannot work before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.commands import tuneline_here

EXAMPLE = Path(__file__).parents[3] / "examples" / "support-tickets" / "run.yaml"


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--budget", "soon"), 2, "--budget soon: expected a duration"),
        # 3 x 300 requests at 6 requests/s
        (("--budget", "60s"), 2, "too small for one trial; 300 requests at 6 requests/s and their"),
        (("--requests", "20"), 2, "20 requests a probe cannot judge ttft_s.p90"),
        (("--set", "loadtest.slo={}"), 2, "the search needs an objective"),
        (("--drafter", "/nowhere"), 2, "--drafter /nowhere: has no config.json"),
        (("--only", "sequence"), 2, "--only sequence: is not a flag that a tuning tries"),
        ((), 3, "stage 'dataset' is stale (not made yet)"),
    ],
)
def test_a_tuning_that_cannot_work(
    options: tuple[str, ...], code: int, message: str, tmp_path: Path
) -> None:
    done = tuneline_here("tune", str(EXAMPLE), *options, "--runs-dir", str(tmp_path))
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert not list(tmp_path.rglob("trials.jsonl"))

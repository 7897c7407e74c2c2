"""The tokens of an answer and their times, on the known server."""

from typing import Any

import numpy as np
import pytest

from tests.integration.loadtest.client.test_client import measure

pytestmark = pytest.mark.usefixtures("shared_host")


def test_a_single_stop_token_is_the_first_and_the_last_token(known: Any) -> None:
    before = len(known.truths())
    result = measure(known.endpoint, {"concurrency": 4, "num_requests": 40}, [None, "stop-only"])
    truths = {int(truth["request_id"]): truth for truth in known.truths()[before:]}
    records = result.records
    alone = np.flatnonzero(records.tokens == 1)
    assert len(alone) == 20
    true_s = [
        (truths[index]["token_write_ns"][0] - truths[index]["received_ns"]) / 1e9
        for index in records.index[alone]
    ]
    assert min(true_s) >= 0.028  # timers of whole milliseconds
    found_s = (records.first_token_s - records.sent_s)[alone]
    assert np.abs(np.median(found_s) - np.median(true_s)) < 0.02
    assert records.last_token_s[alone].tolist() == records.first_token_s[alone].tolist()
    latencies = result.stats.latencies
    assert (latencies["ttft_s"].n, latencies["e2e_s"].n, latencies["tpot_s"].n) == (40, 40, 20)
    assert not [text for text in result.judgement.warnings if "several tokens" in text]


def test_exact_lengths_that_cannot_be_checked_are_invalid(known: Any) -> None:
    scenario = {"concurrency": 2, "num_requests": 8}
    result = measure(known.endpoint, scenario, ["no-usage"], ignore_eos=True)
    assert result.judgement.verdict == "INVALID"
    assert any("exact lengths" in problem for problem in result.judgement.problems)
    result = measure(known.endpoint, scenario, ["no-usage"])
    assert not any("exact lengths" in problem for problem in result.judgement.problems)


def test_several_tokens_in_an_event_do_not_change_the_time_per_token(
    start_known_server: Any,
) -> None:
    with start_known_server("--ttft-s", "0.02", "--itl-s", "0.01") as server:
        scenario = {"concurrency": 4, "num_requests": 20}
        result = measure(server.endpoint, scenario, ["multi"], max_tokens=16)
        truths = server.truths()
    assert result.stats.tokens.num_output_tokens == 20 * 16
    assert result.stats.tokens.num_events == 20 * 4
    # By the server's own record: other work on the machine makes the server itself late.
    writes_s = np.array([one["token_write_ns"] for one in truths]) / 1e9
    assert writes_s.shape == (20, 4)
    true_gap_s = float(np.median(np.diff(writes_s)))
    assert 0.03 < true_gap_s < 0.4
    true_tpot_s = float(np.median((writes_s[:, -1] - writes_s[:, 0]) / 12))
    assert result.stats.latencies["tpot_s"].at(50) == pytest.approx(true_tpot_s, rel=0.2)
    assert result.stats.latencies["inter_chunk_gap_s"].at(50) == pytest.approx(true_gap_s, rel=0.2)

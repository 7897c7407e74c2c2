"""Requests that meet every goodput limit. Pure."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from loadtest.client.records import SUCCEEDED, Records
from loadtest.config import SLO
from loadtest.judging.latency import tpot_s


def good(records: Records, slo: SLO) -> NDArray[np.bool_]:
    """Return which requests meet every goodput limit (DistServe, Zhong et al., OSDI 2024)."""
    fine: NDArray[np.bool_] = records.state == SUCCEEDED
    if slo.goodput_ttft_s is not None:
        fine &= records.first_token_s - records.intended_s <= slo.goodput_ttft_s
    if slo.goodput_e2e_s is not None:
        fine &= records.last_token_s - records.intended_s <= slo.goodput_e2e_s
    if slo.goodput_tpot_s is not None:
        values = tpot_s(records)
        fine &= np.isnan(values) | (values <= slo.goodput_tpot_s)
    return fine

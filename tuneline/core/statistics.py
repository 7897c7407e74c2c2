"""Statistics that several rooms report. Pure calculation."""

from __future__ import annotations

import math

Z_95 = 1.959963984540054
"""The 97.5 % point of the standard normal distribution, for two-sided intervals at 95 %."""


def wilson_interval(share: float, num_trials: float) -> tuple[float, float]:
    """Return Wilson's score interval of a proportion at 95 %.

    E. B. Wilson, Probable inference, the law of succession, and statistical inference, JASA 22
    (1927). The interval stays within 0 and 1, and it is not empty at either end.

    Args:
        share: Successes divided by trials.
        num_trials: Independent trials; not necessarily a whole number. Zero gives (0, 1).
    """
    if not num_trials:
        return 0.0, 1.0
    n, p, z = num_trials, share, Z_95
    center = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # Rounding would miss the exact ends.
    return center - half if p > 0 else 0.0, center + half if p < 1 else 1.0

"""Token counts drawn from a distribution. Pure."""

from __future__ import annotations

import numpy as np

from loadtest.workload_config import Length
from tuneline.core.errors import ConfigError


def draw_lengths(length: Length, rng: np.random.Generator, count: int) -> list[int]:
    """Return whole token counts within the bounds.

    Raises:
        ConfigError: Draws almost never lie within the bounds.
    """
    if length.distribution == "fixed":
        return [round(length.mean)] * count
    assert length.stddev is not None  # noqa: S101 (the config requires it)
    high = length.max if length.max is not None else 2**31
    found: list[int] = []
    for _ in range(1000):
        if length.distribution == "normal":
            drawn = rng.normal(length.mean, length.stddev, count)
        else:
            variance = np.log1p((length.stddev / length.mean) ** 2)
            drawn = rng.lognormal(np.log(length.mean) - variance / 2, np.sqrt(variance), count)
        found += [int(one) for one in np.rint(drawn) if length.min <= one <= high]
        if len(found) >= count:
            return found[:count]
    raise ConfigError(
        f"lengths of mean {length.mean:g} and stddev {length.stddev:g} almost never lie between "
        f"{length.min} and {length.max}"
    )

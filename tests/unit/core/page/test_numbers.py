"""Numbers as a page shows them."""

import pytest

from tuneline.core.page.numbers import (
    count,
    digits,
    nats,
    points,
    seconds,
    share,
    short_seconds,
    signed_digits,
    size,
    three_digits,
    whole_share,
)


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (share(0.95238), "95.2%"),
        (share(None), "–"),
        (points(0.0312), "+3.1"),
        (points(-0.0312), "−3.1"),
        (seconds(0.0421), "42.1 ms"),
        (seconds(1.3), "1.30 s"),
        (seconds(98.02), "98.0 s"),
        (seconds(125), "2 min 05 s"),
        (seconds(7260), "2 h 01 min"),
        (seconds(None), "–"),
        (short_seconds(0), "0"),
        (short_seconds(0.05), "50 ms"),
        (short_seconds(0.15000000000000002), "150 ms"),
        (short_seconds(20), "20 s"),
        (whole_share(0.5), "50%"),
        (signed_digits(1799.6), "+1,800"),
        (signed_digits(-13.24), "-13.2"),
        (signed_digits(0.000516), "+0.000516"),
        (digits(1482.4), "1,482"),
        (digits(98.02), "98.0"),
        (digits(0.1405), "0.141"),
        (digits(-0.5), "-0.500"),
        (digits(9.2e-6), "9.2e-06"),
        (digits(0), "0"),
        (seconds(0), "0 ms"),
        (three_digits(0.0032727), "0.00327"),
        (count(145314), "145,314"),
        (nats(4.05e-6), "4.1e-06"),
        (nats(0.0), "0"),
        (nats(0.05), "0.05"),
        (nats(3.04), "3"),
        (size(512), "512 B"),
        (size(11741224), "11.2 MiB"),
        (size(1.5 * 2**40), "1.5 TiB"),
    ],
)
def test_a_number_is_short(shown: str, expected: str) -> None:
    assert shown == expected

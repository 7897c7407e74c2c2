from __future__ import annotations

from tuneline.core.digests import short_digest


def test_a_short_digest_is_twelve_digits_without_the_algorithm() -> None:
    assert short_digest("sha256:0123456789abcdef0123") == "0123456789ab"
    assert short_digest("0123456789abcdef0123") == "0123456789ab"

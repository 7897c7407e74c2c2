"""The line of the page that counts images."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from loadtest.report.page import _images
from loadtest.workload_config import ImagesConfig


@pytest.mark.parametrize(
    ("size", "num_sent", "expected"),
    [
        (ImagesConfig(width=96, height=64, count=2), 24, "24 sent of 96 x 64 pixels"),
        (ImagesConfig(width=96, height=64, count=2), 25, "25 images sent"),
        (ImagesConfig(width=96, height=64, count=2), 20, "20 images sent"),
        (None, 5, "5 images sent"),
    ],
)
def test_images_have_a_size_only_if_all_of_them_were_made(
    size: ImagesConfig | None, num_sent: int, expected: str
) -> None:
    scenario = SimpleNamespace(
        images=SimpleNamespace(num_sent=num_sent, mean_url_bytes=2048.0),
        requests=SimpleNamespace(offered=12),
    )
    without = SimpleNamespace(images=None, requests=SimpleNamespace(offered=0))
    report: Any = SimpleNamespace(
        workload=SimpleNamespace(images=size), scenarios=[scenario, without]
    )
    assert _images(report) == [("images", f"{expected}, 2.0 KiB each as a URL")]

from __future__ import annotations

import pytest

from serving.command.vllm_version import judge_version
from tuneline.core.errors import MissingError


@pytest.mark.parametrize("version", ["0.31.9", "0.9.0", "0.31.0.post1"])
def test_a_version_with_known_holes_is_refused(version: str) -> None:
    with pytest.raises(MissingError, match=f"vLLM is {version}; expected 0.32") as caught:
        judge_version(version)
    assert "CVE-2026-115911 and PYSEC-2026-4349" in caught.value.message
    assert caught.value.exit_code == 4


def test_a_newer_version_is_named_as_untested() -> None:
    assert judge_version("0.32.3") is None
    assert "vLLM 0.33.1 is untested" in str(judge_version("0.33.1"))
    assert "1.0 is untested" in str(judge_version("1.0"))
    assert "unknown" in str(judge_version("unknown"))

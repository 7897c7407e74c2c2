"""The ladder: the reference's own noise first, then a row per form, as table and picture."""

import json
from pathlib import Path

import pytest

from tuneline.core.artifact import Artifact, verify_artifact
from tuneline.core.parity import compare
from tuneline.core.parity_report import write_parity
from tuneline.core.reference import Continuation
from tuneline.core.tolerances import Tolerances
from tuneline.pipeline.parity_ladder import ladder_lines, write_ladder


def answer(logprob: float, token: int = 5) -> Continuation:
    return Continuation(
        messages=[], prompt_token_ids=[1], token_ids=[token], logprobs=[logprob],
        top_logprobs=[{token: logprob}], text=f"say {token}", finish_reason="stop",
        expected="say 5",
    )  # fmt: skip


@pytest.fixture
def proofs(tmp_path: Path) -> list[Artifact]:
    found = []
    for form, candidate in (("merged", answer(-0.1)), ("onnx-int4", answer(-0.4, token=6))):
        parity = compare(form, [answer(-0.1)], [candidate], Tolerances(), reference_noise=3.6e-6)
        out = tmp_path / f"parity-{form}-0123456789"
        found.append(write_parity(out, parity, Tolerances(), config={}, inputs=[]))
    return found


def test_the_first_row_is_the_reference_s_own_noise(proofs: list[Artifact]) -> None:
    header, trained, merged, int4 = (line.split() for line in ladder_lines(proofs))
    assert header[:2] == ["form", "verdict"]
    assert trained[0] == "trained" and "3.6e-06" in trained and trained[-1] == "100.0%"
    assert merged[:2] == ["merged", "PASS"]
    assert int4[:3] == ["onnx-int4", "FAIL", "0/1"] and int4[-1] == "0.0%"


def test_it_is_kept_as_an_artifact(proofs: list[Artifact], tmp_path: Path) -> None:
    ladder = write_ladder(tmp_path, proofs)
    verify_artifact(ladder)
    assert {entry.path for entry in ladder.manifest.files} == {
        "ladder.json", "ladder.md", "ladder.png",
    }  # fmt: skip
    assert ladder.manifest.metrics["verdicts"] == {"merged": "PASS", "onnx-int4": "FAIL"}
    assert [entry.role for entry in ladder.manifest.inputs] == [
        "parity-merged", "parity-onnx-int4",
    ]  # fmt: skip
    assert (ladder.path / "ladder.png").read_bytes().startswith(b"\x89PNG")
    text = (ladder.path / "ladder.md").read_text()
    assert "| onnx-int4 | FAIL | 0/1 | 1/1 |" in text
    assert "expected `'5'`, found `'6'`" in text
    assert len(json.loads((ladder.path / "ladder.json").read_text())) == 2
    assert write_ladder(tmp_path, proofs).path == ladder.path  # written once

"""A verdict is read from the payload, and each has its exit code."""

import json
from pathlib import Path

import pytest

from tuneline.core.artifact import Artifact, new_artifact, open_artifact
from tuneline.core.artifact_kinds import KINDS
from tuneline.core.errors import TamperedError, VerdictError
from tuneline.core.verdict import Verdict, read_verdict, require_verdict

WITH_VERDICT = (
    "parity", "reward-parity", "relevance-parity", "trained-vector-parity", "vector-parity",
    "score-parity", "load-report", "load-search", "load-sweep", "load-pareto", "load-comparison",
    "tune", "release",
)  # fmt: skip


def artifact(out: Path, kind: str, verdict: str) -> Artifact:
    with new_artifact(out, kind, config={}) as draft:
        file = KINDS[kind].verdict_file or "other.json"
        (draft.dir / file).write_text(json.dumps({"verdict": verdict}))
        draft.metrics["problems"] = ["the reason"]
    return open_artifact(out)


@pytest.mark.parametrize(
    ("name", "verdict", "again"),
    [
        ("loadtest-0123456789", "INVALID", "The same command measures again."),
        ("loadtest-0123456789", "FAIL", "remove it: rm -r"),
        ("my-report", "INVALID", "remove it: rm -r"),
    ],
)
def test_a_line_measures_again_by_itself(
    tmp_path: Path, name: str, verdict: str, again: str
) -> None:
    found = artifact(tmp_path / name, "load-report", verdict)
    with pytest.raises(VerdictError) as caught:
        require_verdict(found)
    assert again in str(caught.value.hint)
    assert ("rm -r" in str(caught.value.hint)) == ("rm -r" in again)


@pytest.mark.parametrize(
    ("problems", "form", "hint"),
    [
        (["greedy_agreement is 0.6; expected at least 0.9"], "served", "serving.dtype=float32"),
        (["token_agreement is 0.6; expected at least 0.9"], "merged", "export.merge.dtype=float32"),
        (["greedy_agreement is 0.6; expected", "mean_kl is 1"], "served", None),
    ],
)
def test_a_proof_that_fails_by_ties_only_says_what_to_do(
    tmp_path: Path, problems: list[str], form: str, hint: str | None
) -> None:
    with new_artifact(tmp_path / "x", "parity", config={"form": form}) as draft:
        (draft.dir / "parity.json").write_text(json.dumps({"verdict": "FAIL"}))
        draft.metrics["problems"] = problems
    with pytest.raises(VerdictError) as caught:
        require_verdict(open_artifact(tmp_path / "x"))
    said = str(caught.value.hint)
    assert (hint or "The whole report") in said
    assert ("a longer training" in said) == (hint is not None)


@pytest.mark.parametrize(
    ("num_prompts", "least", "is_said"),
    [(16, 0.95, True), (64, 0.95, False), (20, 0.95, False), (16, 1.0, False), (16, None, False)],
)
def test_too_few_prompts_for_a_limit_are_said(
    tmp_path: Path, num_prompts: int, least: float | None, is_said: bool
) -> None:
    config = {"form": "merged", "tolerances": {"min_greedy_agreement": least}}
    with new_artifact(tmp_path / "x", "parity", config=config) as draft:
        (draft.dir / "parity.json").write_text(json.dumps({"verdict": "FAIL"}))
        problems = ["greedy_agreement is 0.9375; expected at least 0.95"]
        draft.metrics.update(problems=problems, num_prompts=num_prompts)
    with pytest.raises(VerdictError) as caught:
        require_verdict(open_artifact(tmp_path / "x"))
    said = f"or more prompts: of {num_prompts} none may differ (reference.num_prompts)"
    assert (said in str(caught.value.hint)) is is_said


def test_these_kinds_have_a_verdict() -> None:
    assert tuple(name for name, kind in KINDS.items() if kind.verdict_file) == WITH_VERDICT


@pytest.mark.parametrize("kind", WITH_VERDICT)
@pytest.mark.parametrize(("verdict", "code"), [("FAIL", 6), ("INCONCLUSIVE", 7), ("INVALID", 8)])
def test_a_verdict_ends_the_command(kind: str, verdict: str, code: int, tmp_path: Path) -> None:
    found = artifact(tmp_path / "x", kind, verdict)
    with pytest.raises(VerdictError) as caught:
        require_verdict(found)
    assert caught.value.exit_code == code
    assert caught.value.message == f"x: {verdict}\n  the reason"
    assert f"rm -r {found.path}" in str(caught.value.hint)


@pytest.mark.parametrize("kind", WITH_VERDICT)
def test_pass_raises_nothing(kind: str, tmp_path: Path) -> None:
    found = artifact(tmp_path / "x", kind, "PASS")
    require_verdict(found)
    assert read_verdict(found) is Verdict.PASS


@pytest.mark.parametrize("kind", ["dataset", "load-shard", "a-kind-of-another-version"])
def test_a_kind_without_a_verdict_passes(kind: str, tmp_path: Path) -> None:
    with new_artifact(tmp_path / "x", kind, config={}) as draft:
        (draft.dir / "report.json").write_text('{"verdict": "FAIL"}')
    assert read_verdict(open_artifact(tmp_path / "x")) is Verdict.PASS


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"verdict": "maybe"}', '{"verdict": "pass"}', "\x00"]
)
def test_a_file_without_a_verdict_is_named(text: str, tmp_path: Path) -> None:
    with new_artifact(tmp_path / "x", "parity", config={}) as draft:
        (draft.dir / "parity.json").write_text(text)
    with pytest.raises(
        TamperedError, match=r"parity\.json: has no verdict; expected PASS"
    ) as caught:
        read_verdict(open_artifact(tmp_path / "x"))
    assert caught.value.exit_code == 3
    assert caught.value.hint == f"Remove it and run its step again: rm -r {tmp_path / 'x'}"

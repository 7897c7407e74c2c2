"""A drafter against recorded answers: its own next tokens, and references that do not fit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers

from tests.commands import tuneline_here
from tests.integration.training.tiny import make_base
from training.evaluation.acceptance import measure_acceptance
from tuneline.core.artifact import Artifact, new_artifact, open_artifact
from tuneline.core.errors import ConfigError
from tuneline.core.reference import REFERENCE_FILE, Continuation, write_continuations
from tuneline.models.source import ModelSource, resolve_model

PROMPT = "the printer is"
LENGTHS = (12, 9, 7)


@pytest.fixture(scope="module")
def drafter(tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    folder = tmp_path_factory.mktemp("drafter")
    make_base(folder)
    return resolve_model(str(folder))


def _next(model: torch.nn.Module, ids: list[int]) -> int:
    with torch.no_grad():
        return int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())


@pytest.fixture(scope="module")
def known(
    drafter: ModelSource, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Artifact, list[list[bool]]]:
    """A reference whose every third token is not the drafter's, and which drafts are right."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(drafter.path)
    model = transformers.AutoModelForCausalLM.from_pretrained(drafter.path).float().eval()
    prompt = tokenizer(PROMPT)["input_ids"]
    words = tokenizer(" reset the password", add_special_tokens=False)["input_ids"]
    answers, right = [], []
    for number, length in enumerate(LENGTHS):
        ids: list[int] = []
        flags: list[bool] = []
        for place in range(length):
            own = _next(model, [*prompt, *ids])
            other = words[(number + place) % len(words)]
            ids.append(other if place % 3 == 2 else own)
            flags.append(ids[-1] == own)
        answers.append(ids)
        right.append(flags[1:])
    out = tmp_path_factory.mktemp("reference") / "reference"
    with new_artifact(out, "reference", config={}, inputs=[]) as draft:
        write_continuations(
            draft.dir / REFERENCE_FILE,
            [
                Continuation(
                    messages=[{"role": "user", "content": PROMPT}], prompt_token_ids=prompt,
                    token_ids=ids, logprobs=[0.0] * len(ids), top_logprobs=[{}] * len(ids),
                    text=tokenizer.decode(ids, skip_special_tokens=True), finish_reason="length",
                )
                for ids in answers
            ],
        )  # fmt: skip
    return open_artifact(out), right


def test_a_draft_is_right_if_it_is_the_drafter_s_next_token(
    drafter: ModelSource, known: tuple[Artifact, list[list[bool]]], tmp_path: Path
) -> None:
    reference, right = known
    result = measure_acceptance(reference, drafter, tmp_path / "out")
    metrics = result.manifest.metrics
    assert metrics["num_tokens"] == sum(LENGTHS) - 3
    assert 0 < sum(map(sum, right)) < metrics["num_tokens"]
    assert metrics["share_right"] == sum(map(sum, right)) / metrics["num_tokens"]
    assert json.loads((result.path / "acceptance.json").read_text()) == metrics
    lines = (result.path / "drafts.jsonl").read_text().splitlines()
    assert [json.loads(line)["right"] for line in lines] == right
    roles = {entry.role: entry.digest for entry in result.manifest.inputs}
    assert roles == {"reference": reference.digest, "drafter": drafter.digest}


def test_a_drafter_with_other_tokens_is_refused(
    known: tuple[Artifact, list[list[bool]]], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"reads the answers of .* otherwise"):
        measure_acceptance(known[0], resolve_model("tiny-base"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_answers_of_one_token_have_nothing_to_draft(drafter: ModelSource, tmp_path: Path) -> None:
    with new_artifact(tmp_path / "short", "reference", config={}, inputs=[]) as draft:
        one = Continuation(
            messages=[{"role": "user", "content": PROMPT}], prompt_token_ids=[3], token_ids=[4],
            logprobs=[0.0], top_logprobs=[{}], text="", finish_reason="stop",
        )  # fmt: skip
        write_continuations(draft.dir / REFERENCE_FILE, [one])
    with pytest.raises(ConfigError, match="no answer has two tokens"):
        measure_acceptance(open_artifact(tmp_path / "short"), drafter, tmp_path / "out")


def test_the_command_shows_the_tokens_of_a_step(
    drafter: ModelSource, known: tuple[Artifact, list[list[bool]]], tmp_path: Path
) -> None:
    asked = ("evaluate", "--model", str(drafter.path), "--reference", str(known[0].path), "--out")
    done = tuneline_here(*asked, str(tmp_path / "a"))
    assert done.returncode == 0, done.stderr
    first, *rows = done.stdout.splitlines()
    assert " tokens are guessed: " in first and len(rows) >= 8
    done = tuneline_here(*asked, str(tmp_path / "b"), "--json")
    document = json.loads(done.stdout)
    assert [one["num_drafted"] for one in document["metrics"]["drafted"]] == [1, 2, 3, 4, 5, 6, 8]
    done = tuneline_here(*asked, str(tmp_path / "c"), "--url", "http://127.0.0.1:9/v1")
    assert done.returncode == 2 and "with --reference" in done.stderr

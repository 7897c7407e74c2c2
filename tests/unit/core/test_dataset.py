from __future__ import annotations

import json
from pathlib import Path

import pytest

from tuneline.core.artifact import Artifact, new_artifact, open_artifact
from tuneline.core.dataset import HELDOUT_FILE, heldout_conversations, heldout_prompts
from tuneline.core.errors import DataError, NotAnArtifactError
from tuneline.core.messages import messages_of


def dataset(folder: Path, text: str) -> Artifact:
    with new_artifact(folder, "dataset", config={}) as draft:
        (draft.dir / HELDOUT_FILE).write_text(text, encoding="utf-8")
    return open_artifact(folder)


def test_prompts_come_in_order_and_without_answers(tmp_path: Path) -> None:
    # U+2028 ends a line for `splitlines`, and not in JSON Lines.
    prompts = [[{"role": "user", "content": text}] for text in ("one", "two\u2028lines", "셋")]
    rows = [
        {"prompt": prompt, "completion": [{"role": "assistant", "content": "-"}]}
        for prompt in prompts
    ]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    assert heldout_prompts(dataset(tmp_path / "dataset", text)) == prompts


def test_calls_are_those_of_a_request(tmp_path: Path) -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": {"n": 1}}}
    prompt = [
        {"role": "user", "content": "one"},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "content": "two"},
    ]
    (found,) = heldout_prompts(dataset(tmp_path / "ds", json.dumps({"prompt": prompt}) + "\n"))
    _, second, third = messages_of(found)
    (sent,) = second["tool_calls"]
    assert sent["function"]["arguments"] == '{"n": 1}'
    assert third["tool_call_id"] == sent["id"]


def test_a_prompt_keeps_the_tools_of_its_row(tmp_path: Path) -> None:
    prompt = [{"role": "user", "content": "one"}]
    tools = [{"type": "function", "function": {"name": "f"}}]
    text = "".join(
        json.dumps(row) + "\n" for row in ({"prompt": prompt, "tools": tools}, {"prompt": prompt})
    )
    found = heldout_prompts(dataset(tmp_path / "ds", text))
    assert found == [{"messages": prompt, "tools": tools}, prompt]


def test_the_conversations_of_a_pair_end_with_its_answers(tmp_path: Path) -> None:
    asked = {"role": "user", "content": "one"}
    good, bad = ({"role": "assistant", "content": text} for text in ("yes", "no"))
    rows = [{"prompt": [asked], "chosen": [good], "rejected": [bad]}, {"text": "Once."}]
    found = dataset(tmp_path / "pairs", "".join(json.dumps(row) + "\n" for row in rows))
    assert heldout_conversations(found) == [[asked, good], [asked, bad]]
    no_pair = dataset(tmp_path / "answers", '{"prompt": [], "completion": []}\n')
    with pytest.raises(NotAnArtifactError, match="line 1: expected a row with a pair of answers"):
        heldout_conversations(no_pair)
    with pytest.raises(DataError, match="no row has a pair of answers"):
        heldout_conversations(dataset(tmp_path / "text", '{"text": "Once."}\n'))


@pytest.mark.parametrize("line", ["{", "[]", '{"messages": []}', ""])
def test_a_line_that_is_not_a_row_is_refused(tmp_path: Path, line: str) -> None:
    text = '{"prompt": []}\n' + line + "\n"
    with pytest.raises(NotAnArtifactError, match=r"heldout\.jsonl: line 2: expected a row"):
        heldout_prompts(dataset(tmp_path / "dataset", text))


def test_rows_of_plain_text_have_no_prompt(tmp_path: Path) -> None:
    prompt = [{"role": "user", "content": "one"}]
    text = "".join(json.dumps(row) + "\n" for row in ({"text": "Once."}, {"prompt": prompt}))
    assert heldout_prompts(dataset(tmp_path / "mixed", text)) == [prompt]
    with pytest.raises(DataError, match=r"heldout\.jsonl: no row has a prompt") as caught:
        heldout_prompts(dataset(tmp_path / "text", '{"text": "Once."}\n'))
    assert caught.value.exit_code == 2 and "data.heldout_path" in str(caught.value.hint)

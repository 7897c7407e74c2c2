from __future__ import annotations

import json
from pathlib import Path

import pytest

from tuneline.core.artifact import Artifact, new_artifact, open_artifact
from tuneline.core.dataset import HELDOUT_FILE, heldout_prompts
from tuneline.core.errors import NotAnArtifactError


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


@pytest.mark.parametrize("line", ["{", "[]", '{"messages": []}', ""])
def test_a_line_that_is_not_a_row_is_refused(tmp_path: Path, line: str) -> None:
    text = '{"prompt": []}\n' + line + "\n"
    with pytest.raises(NotAnArtifactError, match=r"heldout\.jsonl: line 2: expected a row"):
        heldout_prompts(dataset(tmp_path / "dataset", text))

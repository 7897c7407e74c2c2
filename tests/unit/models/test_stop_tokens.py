from __future__ import annotations

import json
from pathlib import Path

import pytest

from tuneline.core.errors import ArtifactError
from tuneline.models.stop_tokens import as_stop_ids, folder_stop_ids


@pytest.mark.parametrize(
    ("given", "expected"), [(None, set()), (7, {7}), ([7, 8, 7], {7, 8}), ([], set()), (0, {0})]
)
def test_one_id_several_or_none(given: int | list[int] | None, expected: set[int]) -> None:
    assert as_stop_ids(given) == expected


def test_the_generation_configuration_counts_before_the_model_s(tmp_path: Path) -> None:
    assert folder_stop_ids(tmp_path) == set()
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 7}))
    assert folder_stop_ids(tmp_path) == {7}
    # transformers does not look into config.json where the other file is, even without a token.
    (tmp_path / "generation_config.json").write_text("{}")
    assert folder_stop_ids(tmp_path) == set()
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [9, 8]}))
    assert folder_stop_ids(tmp_path) == {8, 9}


@pytest.mark.parametrize("text", ["{", "[]", '{"eos_token_id": "</s>"}', '{"eos_token_id": [1.5]}'])
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, text: str) -> None:
    (tmp_path / "generation_config.json").write_text(text)
    with pytest.raises(ArtifactError, match=r"generation_config\.json"):
        folder_stop_ids(tmp_path)

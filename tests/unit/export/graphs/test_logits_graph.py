"""Rules of the graphs that need no graph: positions, lengths, noise, and archives to refuse."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from export import resolve_form
from export.graphs.logits_graph import checked_length, max_length, noise, rope_types
from export.graphs.to_torch_export import refuse_pickles
from tuneline.core.errors import ArtifactError, MissingError


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, set()),
        ({"rope_scaling": None}, set()),
        ({"rope_scaling": {"type": "linear", "factor": 4.0}}, {"linear"}),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}, {"default"}),
        (
            {
                "rope_parameters": {
                    "full_attention": {"rope_type": "yarn"},
                    "sliding_attention": {"rope_type": "default"},
                }
            },
            {"yarn", "default"},
        ),
    ],
)
def test_types_of_rotary_positions(config: dict[str, Any], expected: set[str]) -> None:
    assert rope_types(config) == expected


@pytest.mark.parametrize(
    ("positions", "longest", "checked"), [(128, 128, 128), (4096, 4096, 512), (None, None, 512)]
)
def test_a_graph_is_checked_up_to_512_tokens(
    positions: int | None, longest: int | None, checked: int
) -> None:
    config = SimpleNamespace(max_position_embeddings=positions)
    assert max_length(config) == longest
    assert checked_length(config) == checked


def test_noise_is_0_for_the_model_and_1_for_its_average() -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 9, 50) * 3
    average = logits.softmax(-1).flatten(0, 1).mean(0).log()
    assert noise(logits, logits) == pytest.approx(0, abs=1e-6)
    assert noise(logits, average.expand_as(logits)) == pytest.approx(1, rel=1e-4)
    # A constant added to all logits changes no prediction.
    assert noise(logits, logits + 5) == pytest.approx(0, abs=1e-5)


def test_a_file_that_is_not_an_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.pt2").write_bytes(b"\x80\x02.")
    with pytest.raises(ArtifactError, match=r"not a torch\.export archive"):
        refuse_pickles(tmp_path / "model.pt2")


def test_a_folder_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="no such folder"):
        resolve_form(str(tmp_path / "none"))

"""An adapter that does not fit the server, or would do nothing, is refused from its files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving.adapters.check import require_fit
from tests.unit.serving.adapters.made import (
    lora_tensors,
    make_adapter,
    make_base,
    make_reference,
    settings_of,
)
from tuneline.core.errors import ArtifactError


def check(tmp_path: Path, base_config: dict[str, Any] | None = None, **adapter: Any) -> None:
    make_base(tmp_path / "base", **(base_config or {}))
    made = make_adapter(tmp_path / "adapter", **adapter)
    require_fit(made, make_reference(tmp_path / "reference", made), settings_of(tmp_path))


def test_a_good_adapter_passes(tmp_path: Path) -> None:
    check(tmp_path)


B_IS_ZERO = lora_tensors(0.0)
A_IS_ZERO = {
    name: np.zeros_like(tensor) if "lora_A" in name else tensor
    for name, tensor in lora_tensors().items()
}
# PEFT's embedding adapter starts with A at zero, and vLLM reads it by another name.
EMBEDDING = {
    "base_model.model.model.layers.0.mlp.up_proj.lora_embedding_A": np.zeros((2, 4), np.float32),
    "base_model.model.model.layers.0.mlp.up_proj.lora_embedding_B": np.ones((4, 2), np.float32),
}


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        ({"base": "sha256:" + "b" * 64}, "names the base bbbbbbbbbbbb; expected aaaaaaaaaaaa"),
        ({"base": None}, "names the base none; expected aaaaaaaaaaaa, the base model"),
        ({"r": 32}, "the rank is 32; expected at most 16"),
        ({"rank_pattern": {"up_proj": 24}}, "the rank is 24; expected at most 16"),
        ({"lora_alpha": 0}, "lora_alpha is 0"),
        ({"use_dora": True}, "use_dora=True"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"tensors": B_IS_ZERO}, "all A or all B are zero"),
        ({"tensors": lora_tensors(-0.0)}, "all A or all B are zero"),
        ({"tensors": A_IS_ZERO}, "all A or all B are zero"),
        ({"tensors": EMBEDDING}, "all A or all B are zero"),
        ({"tensors": {}}, "no tensor; expected base_model.model.MODULE.lora_A.weight"),
        ({"tensors": lora_tensors(prefix="model.")}, "expected base_model.model.MODULE.lora_A"),
        (
            {"tensors": lora_tensors(prefix="base_model.model.language_model.")},
            "no module language_model.model.layers.0.mlp.up_proj",
        ),
        (
            {"tensors": lora_tensors(prefix="base_model.model._orig_mod.")},
            "vLLM would leave these tensors out without a word",
        ),
    ],
)
def test_an_adapter_that_does_not_fit_is_named(
    tmp_path: Path, adapter: dict[str, Any], message: str
) -> None:
    with pytest.raises(ArtifactError) as caught:
        check(tmp_path, **adapter)
    assert message in caught.value.message
    assert caught.value.exit_code == 3


def test_one_module_that_works_is_enough(tmp_path: Path) -> None:
    tensors = lora_tensors()
    name = next(name for name in tensors if "q_proj.lora_B" in name)
    check(tmp_path, tensors={**tensors, name: np.zeros_like(tensors[name])})


def test_a_model_in_parts_leaves_the_names_to_the_proof(tmp_path: Path) -> None:
    tensors = lora_tensors(prefix="base_model.model.language_model.")
    check(tmp_path, base_config={"text_config": {}}, tensors=tensors)


def test_a_reference_of_another_adapter_is_refused(tmp_path: Path) -> None:
    make_base(tmp_path / "base")
    one = make_adapter(tmp_path / "one")
    two = make_adapter(tmp_path / "two", scale=2.0)
    reference = make_reference(tmp_path / "reference", two)
    with pytest.raises(ArtifactError, match=r"names the adapter .*; expected .*, this adapter"):
        require_fit(one, reference, settings_of(tmp_path))

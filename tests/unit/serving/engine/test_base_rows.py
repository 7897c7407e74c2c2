"""vLLM's own functions for CPUs, corrected: a token of the base model gets no adapter's change."""

from __future__ import annotations

import importlib.util
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from serving.engine.base_rows import (
    skips_base_rows,
    without_base_rows_expanded,
    without_base_rows_shrunk,
)
from serving.engine.prompt_rows import with_prompt_rows

INDICES = torch.tensor([0, -1, 1, -1])
RANK, WIDTH = 3, 5


@pytest.fixture(scope="module")
def lora_ops() -> ModuleType:
    """Load the file of the installed vLLM without the rest of vLLM, which takes ten seconds."""
    vllm = importlib.util.find_spec("vllm")
    assert vllm is not None and vllm.submodule_search_locations
    path = f"{vllm.submodule_search_locations[0]}/lora/ops/torch_ops/lora_ops.py"
    spec = importlib.util.spec_from_file_location("lora_ops_of_vllm", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def values() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {
        "inputs": torch.randn(4, WIDTH),
        "a": torch.randn(2, RANK, WIDTH),
        "b": torch.randn(2, WIDTH, RANK),
        "output": torch.randn(4, WIDTH),
    }


def by_hand(values: dict[str, torch.Tensor], scaling: float) -> torch.Tensor:
    """Token by token: the layer's output plus scaling * B A x of the token's own adapter."""
    rows = []
    for row, index in enumerate(INDICES.tolist()):
        change = torch.zeros(WIDTH)
        if index >= 0:
            change = scaling * values["b"][index] @ (values["a"][index] @ values["inputs"][row])
        rows.append(values["output"][row] + change)
    return torch.stack(rows)


def test_only_the_tokens_of_an_adapter_are_changed(
    lora_ops: ModuleType, values: dict[str, torch.Tensor]
) -> None:
    shrink = without_base_rows_shrunk(lora_ops.bgmv_shrink)
    expand = without_base_rows_expanded(lora_ops.bgmv_expand)
    buffer, output = torch.zeros(4, RANK), values["output"].clone()
    shrink(values["inputs"], values["a"], buffer, INDICES, 2.0)
    expand(buffer, values["b"], output, INDICES, add_inputs=True)
    assert torch.allclose(output, by_hand(values, 2.0), atol=1e-6)
    assert torch.equal(output[1], values["output"][1])


@pytest.mark.parametrize(("name", "places"), [("bgmv_expand", ()), ("bgmv_expand_slice", (1, 3))])
def test_an_expansion_adds_nothing_where_inputs_are_not_zero(
    lora_ops: ModuleType, values: dict[str, torch.Tensor], name: str, places: tuple[int, ...]
) -> None:
    inputs, weights = torch.randn(4, RANK), values["b"][:, : (places or (0, WIDTH))[1]]
    plain, corrected = values["output"].clone(), values["output"].clone()
    expand: Any = getattr(lora_ops, name)
    expand(inputs, weights, plain, INDICES, *places, add_inputs=True)
    without_base_rows_expanded(expand)(
        inputs, weights, corrected, INDICES, *places, add_inputs=True
    )
    is_base = INDICES < 0
    assert torch.equal(corrected[is_base], values["output"][is_base])
    assert torch.equal(corrected[~is_base], plain[~is_base])
    assert not torch.equal(plain, values["output"])


def test_the_defect_is_seen_and_gone_when_corrected(lora_ops: ModuleType) -> None:
    # If this fails after an update of vLLM, the defect is mended there: delete the correction.
    assert not skips_base_rows(lora_ops.bgmv_shrink)
    assert skips_base_rows(without_base_rows_shrunk(lora_ops.bgmv_shrink))


@pytest.mark.parametrize(
    ("indices", "expected"),
    [([1, 1, 1], "changed"), ([0, 1, 1], "NaN"), ([0, 1, 0, -1], "as in vLLM")],
)
def test_rows_of_a_prompt_get_the_change_of_the_only_adapter(
    lora_ops: ModuleType,
    values: dict[str, torch.Tensor],
    indices: list[int],
    expected: str,
) -> None:
    def of_vllm(_: Any, y: torch.Tensor, *_args: Any) -> None:
        y.fill_(7.0)

    add = with_prompt_rows(of_vllm, lora_ops.bgmv_shrink, lora_ops.bgmv_expand)
    wrapper, output = SimpleNamespace(sampler_indices=torch.tensor(indices)), values["output"]
    found = output.clone()
    add(wrapper, found, values["inputs"], values["a"], values["b"], 2.0)
    if expected == "changed":
        change = 2.0 * values["inputs"] @ values["a"][1].T @ values["b"][1].T
        torch.testing.assert_close(found, output + change)
    elif expected == "NaN":
        assert found.isnan().all()
    else:
        assert (found == 7.0).all()


def test_rows_of_a_prompt_stay_where_no_adapter_changes_the_head(
    lora_ops: ModuleType, values: dict[str, torch.Tensor]
) -> None:
    def of_vllm(*_: Any) -> None:
        raise AssertionError("the rows are not those of the requests")

    add = with_prompt_rows(of_vllm, lora_ops.bgmv_shrink, lora_ops.bgmv_expand)
    wrapper, output = (
        SimpleNamespace(sampler_indices=torch.tensor([0, 1])),
        values["output"].clone(),
    )
    add(wrapper, output, values["inputs"], values["a"], torch.zeros_like(values["b"]), 1.0)
    assert torch.equal(output, values["output"])

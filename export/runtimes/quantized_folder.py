"""A quantized mixture of experts, computed in float32 by the rules of its scheme.

transformers joins a layer's experts in one module. It loads quantized experts only under some
schemes, rounds the dequantized weights to bfloat16, and never rounds the inputs of an expert. So
compressed-tensors' own functions dequantize the weights here while they are read, and round the
inputs of each quantized layer and of both products of an expert.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from export.weights.tensor_file import read_tensor_file
from tuneline.core.errors import ArtifactError
from tuneline.models.folder import CONFIG, read_json, weight_files

EXPERT = re.compile(r"(.+)\.experts\.\d+\.\w+")
PART = re.compile(r"(.+)\.(weight_(?:packed|scale|shape)|weight)")
"""Zero points and column orders are not computed here; a tensor of either is left over, which is an
error."""

Rounding = Callable[[torch.Tensor], torch.Tensor]
"""Rounds activations of shape (…, hidden), with one scale per token."""


@dataclass(frozen=True)
class Dequantized:
    """A weight that is dequantized when transformers reads it like a slice of a file.

    So memory never holds the model twice.
    """

    parts: dict[str, Any]
    scheme: Any

    def get_dtype(self) -> str:
        return "F32"

    def __getitem__(self, _: Any) -> torch.Tensor:
        from compressed_tensors.compressors import BaseCompressor

        parts = {kind: part[...] for kind, part in self.parts.items()}
        parts["weight_scale"] = parts["weight_scale"].float()
        compressor = BaseCompressor.get_value_from_registry(self.scheme.format)
        weight = compressor.decompress(parts, self.scheme)["weight"]
        return torch.as_tensor(weight, dtype=torch.float32)


def has_quantized_experts(path: Path) -> bool:
    """Return whether a folder is in compressed-tensors' format and stores its experts one by one.

    Raises:
        ArtifactError: A file cannot be read.
    """
    said = read_json(path / CONFIG).get("quantization_config") or {}
    return said.get("quant_method") == "compressed-tensors" and any(
        (part := PART.fullmatch(entry.name)) and EXPERT.fullmatch(part[1])
        for file in weight_files(path)
        for entry in read_tensor_file(file).entries
    )


def load_quantized_experts(path: Path, **options: Any) -> tuple[Any, dict[str, Any]]:
    """Load the causal LM of such a folder in float32.

    Returns:
        The model, and transformers' report of missing and unexpected tensors.

    Args:
        options: Arguments of `from_pretrained`.

    Raises:
        ArtifactError: The quantization is of a kind that is not computed here, or config.json and
            the weights differ about the layers that are quantized.
    """
    import safetensors
    import transformers
    from compressed_tensors.quantization import QuantizationConfig

    said = QuantizationConfig.model_validate(read_json(path / CONFIG)["quantization_config"])
    scheme = _only_scheme(said, path)
    config = transformers.AutoConfig.from_pretrained(path, local_files_only=True)
    del config.quantization_config
    with ExitStack() as files:
        opened = [
            files.enter_context(safetensors.safe_open(file, framework="pt"))
            for file in weight_files(path)
        ]
        stored = {name: file.get_slice(name) for file in opened for name in file.keys()}  # noqa: SIM118
        state, quantized = _dequantized(stored, scheme)
        network, info = transformers.MODEL_FOR_CAUSAL_LM_MAPPING[type(config)].from_pretrained(
            None, config=config, state_dict=state, dtype=torch.float32, output_loading_info=True,
            **options,
        )  # fmt: skip
    network.generation_config = _generation_config(path, network)
    modules = dict(network.named_modules())
    linear = {name for name, module in modules.items() if isinstance(module, torch.nn.Linear)}
    experts = {name.removesuffix(".weight") for name in state if EXPERT.match(name)}
    _check_said(said, linear | experts, quantized, path)
    if scheme.input_activations is not None:
        _round_inputs(modules, quantized, token_rounding(scheme.input_activations), path)
    return network, info


def token_rounding(activations: Any) -> Rounding:
    """Return the function that quantizes and dequantizes activations as a scheme does."""
    from compressed_tensors.quantization.lifecycle.forward import fake_quantize
    from compressed_tensors.quantization.utils import compute_dynamic_scales_and_zp

    def rounded(values: torch.Tensor) -> torch.Tensor:
        # Of a two-dimensional tensor, compressed-tensors gives all tokens one common scale.
        tokens = values.reshape(1, -1, values.shape[-1])
        scale, zero_point = compute_dynamic_scales_and_zp(tokens, activations, torch.nn.Module())
        found = fake_quantize(tokens, scale, zero_point, activations)
        return torch.as_tensor(found).reshape(values.shape)

    return rounded


def rounded_experts(
    experts: Any,
    rounded: Rounding,
    hidden_states: torch.Tensor,
    top_k_index: torch.Tensor,
    top_k_weights: torch.Tensor,
) -> torch.Tensor:
    """Compute a layer's experts with the inputs of both products rounded.

    Args:
        experts: transformers' module: `gate_up_proj` of shape (experts, 2 · intermediate, hidden),
            the gates first, and `down_proj` of shape (experts, hidden, intermediate).
        hidden_states: Shape (tokens, hidden).
        top_k_index: The experts of each token, shape (tokens, k).
        top_k_weights: The shares of these experts, of the same shape.
    """
    linear = torch.nn.functional.linear
    inputs = rounded(hidden_states)
    result = torch.zeros_like(hidden_states)
    for expert in top_k_index.unique().tolist():
        token, place = torch.where(top_k_index == expert)
        hidden = experts._apply_gate(linear(inputs[token], experts.gate_up_proj[expert]))
        found = linear(rounded(hidden), experts.down_proj[expert])
        result.index_add_(0, token, found * top_k_weights[token, place, None])
    return result


def _only_scheme(said: Any, path: Path) -> Any:
    schemes = [group for group in said.config_groups.values() if group.weights is not None]
    if len(schemes) != 1 or schemes[0].output_activations is not None:
        raise ArtifactError(
            f"{path / CONFIG}: a mixture of experts has {len(schemes)} quantization schemes, or "
            "quantized layer outputs; expected one scheme, for weights and inputs"
        )
    (scheme,) = schemes
    activations = scheme.input_activations
    if activations is not None and (activations.dynamic, activations.strategy) != (True, "token"):
        raise ArtifactError(
            f"{path / CONFIG}: a mixture of experts whose activations are quantized by "
            f"{activations.strategy}; expected by token, at run time"
        )
    scheme.format = scheme.format or said.format
    return scheme


def _dequantized(stored: dict[str, Any], scheme: Any) -> tuple[dict[str, Any], set[str]]:
    """Return each tensor of the model, and the names of the quantized modules."""
    parts: dict[str, dict[str, Any]] = {}
    for name, tensor in stored.items():
        if part := PART.fullmatch(name):
            parts.setdefault(part[1], {})[part[2]] = tensor
    quantized = {module for module, found in parts.items() if "weight_scale" in found}
    state: dict[str, Any] = {
        f"{module}.weight": Dequantized(parts[module], scheme) for module in quantized
    }
    for name, tensor in stored.items():
        part = PART.fullmatch(name)
        if part is None or part[1] not in quantized:
            state[name] = tensor
    return state, quantized


def _check_said(said: Any, modules: Collection[str], quantized: set[str], path: Path) -> None:
    """Check that config.json names the quantized layers, because vLLM follows config.json."""
    from compressed_tensors.utils.match import match_name

    targets = [target for group in said.config_groups.values() for target in group.targets]
    for module in sorted(quantized | set(modules)):
        is_said = not any(match_name(module, target) for target in said.ignore) and any(
            target == "Linear" or match_name(module, target) for target in targets
        )
        if is_said is not (module in quantized):
            raise ArtifactError(
                f"{path / CONFIG}: says that {module} is {'' if is_said else 'not '}quantized; "
                "the file stores its weights otherwise"
            )


def _round_inputs(
    modules: dict[str, Any], quantized: set[str], rounded: Rounding, path: Path
) -> None:
    for name, module in modules.items():
        if name in quantized:
            module.register_forward_pre_hook(lambda _, given: (rounded(given[0]),))
        if name.endswith(".experts") and hasattr(module, "gate_up_proj"):
            plain = getattr(module, "has_gate", False) and module.is_concatenated
            if not plain or module.has_bias or module.is_transposed:
                raise ArtifactError(
                    f"{path}: {name}: {type(module).__name__} has another computation; "
                    "expected experts of two products without biases and a gate between them"
                )
            module.forward = lambda *given, experts=module: rounded_experts(
                experts, rounded, *given
            )


def _generation_config(path: Path, network: Any) -> Any:
    import transformers

    try:
        return transformers.GenerationConfig.from_pretrained(path, local_files_only=True)
    except OSError:
        return network.generation_config

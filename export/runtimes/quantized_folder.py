"""A model folder in compressed-tensors' format, computed in float32 by the rules of its scheme.

transformers loads such folders too, but not of every family (NanoChat, Mamba 2, HRM), leaves layers
that it renames in bfloat16 (GPT-NeoX), lets all tokens share a scale in latent attention, and never
rounds the inputs of an expert. So compressed-tensors' own functions dequantize the weights here
while they are read, and round the inputs of each quantized layer and of both products of an expert.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from export.weights.memory_names import memory_names
from export.weights.tensor_file import read_tensor_file
from tuneline.core.errors import ArtifactError
from tuneline.models.folder import CONFIG, read_json, weight_files
from tuneline.models.load import served_class

EXPERT = re.compile(r"(.+)\.experts\.\d+\.\w+")
PART = re.compile(r"(.+)\.(weight_(?:packed|scale|shape)|weight)")
ELSEWHERE = ("weight_zero_point", "weight_g_idx", "weight_global_scale", "input_scale")
"""Tensors of schemes that are not computed here. In a mixture one is left over: an error."""

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


def scheme_here(path: Path) -> Any | None:
    """Return the quantization scheme of a folder that is computed here.

    Returns:
        None for a folder without quantization, and for a dense model of another scheme (scales of
        inputs or column orders in the files, or several schemes), which transformers loads.

    Raises:
        ArtifactError: A file cannot be read, or a mixture of experts has another scheme.
    """
    from compressed_tensors.quantization import QuantizationConfig

    written = read_json(path / CONFIG).get("quantization_config") or {}
    if written.get("quant_method") != "compressed-tensors":
        return None
    said = QuantizationConfig.model_validate(written)
    schemes = [group for group in said.config_groups.values() if group.weights is not None]
    names = [one.name for file in weight_files(path) for one in read_tensor_file(file).entries]
    modules = {part[1] for name in names if (part := PART.fullmatch(name))}
    problem = _problem_of(schemes)
    if any(EXPERT.fullmatch(module) for module in modules):
        if problem:
            raise ArtifactError(f"{path / CONFIG}: a mixture of experts {problem}")
    elif problem or any(name.endswith(ELSEWHERE) for name in names):
        return None
    (scheme,) = schemes
    scheme.format = scheme.format or said.format
    return scheme


def load_quantized(path: Path, scheme: Any, **options: Any) -> tuple[Any, dict[str, Any]]:
    """Load a folder with such a scheme in float32.

    Returns:
        The model, and transformers' report of missing and unexpected tensors.

    Args:
        options: Arguments of `from_pretrained`.

    Raises:
        ArtifactError: config.json and the weights differ about the layers that are quantized, or
            experts have another computation.
    """
    import safetensors
    import transformers
    from compressed_tensors.quantization import QuantizationConfig

    config = transformers.AutoConfig.from_pretrained(path, local_files_only=True)
    said = QuantizationConfig.model_validate(config.quantization_config)
    del config.quantization_config
    with ExitStack() as files:
        opened = [
            files.enter_context(safetensors.safe_open(file, framework="pt"))
            for file in weight_files(path)
        ]
        stored = {name: file.get_slice(name) for file in opened for name in file.keys()}  # noqa: SIM118
        state, quantized = _dequantized(stored, scheme)
        network, info = served_class(path)._model_mapping[type(config)].from_pretrained(
            None, config=config, state_dict=state, dtype=torch.float32, output_loading_info=True,
            **options,
        )  # fmt: skip
    network.generation_config = _generation_config(path, network)
    sources = _sources(network, state)
    experts = {name.removesuffix(".weight") for name in state if EXPERT.match(name)}
    _check_said(said, {*sources.values(), *experts}, quantized, path)
    if scheme.input_activations is not None:
        rounded = token_rounding(scheme.input_activations)
        _round_inputs(network, {name for name in sources if sources[name] in quantized}, rounded)
        _round_experts(network, rounded, path)
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


def _problem_of(schemes: list[Any]) -> str | None:
    """Return why schemes of config.json are not computed here; None if they are."""
    if len(schemes) != 1 or schemes[0].output_activations is not None:
        return (
            f"has {len(schemes)} quantization schemes, or quantized layer outputs; expected one "
            "scheme, for weights and inputs"
        )
    inputs = schemes[0].input_activations
    if inputs is not None and (inputs.dynamic, inputs.strategy) != (True, "token"):
        return (
            f"whose activations are quantized by {inputs.strategy}; expected by token, at run time"
        )
    return None


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


def _sources(network: Any, state: Collection[str]) -> dict[str, str]:
    """Return the module in the files of each linear layer of a network, by its name in memory.

    A layer that the files do not store, such as a tied output layer, has its own name.
    """
    memory_name = memory_names(network)
    linear = [
        name for name, module in network.named_modules() if isinstance(module, torch.nn.Linear)
    ]
    found = {name: name for name in linear}
    for stored in state:
        name, _, converter = memory_name(stored)
        first, *others = converter.target_patterns if converter is not None else [""]
        for one in [name, *(name.replace(first, other) for other in others)]:
            if (module := one.removesuffix(".weight")) != one and module in found:
                found[module] = stored.removesuffix(".weight")
    return found


def _round_inputs(network: Any, names: Collection[str], rounded: Rounding) -> None:
    for name in names:
        network.get_submodule(name).register_forward_pre_hook(
            lambda _, given: (rounded(given[0]), *given[1:])
        )


def _round_experts(network: Any, rounded: Rounding, path: Path) -> None:
    for name, module in network.named_modules():
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

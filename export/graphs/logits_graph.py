"""A causal language model as one function of token ids, for export as a graph.

`input_ids` (batch, length) → `logits` (batch, length, vocabulary), without a key-value cache. A
causal model uses only earlier positions. Rows of unequal length are therefore padded at the right
with any token, the logits at the padding are ignored, and the graph needs no attention mask.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from export.runtimes.transformers_folder import load_model
from export.weights.tensor_file import read_tensor_file
from tuneline.core.artifact import Artifact, new_artifact, open_artifact
from tuneline.core.disk import require_disk_space
from tuneline.core.errors import ArtifactError
from tuneline.core.progress import logger
from tuneline.core.secrets import first_line
from tuneline.models.companion_files import copy_companions
from tuneline.models.folder import CONFIG, read_json, weight_files
from tuneline.models.own_code import copy_without_code
from tuneline.models.source import ModelSource

EXAMPLE_SHAPE = (2, 5)
"""Shape of the example input: without a size of 1, which tracers treat as a constant."""

CHECKED_SHAPES = ((1, 1), (1, 2), (1, 9), (2, 5), (3, 7), (5, 3))
"""Shapes at which every exported graph is compared with its model before it is kept; one sequence
of the model's maximum length, up to LONGEST_CHECKED, is added."""

LONGEST_CHECKED = 512
"""In tokens. It detects most faults of positions and windows within a few seconds."""

MAX_LOGIT_DIFFERENCE = 1e-3
"""In float32, relative to the largest logit if that is above 1. Measured differences are 100 times
smaller; the difference of a size that was traced as a constant is 100 times larger."""

LENGTH_BOUND_ROPES = ("dynamic", "longrope")
"""Rotary positions whose frequencies change with the length of the sequence. A traced graph keeps
the frequencies of the length that it was traced at."""

MIN_NOISE_POSITIONS = 8
"""Fewest positions for which `noise` is meaningful."""


class Logits(torch.nn.Module):  # type: ignore[misc]  # torch is untyped here
    """The model with one tensor in and one tensor out."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.network(input_ids=input_ids, use_cache=False).logits
        return logits


@contextmanager
def exportable(model: ModelSource, what: str) -> Iterator[Logits]:
    """Load the float32 model of a folder for tracing; turn a tracer's failure into an error that
    names the family.

    Raises:
        ArtifactError: The model cannot be loaded, or the tracer cannot take its family.
    """
    require_plain(model)
    # Experts become plain matrix products: no runtime has transformers' default operator for them.
    # A model without experts ignores the option.
    network, _ = load_model(model.path, experts_implementation="batched_mm")
    for rope_type in sorted(rope_types(network.config.to_dict()).intersection(LENGTH_BOUND_ROPES)):
        reason = (
            f"its rotary positions are of the type {rope_type!r}, which change with the length of "
            "the sequence; a graph would keep those of the length it was traced at"
        )
        raise refusal(model, network, what, reason)
    network.config.use_cache = False
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    try:
        yield Logits(network).eval()
    except (ArtifactError, MemoryError, OSError):
        raise  # a fault of the folder or the machine, not of the family
    except Exception as error:  # tracers have no common error
        logger.debug("%s", error, exc_info=True)
        raise refusal(model, network, what, first_line(error)) from error


def write_graph(
    kind: str,
    file: str,
    what: str,
    model: ModelSource,
    out: Path,
    *,
    trace: Callable[[Logits], Any],
    save: Callable[[Any, Path], None],
    load: Callable[[Path], Callable[[torch.Tensor], torch.Tensor]],
) -> Artifact:
    """Write a model's graph as `file` of an artifact, with the companion files.

    The graph is kept only if it gives the model's logits at all checked shapes.

    Args:
        trace: Returns the graph of a model, for `save`.
        load: Reads the graph back as `input_ids` → logits.

    Raises:
        ArtifactError: The model cannot be loaded, or its family cannot be traced so that every
            batch and length works.
        DiskFullError: The disk has too little space.
    """
    require_space(model, out)
    with new_artifact(out, kind, config={}, inputs=[model.as_input("model")]) as draft:
        path = draft.dir / file
        with exportable(model, what) as logits:
            save(trace(logits), path)
            graph = load(path)
        contract = check_shapes(graph, logits, model, what)
        copy_companion_files(model.path, draft.dir)
        draft.metrics["shape_contract"] = contract
        draft.metrics["size_bytes"] = path.stat().st_size
    logger.info("  %s: any batch, lengths up to %s", file, contract["length"]["max"])
    return open_artifact(out, kind=kind)


def require_space(model: ModelSource, out: Path, bits: int = 32) -> None:
    """Refuse a graph that does not fit on the disk, before its model is loaded and traced.

    Args:
        bits: Of each weight, at least.

    Raises:
        ArtifactError: A file of the model is cut short.
        DiskFullError: The disk has too little space.
    """
    files = [read_tensor_file(path) for path in weight_files(model.path)]
    num_weights = sum(entry.num_elements for file in files for entry in file.entries)
    require_disk_space(out, num_weights * bits // 8)


def require_plain(model: ModelSource) -> None:
    """Check that a folder can become a graph: a text model that is not quantized.

    Quantized weights would be rounded a second time, and a graph takes only token ids.

    Raises:
        ArtifactError: The folder is quantized, or is a model of text and pictures.
    """
    config = read_json(model.path / CONFIG)
    if "text_config" in config:
        raise ArtifactError(
            f"{model.name}: is a model of text and pictures ({config.get('model_type')}); expected "
            "a text model for an ONNX, TorchScript or torch.export graph"
        )
    if config.get("quantization_config"):
        raise ArtifactError(
            f"{model.name}: is quantized; expected the model that it was quantized from",
            hint="Export that model; for ONNX choose --weights int8 or int4.",
        )


def check_shapes(
    run: Callable[[torch.Tensor], torch.Tensor],
    logits: Logits,
    model: ModelSource,
    what: str,
    max_noise: float | None = None,
) -> dict[str, Any]:
    """Run an exported graph at several batches and lengths and compare it with its model.

    Args:
        run: `input_ids` (batch, length), int64 → logits, float32.
        max_noise: For rounded weights, the largest allowed `noise`; None applies
            MAX_LOGIT_DIFFERENCE to every logit.

    Returns:
        The shape contract for the manifest.

    Raises:
        ArtifactError: The graph fails at a shape, or computes something else there.
    """
    vocabulary = logits.network.config.vocab_size
    generator = torch.Generator().manual_seed(0)
    largest = 0.0
    shapes = (*CHECKED_SHAPES, (1, checked_length(logits.network.config)))
    for batch, length in shapes:
        input_ids = torch.randint(vocabulary, (batch, length), generator=generator)
        with torch.inference_mode():
            expected = logits(input_ids).float()
        try:
            found = run(input_ids)
        except (MemoryError, OSError):
            raise  # a fault of the machine, not of the graph
        except Exception as error:  # runtimes have no common error
            reason = f"its graph fails at batch {batch}, length {length}: {first_line(error)}"
            raise refusal(model, logits.network, what, reason) from error
        same = found.shape == expected.shape
        difference = float((found - expected).abs().max()) if same else float("nan")
        largest = max(largest, difference)
        if not same or not bool(found.isfinite().all()):
            right = False
        elif max_noise is None:
            right = difference <= MAX_LOGIT_DIFFERENCE * max(1.0, float(expected.abs().max()))
        else:
            right = batch * length < MIN_NOISE_POSITIONS or noise(expected, found) <= max_noise
        if not right:
            reason = (
                f"its graph computes something else at batch {batch}, length {length} (logits "
                f"differ by {difference:.2g}, shape {tuple(found.shape)})"
            )
            raise refusal(model, logits.network, what, reason)
    return {
        "inputs": {"input_ids": {"dtype": "int64", "shape": ["batch", "length"]}},
        "outputs": {"logits": {"dtype": "float32", "shape": ["batch", "length", vocabulary]}},
        "batch": {"min": 1},
        "length": {"min": 1, "max": max_length(logits.network.config)},
        "padding": "right",
        "checked_shapes": [list(shape) for shape in shapes],
        "max_logit_difference": largest,
    }


def noise(expected: torch.Tensor, found: torch.Tensor) -> float:
    """Return the share of a model's information that rounding lost: the mean KL divergence from the
    model to its graph, divided by the mean KL divergence of the model's predictions from their
    average. A graph that ignores its input has a share of 1 or more.

    Args:
        expected: Logits of the model; its last dimension is the vocabulary.
        found: Logits of the graph at the same positions, at least MIN_NOISE_POSITIONS.
    """
    p = torch.log_softmax(expected.flatten(0, -2), dim=-1)
    q = torch.log_softmax(found.flatten(0, -2), dim=-1)
    average = p.exp().mean(dim=0).clamp(min=1e-30).log()
    lost = torch.nn.functional.kl_div(q, p, log_target=True, reduction="batchmean")
    told = torch.nn.functional.kl_div(
        average.expand_as(p), p, log_target=True, reduction="batchmean"
    )
    return float(lost / told.clamp(min=1e-9))


def checked_length(config: Any) -> int:
    """Return the longest sequence at which a graph of the model is checked."""
    return min(max_length(config) or LONGEST_CHECKED, LONGEST_CHECKED)


def rope_types(config: Mapping[str, Any]) -> set[str]:
    """Return the types of rotary positions in a config.json (`default`, `linear`, `yarn`, ...),
    over all kinds of layers."""
    parameters = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kinds = [value for value in parameters.values() if isinstance(value, dict)] or [parameters]
    found = {kind.get("rope_type") or kind.get("type") for kind in kinds}
    return {str(rope_type) for rope_type in found if rope_type}


def copy_companion_files(model: Path, out: Path) -> None:
    """Copy configuration, tokenizer, chat template and stop tokens."""
    copy_without_code(model / CONFIG, out, model)
    copy_companions(model, model, out)


def max_length(config: Any) -> int | None:
    """Return the longest sequence for which the model defines positions; None without a limit."""
    length = getattr(config, "max_position_embeddings", None)
    return None if length is None else int(length)


def refusal(model: ModelSource, network: Any, what: str, reason: str) -> ArtifactError:
    """Return the error for a family that cannot be exported to `what`."""
    return ArtifactError(
        f"{model.name}: a model of the family {network.config.model_type!r} cannot be exported to "
        f"{what}: {reason}",
        hint="Nothing was written. Other forms: tuneline export form --help",
    )

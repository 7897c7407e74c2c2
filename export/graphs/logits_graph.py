"""A causal language model as one function of token ids, the form in which graphs are exported.

`input_ids` (batch, length) → `logits` (batch, length, vocabulary), without a key-value cache. A
causal model looks at earlier positions alone, so rows of unequal length are padded at the right
with any token, and the logits at the padding are ignored: no attention mask is needed.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from export.runtimes.transformers_folder import load_model
from tuneline.core.artifact import Artifact, new_artifact, open_artifact
from tuneline.core.errors import ArtifactError
from tuneline.core.progress import logger
from tuneline.models.companions import copy_companions
from tuneline.models.folder import CONFIG, read_json
from tuneline.models.source import ModelSource

EXAMPLE_SHAPE = (2, 5)
"""What a graph is traced with: no size of 1, which tracers take for a constant."""

CHECKED_SHAPES = ((1, 1), (1, 2), (1, 9), (2, 5), (3, 7), (5, 3))
"""What every exported graph is run with before it is kept, against the model it came from; and
with one sequence as long as the model takes, up to LONGEST_CHECKED."""

LONGEST_CHECKED = 512
"""Tokens: long enough for most faults of positions and windows, and a few seconds of work."""

MAX_LOGIT_DIFFERENCE = 1e-3
"""In float32: measured differences are 100 times smaller, a constant taken for a size 100 times
larger; relative to the largest logit where that is above 1."""

LENGTH_BOUND_ROPES = ("dynamic", "longrope")
"""Rotary positions whose frequencies change with the length of the sequence: a graph that is traced
at one length keeps those of that length."""


MIN_NOISE_POSITIONS = 8
"""Of fewer, the average says too little."""


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
    """The float32 model of a folder, ready to be traced; a tracer's failure names the family.

    Raises:
        ArtifactError: The model cannot be loaded, or the tracer cannot take its family.
    """
    require_plain(model)
    # Experts as plain matrix products: the default is an operator of transformers' own, which no
    # runtime has. A model without experts takes no notice.
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
        raise  # of the folder or the machine, and not of the family
    except Exception as error:  # tracers have no common error
        logger.debug("%s", error, exc_info=True)
        raise refusal(model, network, what, _first_line(error)) from error


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
    """Write a model's graph as `file` of an artifact, with all that serving needs beside it, once
    it has given the model's logits at every one of its checked shapes.

    Args:
        trace: Makes the graph of a model, in whatever form `save` takes.
        load: Reads it back as `input_ids` → logits.

    Raises:
        ArtifactError: The model cannot be loaded, or its family cannot be traced so that every
            batch and length works.
        DiskFullError: The file system ran out of space.
    """
    with new_artifact(out, kind, config={}, inputs=[model.as_input("model")]) as draft:
        path = draft.dir / file
        with exportable(model, what) as logits:
            save(trace(logits), path)
            graph = load(path)
        contract = check_shapes(graph, logits, model, what)
        copy_small_files(model.path, draft.dir)
        draft.metrics["shape_contract"] = contract
        draft.metrics["size_bytes"] = path.stat().st_size
    logger.info("  %s: any batch, lengths up to %s", file, contract["length"]["max"])
    return open_artifact(out, kind=kind)


def require_plain(model: ModelSource) -> None:
    """Graphs are made of whole numbers; a quantized folder's would be rounded a second time. And
    they take token ids alone: no pictures.

    Raises:
        ArtifactError: The folder is quantized, or is a model of text and pictures.
    """
    config = read_json(model.path / CONFIG)
    if "text_config" in config:
        raise ArtifactError(
            f"{model.name}: is a model of text and pictures ({config.get('model_type')}); ONNX, "
            "TorchScript and torch.export graphs are made of text models"
        )
    if config.get("quantization_config"):
        raise ArtifactError(
            f"{model.name}: is quantized; a graph is made of the model that it was quantized from",
            hint="Export that one; for ONNX choose --weights int8 or int4.",
        )


def check_shapes(
    run: Callable[[torch.Tensor], torch.Tensor],
    logits: Logits,
    model: ModelSource,
    what: str,
    max_noise: float | None = None,
) -> dict[str, Any]:
    """Run an exported graph at several batches and lengths, beside the model that it came from.

    Args:
        run: `input_ids` (batch, length), int64 → logits, float32.
        max_noise: For weights that were rounded, the largest `noise` allowed; None holds every
            logit to MAX_LOGIT_DIFFERENCE.

    Returns:
        The shape contract, as the manifest states it.

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
            raise  # of the machine, and not of the graph
        except Exception as error:
            reason = f"its graph fails at batch {batch}, length {length}: {_first_line(error)}"
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
    """How far rounded weights have moved a model's predictions, as a share of what they tell apart:
    the mean KL divergence from the model to its graph, over that from each of the model's
    predictions to their average. A graph that heeds its input no more is at 1 or above.

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
    """The longest sequence that a graph of the model is tried with."""
    return min(max_length(config) or LONGEST_CHECKED, LONGEST_CHECKED)


def rope_types(config: Mapping[str, Any]) -> set[str]:
    """How a config.json scales rotary positions (`default`, `linear`, `yarn`, ...), in every kind
    of its layers."""
    parameters = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kinds = [value for value in parameters.values() if isinstance(value, dict)] or [parameters]
    found = {kind.get("rope_type") or kind.get("type") for kind in kinds}
    return {str(rope_type) for rope_type in found if rope_type}


def copy_small_files(model: Path, out: Path) -> None:
    """Configuration, tokenizer, chat template and stop tokens, byte for byte."""
    shutil.copyfile(model / CONFIG, out / CONFIG)
    copy_companions(model, model, out)


def max_length(config: Any) -> int | None:
    """The longest sequence that the model's positions are defined for."""
    length = getattr(config, "max_position_embeddings", None)
    return None if length is None else int(length)


def refusal(model: ModelSource, network: Any, what: str, reason: str) -> ArtifactError:
    return ArtifactError(
        f"{model.name}: a model of the family {network.config.model_type!r} cannot be exported to "
        f"{what}: {reason}",
        hint="Nothing was written. Other forms: tuneline export --help",
    )


def _first_line(error: BaseException) -> str:
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return lines[0].strip()[:300] if lines else type(error).__name__

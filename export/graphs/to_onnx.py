"""ONNX: a decoder with its key-value cache for ONNX Runtime GenAI, or a plain graph of the logits.

ONNX Runtime GenAI's own builder writes the decoder, in a process without network access; the
decoder generates token by token. `torch.onnx.export` writes the logits graph, for scoring and for
families that the builder does not know.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.config import OnnxConfig
from export.forms import ONNX_MODULES
from export.graphs.logits_graph import (
    EXAMPLE_SHAPE,
    Logits,
    check_shapes,
    checked_length,
    copy_companion_files,
    exportable,
    max_length,
    noise,
    require_plain,
    require_space,
    rope_types,
)
from export.runtimes.onnx_folder import (
    GENAI_CONFIG,
    NO_TELEMETRY,
    ONNX_FILE,
    batch_logits,
    decoder_scores,
    logits_runner,
    require_onnx,
)
from export.runtimes.transformers_folder import load_model
from export.weights.tensor_file import read_tensor_file
from tuneline.core.artifact import Artifact, new_artifact, open_artifact
from tuneline.core.errors import ArtifactError, ConfigError
from tuneline.core.progress import logger
from tuneline.core.secrets import without_secrets
from tuneline.models.folder import CONFIG, read_json, weight_files, write_json
from tuneline.models.source import ModelSource
from tuneline.models.stop_tokens import folder_stop_ids

if TYPE_CHECKING:
    import torch

BLOCK_SIZE = 32
"""Weights that share one scale, in int4 and int8; the builder's own default."""

BITS = {"int8": 8, "int4": 4}
BUILDER_NAMES = {"float32": "fp32", "int8": "int8", "int4": "int4"}
"""The builder's own names of the number formats."""

BUILDER = """
import runpy, sys
from tuneline.core.parent import end_with_parent
end_with_parent(int(sys.argv.pop(1)))
runpy.run_module("onnxruntime_genai.models.builder", run_name="__main__", alter_sys=True)
"""
"""The program of the builder's process. One that outlives a killed export would write into the
folder of the next."""

MAX_NOISE = {"float16": 0.001, "int8": 0.05, "int4": 0.5}
"""Largest `noise` of a rounded graph. The limits are loose: only a graph that computes something
else exceeds them. `tuneline prove` measures the effect of rounding."""

MAX_LOGPROB_DIFFERENCE = 1e-3
"""For a float32 decoder, in nats; measured differences are 1000 times smaller."""

CHECKED_LENGTH = 9

DECODER_ROPES = {"default", "llama3", "longrope", "su"}
"""Rotary positions that the builder's graphs compute as transformers does. With `linear` and `yarn`
a Llama's log-probabilities are off by 0.3 nats, with `dynamic` its graph ends at the length that
the model was trained with. `su` is an older name of `longrope`."""


def export_onnx(config: OnnxConfig, model: ModelSource, out: Path) -> Artifact:
    """Write a model folder as ONNX, with its tokenizer, chat template and stop tokens.

    Returns:
        An artifact of kind `onnx`.

    Raises:
        ArtifactError: A file of the model is cut short, the model cannot be loaded, or the graph
            does not support its family.
        ConfigError: The configuration asks for a float16 decoder.
        MissingError: onnx or onnxruntime is not installed.
        DiskFullError: The disk has too little space.
    """
    for module in ONNX_MODULES:
        require_onnx(module)
    weights, graph = config.weights, config.graph
    # The logits graph is rounded after it is written in float32.
    require_space(model, out, BITS.get(weights, 32) if graph == "decoder" else 32)
    with new_artifact(
        out, "onnx", config=config.model_dump(), inputs=[model.as_input("model")]
    ) as draft:
        if graph == "decoder":
            contract = _write_decoder(model, draft.dir, weights)
        else:
            contract = _write_logits(model, draft.dir, weights)
        copy_companion_files(model.path, draft.dir)
        draft.metrics["shape_contract"] = contract
        draft.metrics["size_bytes"] = sum(
            file.stat().st_size for file in draft.dir.glob(f"{ONNX_FILE}*")
        )
    logger.info("  %s graph with %s weights, %s", graph, weights, out.name)
    return open_artifact(out, kind="onnx")


def _write_decoder(model: ModelSource, folder: Path, weights: str) -> dict[str, Any]:
    if weights == "float16":
        raise ConfigError(
            "--weights float16: ONNX Runtime has no float16 decoder for a CPU; expected float32, "
            "int8 or int4",
            hint="Try: tuneline export form onnx-int8, or form onnx-logits, which takes float16.",
        )
    for file in weight_files(model.path):
        read_tensor_file(file)  # a truncated file must not be reported as an unsupported family
    require_plain(model)
    stop_ids = sorted(folder_stop_ids(model.path))
    if not stop_ids:
        raise ArtifactError(
            f"{model.name}: has no stop token, so a decoder would never end an answer",
            hint='Add "eos_token_id" to its generation_config.json.',
        )
    config = read_json(model.path / CONFIG)
    for rope_type in sorted(rope_types(config) - DECODER_ROPES):
        reason = f"the builder's graph has no rotary positions of the type {rope_type!r}"
        raise _no_decoder(model, str(config.get("model_type")), reason)
    run_builder(model, folder, weights)
    _mend_decoder(folder / ONNX_FILE, model)
    # The builder gathers stop tokens from several files; the artifact keeps the model's own.
    genai = read_json(folder / GENAI_CONFIG)
    genai["model"]["eos_token_id"] = stop_ids
    # The graph's attention applies the window itself. With this entry the runtime makes the cache
    # too small and fails at the end of the window.
    genai["model"]["decoder"].pop("sliding_window", None)
    write_json(folder / GENAI_CONFIG, genai)
    lengths, vocabulary = _check_decoder(model, folder, weights)
    cache = ["batch", genai["model"]["decoder"]["num_key_value_heads"], "past", "head_size"]
    return {
        "inputs": {
            "input_ids": {"dtype": "int64", "shape": ["batch", "length"]},
            "attention_mask": {"dtype": "int64", "shape": ["batch", "past + length"]},
            "past_key_values.*": {"dtype": "float32", "shape": cache},
        },
        "outputs": {"logits": {"dtype": "float32", "shape": ["batch", "length", vocabulary]}},
        "length": {"min": 1, "max": genai["model"]["context_length"]},
        "padding": "right",
        "checked_lengths": lengths,
    }


def _check_decoder(model: ModelSource, folder: Path, weights: str) -> tuple[list[int], int]:
    """Compare a decoder with its model: in one pass, continued from its cache, and in a batch.

    Returns:
        The lengths of the runs, and the number of logits per position.

    Raises:
        ArtifactError: The graph cannot be run, or computes something else.
    """
    import torch

    network, _ = load_model(model.path)
    family, vocabulary = str(network.config.model_type), int(network.config.vocab_size)
    score = decoder_scores(folder)
    generator = torch.Generator().manual_seed(0)
    lengths = sorted({CHECKED_LENGTH, checked_length(network.config)})
    for length in lengths:
        input_ids = torch.randint(vocabulary, (1, length), generator=generator)
        with torch.inference_mode():
            expected = network(input_ids=input_ids, use_cache=False).logits[0].float()
        token_ids, begun = input_ids[0].tolist(), length * 2 // 3
        short = min(length, CHECKED_LENGTH)
        rows = [token_ids[:short], token_ids[: short // 2]]
        try:
            whole = score(token_ids, length)
            parts = (score(token_ids[:begun], begun), score(token_ids, length - begun))
            batch = batch_logits(folder, rows)
        except (MemoryError, OSError):
            raise  # a fault of the machine, not of the graph
        except Exception as error:  # runtimes have no common error
            raise _no_decoder(model, family, f"its graph cannot be run: {error}") from error
        in_batch = torch.cat([expected[: len(row)] for row in rows])
        for wanted, found, how in (
            (expected, whole, "in one pass"),
            (expected, torch.cat(parts), "with its cache"),
            (in_batch, torch.cat(batch), "in a batch with padding at the right"),
        ):
            off = _difference(wanted, found, weights)
            if off is not None:
                reason = f"its graph computes something else at length {length}, {how}: {off}"
                raise _no_decoder(model, family, reason)
    return lengths, vocabulary


def _difference(expected: torch.Tensor, found: torch.Tensor, weights: str) -> str | None:
    """Return the difference of a decoder's logits in words; None if they are the model's."""
    if found.shape != expected.shape or not bool(found.isfinite().all()):
        return f"logits of shape {tuple(found.shape)}, or not finite"
    if weights == "float32":
        off = float((found.log_softmax(dim=-1) - expected.log_softmax(dim=-1)).abs().max())
        right = off <= MAX_LOGPROB_DIFFERENCE
        return None if right else f"log-probabilities differ by {off:.2g} nats"
    share = noise(expected, found)
    if share <= MAX_NOISE[weights]:
        return None
    return f"noise is {share:.2g}; expected at most {MAX_NOISE[weights]}"


def _mend_decoder(path: Path, model: ModelSource) -> None:
    """Add to a graph what the builder omits for some families: Mistral's attention window, and the
    epsilon of a layer norm from the key `layer_norm_eps`, which Phi uses.

    The builder also calls the commit of the repository that Python is installed in its own. Without
    it, one model gives the same bytes after every commit.

    Raises:
        ArtifactError: The family has an attention window that its graph does not have.
    """
    import onnx

    config = read_json(model.path / CONFIG)
    window = config.get("sliding_window") if config.get("use_sliding_window", True) else None
    epsilon = None if "rms_norm_eps" in config else config.get("layer_norm_eps")
    graph = onnx.load(str(path), load_external_data=False)
    graph.producer_version = graph.producer_version.partition("+")[0]
    windows = set()
    for node in graph.graph.node:
        attributes = {attribute.name: attribute for attribute in node.attribute}
        if node.op_type == "GroupQueryAttention":
            if window is not None and config["model_type"] == "mistral":
                attributes["local_window_size"].i = int(window)
            windows.add(attributes["local_window_size"].i)
        if epsilon is not None and node.op_type.endswith("LayerNormalization"):
            attributes["epsilon"].f = float(epsilon)
    if window is not None and windows <= {-1}:
        reason = f"its attention window of {window} is missing from the builder's graph"
        raise _no_decoder(model, str(config["model_type"]), reason)
    path.write_bytes(graph.SerializeToString())


def run_builder(model: ModelSource, folder: Path, weights: str) -> None:
    """Run ONNX Runtime GenAI's builder in its own process, without network and without a token.

    The builder loads the whole model and prints to stdout.

    Raises:
        ArtifactError: The builder does not know the family, or fails; the error quotes it.
    """
    config = read_json(model.path / CONFIG)
    family = str((config.get("architectures") or [config.get("model_type", "unknown")])[0])
    unknown = "ONNX Runtime GenAI's builder does not know the family"
    if f'"{family}"' not in _builder_source():
        raise _no_decoder(model, family, unknown)  # saves the builder's start of half a minute
    with tempfile.TemporaryDirectory(prefix="tuneline-onnx-") as cache:
        command = [
            sys.executable, "-P", "-c", BUILDER, str(os.getpid()), "-i", str(model.path), "-o",
            str(folder), "-p", BUILDER_NAMES[weights], "-e", "cpu", "-c", cache,
            # A tied embedding would be read from the output layer's rounded weights.
            "--extra_options", "hf_token=false", "shared_embeddings=false",
        ]  # fmt: skip
        environment = without_secrets(os.environ)
        environment |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
        environment.setdefault(*NO_TELEMETRY)
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    logger.debug("%s%s", done.stdout, done.stderr)
    if done.returncode == 0 and (folder / GENAI_CONFIG).is_file():
        return
    lines = [line for line in done.stderr.strip().splitlines() if line.strip()]
    reason = lines[-1] if lines else f"exit code {done.returncode}"
    raise _no_decoder(model, family, unknown if "not currently supported" in reason else reason)


def _no_decoder(model: ModelSource, family: str, reason: str) -> ArtifactError:
    return ArtifactError(
        f"{model.name}: a model of the family {family!r} cannot be exported to an ONNX decoder: "
        f"{reason}",
        hint="Nothing was written. Try: tuneline export form onnx-logits --model DIR --out DIR",
    )


def _builder_source() -> str:
    """Return the builder's source, in which a chain of comparisons names the known families."""
    package = importlib.util.find_spec("onnxruntime_genai")
    if package is None or package.origin is None:
        return ""
    return (Path(package.origin).parent / "models" / "builder.py").read_text(encoding="utf-8")


def _write_logits(model: ModelSource, folder: Path, weights: str) -> dict[str, Any]:
    with exportable(model, "ONNX") as logits:
        path = folder / ONNX_FILE
        trace_logits(logits).save(str(path), external_data=True)
        _forget_sources(path)
        contract = check_shapes(logits_runner(path), logits, model, "ONNX")
        if weights == "float32":
            return contract
        reduce_weights(path, weights)
        return check_shapes(logits_runner(path), logits, model, "ONNX", MAX_NOISE[weights])


def trace_logits(logits: Logits) -> Any:
    """Return torch.onnx's program of `input_ids` to logits, with batch and length dynamic."""
    import torch

    shapes = {
        0: torch.export.Dim("batch", min=1),
        1: torch.export.Dim("length", min=1, max=max_length(logits.network.config)),
    }
    example = torch.zeros(EXAMPLE_SHAPE, dtype=torch.int64)
    # torch warns that torchvision's operators are missing, which no text model has.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with torch.no_grad():
        return torch.onnx.export(
            logits, (example,), dynamo=True, verbose=False,
            dynamic_shapes={"input_ids": shapes},
            input_names=["input_ids"], output_names=["logits"],
        )  # fmt: skip


def _forget_sources(path: Path) -> None:
    """Remove the paths of this machine's source files, which torch writes into each node."""
    import onnx

    graph = onnx.load(str(path), load_external_data=False)
    for part in (graph.graph, *graph.functions):
        for node in (part, *part.node, *part.value_info):
            del node.metadata_props[:]
    path.write_bytes(graph.SerializeToString())


def reduce_weights(path: Path, weights: str) -> None:
    """Rewrite a logits graph with float16, int8 or int4 weights; inputs and outputs stay.

    Raises:
        ValueError: ONNX Runtime computes none of the graph's matrix products in that format.
    """
    import onnx

    require_onnx("onnxruntime")
    graph = onnx.load(str(path))
    if weights == "float16":
        from onnxruntime.transformers.float16 import convert_float_to_float16

        reduced = convert_float_to_float16(graph, keep_io_types=True)
    else:
        from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

        quantizer = MatMulNBitsQuantizer(
            graph, bits=BITS[weights], block_size=BLOCK_SIZE, is_symmetric=True, accuracy_level=4
        )
        quantizer.process()
        reduced = quantizer.model.model
        if not any(node.op_type == "MatMulNBits" for node in reduced.graph.node):
            raise ValueError(f"it has no matrix product that ONNX Runtime computes in {weights}")
    for file in path.parent.glob(f"{ONNX_FILE}*"):
        file.unlink()
    onnx.save(reduced, str(path), save_as_external_data=True, location=f"{ONNX_FILE}.data")

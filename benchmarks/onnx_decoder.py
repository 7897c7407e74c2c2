"""Compare generation with ONNX Runtime and with PyTorch eager, on one CPU in one run.

Builds a random-weight Llama with a real model's shape (or takes --model) and exports it as an ONNX
decoder with each number format of the weights. Every runtime generates the same number of tokens
after the same prompt, in turn, round by round. Prints a table with the ratio to PyTorch eager in
float32, then one JSON document on the last line.

    python benchmarks/onnx_decoder.py               # 160 M parameters
    python benchmarks/onnx_decoder.py --model runs/x/model-...
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from export import resolve_form
from export.config import OnnxConfig
from export.graphs.to_onnx import export_onnx
from export.runtimes.onnx_folder import generated, load_genai
from tuneline.core.environment import hardware_facts, library_versions

TOKENIZER = Path(__file__).parents[1] / "examples" / "tiny-base"
SHAPES = {
    "tiny": {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 3},
    "160m": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12},
    "500m": {"hidden_size": 1536, "intermediate_size": 4096, "num_hidden_layers": 16},
}
WEIGHTS = ("float32", "int8", "int4")

Generate = Callable[[], int]
"""Writes the tokens and returns how many."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shape", choices=SHAPES, default="160m")
    parser.add_argument("--model", type=Path, help="a model folder, in place of a random one")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    with tempfile.TemporaryDirectory(prefix="tuneline-onnx-") as folder:
        work = Path(folder)
        base = options.model or write_model(work / "base", SHAPES[options.shape])
        runs: dict[str, Generate] = {}
        sizes: dict[str, int] = {}
        for dtype in ("float32", "bfloat16"):
            runs[f"PyTorch {dtype}"] = pytorch(base, dtype, options)
        for weights in WEIGHTS:
            config = OnnxConfig.model_validate({"weights": weights})
            artifact = export_onnx(config, resolve_form(str(base)), work / weights)
            sizes[f"ONNX {weights}"] = artifact.manifest.metrics["size_bytes"]
            runs[f"ONNX {weights}"] = onnx_runtime(artifact.path, options)
        measured: dict[str, list[float]] = {name: [] for name in runs}
        for name, run in runs.items():
            run()  # a first run, not counted: memory is allocated, weights are packed
            print(f"  {name} is ready", flush=True)
        for _ in range(options.rounds):
            for name, run in runs.items():
                started_s = time.perf_counter()
                count = run()
                assert count == options.new_tokens, (name, count)
                measured[name].append(count / (time.perf_counter() - started_s))
    report(measured, sizes, options)


def report(measured: dict[str, list[float]], sizes: dict[str, int], options: Any) -> None:
    medians = {name: statistics.median(values) for name, values in measured.items()}
    eager = medians["PyTorch float32"]
    print(f"\n{'':18} {'tokens/s':>9} {'lowest':>8} {'highest':>8} {'ratio':>7} {'MB':>8}")
    for name, values in measured.items():
        size = f"{sizes[name] / 1e6:8.1f}" if name in sizes else ""
        print(
            f"{name:18} {medians[name]:9.1f} {min(values):8.1f} {max(values):8.1f} "
            f"{medians[name] / eager:7.2f} {size}"
        )
    print("ratio: tokens per second against PyTorch eager in float32; medians of the rounds")
    document = {
        "shape": str(options.model or options.shape), "rounds": options.rounds,
        "prompt_tokens": options.prompt_tokens, "new_tokens": options.new_tokens,
        "threads": options.threads, "tokens_per_s": measured, "size_bytes": sizes,
        "ratio": {name: median / eager for name, median in medians.items()},
        "hardware": hardware_facts(), "libraries": library_versions(),
    }  # fmt: skip
    print(json.dumps(document))


def pytorch(base: Path, dtype: str, options: Any) -> Generate:
    """Greedy decoding by transformers' model, eagerly, with its key-value cache."""
    import transformers

    network = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=getattr(torch, dtype))
    network.eval()

    def run() -> int:
        step, cache = torch.tensor([prompt(options)]), None
        with torch.inference_mode():
            for _ in range(options.new_tokens):
                output = network(
                    input_ids=step, past_key_values=cache, use_cache=True, logits_to_keep=1
                )
                cache = output.past_key_values
                step = output.logits[:, -1].argmax(dim=-1, keepdim=True)
        return int(options.new_tokens)

    return run


def onnx_runtime(folder: Path, options: Any) -> Generate:
    """Greedy decoding by ONNX Runtime GenAI."""
    import onnxruntime_genai

    # A random model stops where it likes; here every runtime writes as much.
    path = folder / "genai_config.json"
    genai = json.loads(path.read_text())
    length = options.prompt_tokens + options.new_tokens
    genai["search"]["min_length"] = length
    path.write_text(json.dumps(genai))
    model = load_genai(onnxruntime_genai, folder)

    def run() -> int:
        return sum(1 for _ in generated(onnxruntime_genai, model, prompt(options), length))

    return run


def prompt(options: Any) -> list[int]:
    return [7 + index % 1000 for index in range(options.prompt_tokens)]


def write_model(folder: Path, shape: dict[str, int]) -> Path:
    """Write a random Llama with a vocabulary of 32,000 and the tiny base's tokenizer."""
    import transformers

    torch.manual_seed(0)
    heads = shape["hidden_size"] // 64
    config = transformers.LlamaConfig(
        **shape, vocab_size=32000, num_attention_heads=heads, num_key_value_heads=heads,
        max_position_embeddings=2048, bos_token_id=None, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(TOKENIZER / name, folder / name)
    (folder / "generation_config.json").write_text('{"eos_token_id": 2}')
    return folder


if __name__ == "__main__":
    main()

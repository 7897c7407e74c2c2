"""GPTQ or AWQ by llm-compressor: `python llm_compressor_worker.py JOB.json`.

Runs in llm-compressor's own environment, which does not have Tuneline, so this file imports nothing
of it. The job names the model folder, the folder of the result, the samples (one JSON list of token
ids per line), the recipe, and the linear layers that stay unquantized.
"""

from __future__ import annotations

import ctypes
import json
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from llmcompressor.modifiers.quantization import QuantizationModifier
from llmcompressor.modifiers.transform.awq import AWQModifier
from llmcompressor.pipelines.cache import IntermediatesCache
from transformers import AutoModelForCausalLM, AutoTokenizer

PR_SET_PDEATHSIG = 1


def main(job: dict[str, Any]) -> None:
    # Its parent's next run would write into the same folder.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if not torch.accelerator.is_available():
        # llm-compressor pins memory for copies to an accelerator; without one, torch refuses.
        IntermediatesCache.pin_memory = lambda *_, **__: None
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype="auto", local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(job["model"], local_files_only=True)
    samples = [
        json.loads(line) for line in Path(job["samples"]).read_text("utf-8").split("\n") if line
    ]
    masks = [[1] * len(sample) for sample in samples]
    dataset = Dataset.from_dict({"input_ids": samples, "attention_mask": masks})
    layers = {"config_groups": {"group_0": job["group"]}, "ignore": job["ignore"]}
    recipes = {
        "gptq": lambda: [GPTQModifier(**layers)],
        "awq": lambda: [AWQModifier(), QuantizationModifier(**layers)],
    }
    oneshot(
        model=model,
        processor=tokenizer,
        dataset=dataset,
        recipe=recipes[job["method"]](),
        num_calibration_samples=len(samples),
        max_seq_length=max(map(len, samples)),
        shuffle_calibration_samples=False,
        save_compressed=True,
    )
    model.save_pretrained(job["out"], save_compressed=True)


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text("utf-8")))

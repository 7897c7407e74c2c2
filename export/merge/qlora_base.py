"""The base that a QLoRA adapter is merged into: both candidates are merged and measured.

Training computed with the base's linear layers in NF4 (QLoRA, Dettmers et al., arXiv:2305.14314).
The original weights differ from those that the adapter was trained with; the dequantized weights
keep the rounding in the result. Which of the two is closer to the trained model depends on the
model. Both are therefore compared with the live model (base in 4 bits, adapter not merged), and the
closer one is kept.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from export.merge.plan import MergePlan, Planned
from export.weights.blocks import Change, RowFunction
from export.weights.families import IN_DECODER_LAYER
from export.weights.model_folder import ModelFolder
from export.weights.tensor_file import Stored, pieces_of
from tuneline.core.artifact import Artifact
from tuneline.core.environment import require
from tuneline.core.errors import ArtifactError
from tuneline.core.progress import logger
from tuneline.models.companion_files import has_tokenizer
from tuneline.models.tokenizer import load_tokenizer

MergeBase = Literal["original", "dequantized"]

NF4_BLOCK = 64

TEXTS = (
    "The printer on the second floor has stopped, and its light is blinking red.",
    "Please summarise the meeting in three sentences and list who does what next.",
    "How do I reset my password if I no longer have the phone it was set up with?",
    "Paris is the capital of France; Rome, of Italy; and Madrid is the capital of",
    'def mean(values):\n    """The arithmetic mean."""\n    return sum(values) /',
    "2026-11-21 09:14:03 ERROR worker 3: connection refused, trying again in 5 s",
    "Sehr geehrte Damen und Herren, meine Bestellung ist noch nicht angekommen.",
    "If a train leaves at 10:40 and the journey takes 95 minutes, it arrives at",
)
"""The candidates are compared on these texts and on the live model's continuations of them."""

MAX_NEW_TOKENS = 24


@dataclass(frozen=True)
class FourBitBase(Change):
    """W as a QLoRA training saw it: through NF4 with double quantization and back.

    Each 64 values share a scale. The scales of a tensor are quantized together, which takes a first
    pass over the tensor (Dettmers et al., arXiv:2305.14314).
    """

    source: Stored

    def load(self, dtype: torch.dtype) -> RowFunction:  # noqa: ARG002
        bitsandbytes = require("bitsandbytes", "train").functional
        scales = self._scales(bitsandbytes)

        def change(block: torch.Tensor, start: int, stop: int) -> torch.Tensor:
            codes, state = bitsandbytes.quantize_4bit(
                block.contiguous(), blocksize=NF4_BLOCK, quant_type="nf4"
            )
            per_row = block.shape[1] // NF4_BLOCK
            state.absmax = scales[start * per_row : stop * per_row].contiguous()
            return bitsandbytes.dequantize_4bit(codes, state)

        return change

    def _scales(self, bitsandbytes: Any) -> torch.Tensor:
        """Return the largest magnitude of each 64 values, quantized and dequantized again."""
        found = [
            piece.float().reshape(-1, NF4_BLOCK).abs().amax(dim=1)
            for piece in pieces_of(self.source)
        ]
        exact = torch.cat(found)
        offset = exact.mean()
        codes, state = bitsandbytes.quantize_blockwise(exact - offset, blocksize=256)
        return bitsandbytes.dequantize_blockwise(codes, state) + offset


def through_four_bits(plan: MergePlan, base: ModelFolder, modules: Sequence[str] = ()) -> MergePlan:
    """Return the same merge, onto the linear layers as NF4 kept them in training.

    Args:
        modules: The layers that training kept in NF4, with `*` for numbers, as the adapter's
            manifest names them; every linear layer of a decoder layer if there are none. Fused
            experts and routers are not among them.

    Raises:
        ArtifactError: The base has no linear layers, or has some that bitsandbytes does not
            quantize.
    """
    if "text_config" in base.config:
        raise ArtifactError(
            f"{base.path}: is a model of text and pictures; expected a text model, to merge it as "
            "NF4 kept it",
            hint="Try: --merge-base original",
        )
    tensors = dict(plan.tensors)
    count = 0
    for name, entry in base.tensors.items():
        if not IN_DECODER_LAYER.fullmatch(name) or len(entry.shape) != 2:
            continue
        if modules and re.sub(r"\.\d+(?=\.)", ".*", name.removesuffix(".weight")) not in modules:
            continue
        stored = base.stored(name)
        planned = tensors.get(name) or Planned(stored, ())
        if planned.source != stored:  # trained whole, not in four bits
            continue
        if ".experts." in name or entry.shape[1] % NF4_BLOCK:
            raise ArtifactError(
                f"{base.path}: {name} has shape {list(entry.shape)}; expected a dense layer whose "
                f"rows have a multiple of {NF4_BLOCK} values, to merge it as NF4 kept it",
                hint="Try: --merge-base original",
            )
        tensors[name] = Planned(planned.source, (FourBitBase(stored), *planned.changes))
        count += 1
    if not count:
        raise ArtifactError(
            f"{base.path}: has no linear layer to quantize to NF4; expected weights with "
            "names such as model.layers.0.self_attn.q_proj.weight",
            hint="Try: --merge-base original",
        )
    return MergePlan(tensors, plan.untied, plan.num_tokens)


def choose_base(
    base: Path, adapter: Path, merge_onto: Callable[[MergeBase, Path], Artifact], work: Path
) -> tuple[MergeBase, dict[str, float]]:
    """Merge onto both bases, and compare each result with the live 4-bit model.

    The models are loaded whole, in float32, one at a time.

    Args:
        base: Folder of the original base.
        adapter: Folder of the adapter.
        merge_onto: Merges onto one of the two bases and writes a folder.
        work: A directory for the merged models, which are removed again.

    Returns:
        The closer base, and for each the mean KL divergence of the merged model's next-token
        distribution from the live model's, in nats.

    Raises:
        ArtifactError: Neither folder has a tokenizer that can be loaded.
    """
    transformers = require("transformers", "export")
    tokenizer = load_tokenizer(adapter if has_tokenizer(adapter) else base)
    live = _live_model(base, adapter)
    prompts = [torch.tensor([tokenizer(text)["input_ids"]]) for text in TEXTS]
    sequences = [
        live.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False,
            max_new_tokens=MAX_NEW_TOKENS, pad_token_id=0,
        )
        for ids in prompts
    ]  # fmt: skip
    expected = _log_probabilities(live, sequences)
    del live
    divergences: dict[MergeBase, float] = {}
    sides: tuple[MergeBase, MergeBase] = ("original", "dequantized")
    for side in sides:
        merged = merge_onto(side, work / side)
        model = transformers.AutoModelForCausalLM.from_pretrained(
            merged.path, dtype=torch.float32, local_files_only=True
        ).eval()
        found = _log_probabilities(model, sequences)
        del model
        shutil.rmtree(merged.path)
        sums = [float((p.exp() * (p - q)).sum()) for p, q in zip(expected, found, strict=True)]
        # Rounding can make a divergence of zero negative.
        divergences[side] = max(0.0, sum(sums)) / sum(len(p) for p in expected)
    closer = min(sides, key=lambda side: divergences[side])
    logger.info(
        "  merge base: %s (KL from the live 4-bit model: original %.3g, dequantized %.3g nats)",
        closer, divergences["original"], divergences["dequantized"],
    )  # fmt: skip
    figures = {f"kl_{side}": divergence for side, divergence in divergences.items()}
    return closer, {**figures, "num_compared_tokens": sum(len(p) for p in expected)}


def _live_model(base: Path, adapter: Path) -> Any:
    transformers, peft = require("transformers", "export"), require("peft", "export")
    require("bitsandbytes", "train")
    four_bits = transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_pretrained(
        base, dtype=torch.float32, quantization_config=four_bits, local_files_only=True
    )
    _compute_in_float32(model)
    return peft.PeftModel.from_pretrained(model, adapter).eval()


def _compute_in_float32(model: Any) -> None:
    """Let 4-bit layers compute in `compute_dtype`: outside training, on a processor that multiplies
    bfloat16, bitsandbytes 0.50 rounds to bfloat16."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def _log_probabilities(model: Any, sequences: list[torch.Tensor]) -> list[torch.Tensor]:
    """Return each sequence's next-token log-probabilities, shape (tokens, vocabulary)."""
    with torch.inference_mode():
        return [model(input_ids=ids).logits[0].float().log_softmax(-1) for ids in sequences]

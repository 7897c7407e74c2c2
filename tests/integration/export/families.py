"""Tiny random-weight models of several families, adapters on them, and PEFT's own merges."""

from __future__ import annotations

import functools
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import tokenizers
import torch
import transformers

from tuneline.core.artifact import Artifact, new_artifact, open_artifact
from tuneline.core.reference import REFERENCE_FILE, Continuation, write_continuations

torch.set_num_threads(1)  # threads on so little work only wait for one another

VOCABULARY = 320

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

SMALL = {
    "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
    "bos_token_id": None, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
GPT2 = {
    "vocab_size": VOCABULARY, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128,
    "bos_token_id": None, "eos_token_id": 2,
}  # fmt: skip

FAMILIES: dict[str, Callable[[], Any]] = {
    "llama": lambda: transformers.LlamaConfig(**SMALL, tie_word_embeddings=False),
    "llama-tied": lambda: transformers.LlamaConfig(**SMALL, tie_word_embeddings=True),
    "llama-wide": lambda: transformers.LlamaConfig(**{**SMALL, "hidden_size": 80}),
    "llama-even": lambda: transformers.LlamaConfig(**{**SMALL, "intermediate_size": 128}),
    "qwen2": lambda: transformers.Qwen2Config(**SMALL),
    "qwen3": lambda: transformers.Qwen3Config(**SMALL, head_dim=16, tie_word_embeddings=True),
    "mistral": lambda: transformers.MistralConfig(**SMALL, sliding_window=32),
    "gemma": lambda: transformers.GemmaConfig(**SMALL, head_dim=16),
    "gemma2": lambda: transformers.Gemma2Config(**SMALL, head_dim=16),
    "phi": lambda: transformers.PhiConfig(**SMALL),
    "phi3": lambda: transformers.Phi3Config(**SMALL),
    "gpt2": lambda: transformers.GPT2Config(**GPT2),
    "qwen3-next": lambda: transformers.Qwen3NextConfig(
        **SMALL,
        head_dim=16,
        layer_types=["linear_attention", "full_attention"],
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=48,
        shared_expert_intermediate_size=48,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        linear_key_head_dim=16,
        linear_value_head_dim=16,
    ),
    "mixtral": lambda: transformers.MixtralConfig(
        **SMALL, num_local_experts=4, num_experts_per_tok=2
    ),
    "qwen3-moe": lambda: transformers.Qwen3MoeConfig(
        **SMALL,
        head_dim=16,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=48,
        mlp_only_layers=[],
    ),
}

EXPERTS = ("mixtral", "qwen3-moe", "qwen3-next")

VISION = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2,
    "image_size": 28, "patch_size": 14,
}  # fmt: skip
QWEN_VISION = {
    "depth": 1, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 64,
    "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 1,
    "num_position_embeddings": 16, "deepstack_visual_indexes": [0],
}  # fmt: skip
HEADS = {**SMALL, "head_dim": 16}
ROTARY = {
    "rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0,
    "mrope_interleaved": True, "partial_rotary_factor": 1.0,
}  # fmt: skip
LINEAR_ATTENTION = {
    "layer_types": ["linear_attention", "full_attention"], "linear_num_key_heads": 2,
    "linear_num_value_heads": 4, "linear_key_head_dim": 16, "linear_value_head_dim": 16,
}  # fmt: skip
FEW = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
LOCAL = {"num_local_experts": 4, "num_experts_per_tok": 2}
LLAMA4 = {
    **HEADS, "intermediate_size_mlp": 80, "num_local_experts": 4, "num_experts_per_tok": 1,
    "attention_chunk_size": 32,
}  # fmt: skip

NAMED_OTHERWISE: dict[str, Callable[[], Any]] = {
    "gemma3": lambda: transformers.Gemma3Config(
        text_config={**HEADS, "sliding_window": 16}, vision_config=VISION, mm_tokens_per_image=4
    ),
    "mistral3": lambda: transformers.Mistral3Config(
        text_config={**HEADS, "model_type": "mistral", "tie_word_embeddings": False},
        vision_config={**VISION, "model_type": "pixtral", "head_dim": 16},
        spatial_merge_size=1,
        tie_word_embeddings=False,
    ),
    "qwen2.5-vl": lambda: transformers.Qwen2_5_VLConfig(
        text_config={**SMALL, "rope_parameters": ROTARY},
        vision_config={
            "depth": 1, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2,
            "out_hidden_size": 64, "patch_size": 14,
        },
    ),
    "qwen3.5": lambda: transformers.Qwen3_5Config(
        text_config={**HEADS, **LINEAR_ATTENTION, "rope_parameters": ROTARY},
        vision_config=QWEN_VISION,
    ),
    "qwen3.5-moe": lambda: transformers.Qwen3_5MoeConfig(
        text_config={
            **HEADS, **LINEAR_ATTENTION, **FEW, "shared_expert_intermediate_size": 48,
            "rope_parameters": ROTARY,
        },
        vision_config=QWEN_VISION,
    ),
    "qwen3-vl-moe": lambda: transformers.Qwen3VLMoeConfig(
        text_config={**HEADS, **FEW, "rope_parameters": ROTARY}, vision_config=QWEN_VISION
    ),
    "llama4": lambda: transformers.Llama4Config(
        text_config=LLAMA4,
        vision_config={
            **VISION, "intermediate_size": 128, "vision_output_dim": 64,
            "projector_input_dim": 64, "projector_output_dim": 64,
        },
    ),
    "llama4-text": lambda: transformers.Llama4TextConfig(**LLAMA4),
    "gpt-oss": lambda: transformers.GptOssConfig(
        **HEADS, **LOCAL, sliding_window=16, layer_types=["sliding_attention", "full_attention"]
    ),
    "granite-moe": lambda: transformers.GraniteMoeConfig(**SMALL, **LOCAL),
    "jamba": lambda: transformers.JambaConfig(
        **{**SMALL, "intermediate_size": 48}, num_experts=4, num_experts_per_tok=2,
        attn_layer_period=2, attn_layer_offset=1, expert_layer_period=1, expert_layer_offset=0,
        mamba_d_state=8, mamba_dt_rank=8, use_mamba_kernels=False,
    ),
    "lfm2-moe": lambda: transformers.Lfm2MoeConfig(
        **SMALL, **FEW, num_dense_layers=0, layer_types=["conv", "full_attention"]
    ),
}  # fmt: skip
"""Families whose files name or store tensors otherwise than memory does."""


def make_base(
    folder: Path, family: str = "llama", dtype: torch.dtype = torch.float32, **save: Any
) -> Path:
    """A random-weight model with a tokenizer and a chat template, saved by transformers."""
    return save_random(folder, FAMILIES[family](), dtype, **save)


_built: dict[tuple[Any, ...], Path] = {}


@functools.cache
def _kept() -> tempfile.TemporaryDirectory[str]:
    """Make the folder of the models at the first use, since forked workers share what an import
    has made."""
    return tempfile.TemporaryDirectory(prefix="tuneline-families-")


def save_random(folder: Path, config: Any, dtype: torch.dtype, **save: Any) -> Path:
    """A random-weight model of a configuration. Each is built once in a run of the tests; what a
    test gets is a copy of its own."""
    text = config.to_json_string(use_diff=False)
    key = (type(config).__name__, text, dtype, *sorted(save.items()))
    if key not in _built:
        _built[key] = _build(Path(_kept().name) / str(len(_built)), config, dtype, **save)
    return Path(shutil.copytree(_built[key], folder, dirs_exist_ok=True))


def _build(folder: Path, config: Any, dtype: torch.dtype, **save: Any) -> Path:
    torch.manual_seed(0)
    model = loader_of(config).from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    model = model.to(dtype)
    model.generation_config.eos_token_id = 2
    model.save_pretrained(folder, **save)
    make_tokenizer().save_pretrained(folder)
    return folder


def loader_of(config: Any) -> Any:
    """Return the class that loads a model, a model of text and pictures as a whole."""
    if hasattr(config, "vision_config"):
        return transformers.AutoModelForImageTextToText
    return transformers.AutoModelForCausalLM


def _load(folder: Path, **options: Any) -> Any:
    config = transformers.AutoConfig.from_pretrained(folder)
    return loader_of(config).from_pretrained(folder, **options)


def make_tokenizer() -> Any:
    """A byte-level BPE of a few merges with a ChatML template; `<|im_end|>` is token 2."""
    special = ["<|pad|>", "<|im_start|>", "<|im_end|>"]
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=sorted(alphabet),
        show_progress=False,
    )  # fmt: skip
    text = ["the printer on the second floor does not print", "what is the weather like today"] * 9
    backend.train_from_iterator(text, trainer)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<|pad|>", eos_token="<|im_end|>",
        chat_template=TEMPLATE, model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip


def make_adapter(
    folder: Path,
    base: Path,
    dtype: torch.dtype | None = None,
    *,
    seed: int = 1,
    num_tokens: int | None = None,
    **options: Any,
) -> Path:
    """A LoRA adapter with random values (as if trained), saved by PEFT with its tokenizer;
    with `num_tokens` on a base whose vocabulary was resized first."""
    torch.manual_seed(seed)
    model = _load(base)
    if num_tokens is not None:
        model.resize_token_embeddings(num_tokens, mean_resizing=False)
    values = {"r": 8, "lora_alpha": 16, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    tuned = peft.get_peft_model(model, peft.LoraConfig(**{**values, **options}))
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if parameter.requires_grad:
                # A magnitude is a length: it stays near where it starts.
                scale = 0.01 if "magnitude" in name else 0.1
                parameter.add_(torch.randn_like(parameter) * scale)
    if dtype is not None:
        for name, parameter in tuned.named_parameters():
            if "lora_" in name:
                parameter.data = parameter.data.to(dtype)
    tuned.save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return folder


def peft_merge(base: Path, adapter: Path, dtype: torch.dtype | str = "auto") -> dict[str, Any]:
    """Return PEFT's result: the state dictionary after `merge_and_unload`."""
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
    merged = peft.PeftModel.from_pretrained(model, adapter).merge_and_unload()
    return dict(merged.state_dict())


def live_logits(base: Path, adapter: Path, num_tokens: int | None = None) -> Any:
    """Return the logits of the model with the adapter, not merged, in float32."""
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if num_tokens is not None:
        model.resize_token_embeddings(num_tokens, mean_resizing=False)
    return _logits(peft.PeftModel.from_pretrained(model, adapter), num_tokens or VOCABULARY)


def merged_logits(folder: Path, num_tokens: int | None = None) -> Any:
    """Return the logits of a model folder in float32; every tensor must be present and used."""
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"], info
    assert not info["mismatched_keys"], info
    return _logits(model, num_tokens or VOCABULARY)


def _logits(model: Any, num_tokens: int) -> Any:
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(3, num_tokens, (4, 24), generator=generator)
    ids[0, :4] = torch.tensor([3, 7, num_tokens - 1, 11])
    with torch.inference_mode():
        return model.eval()(input_ids=ids).logits


PROMPTS = (
    "the printer on the second floor",
    "what is the weather",
    "floor",
    "the second printer does not print like today",
    "is the floor of the printer like the weather",
    "print",
)


def make_reference(
    out: Path,
    base: Path,
    adapter: Path,
    *,
    stop_ids: tuple[int, ...] = (2,),
    max_new_tokens: int = 12,
    tools: tuple[dict[str, Any], ...] = (),
) -> Artifact:
    """The answers of base + adapter, by transformers' own `generate` on the live PEFT model."""
    model = _load(base, dtype=torch.float32)
    tuned = peft.PeftModel.from_pretrained(model, adapter).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(adapter)
    continuations = []
    for prompt in PROMPTS:
        messages = [{"role": "user", "content": prompt}]
        inputs = tokenizer.apply_chat_template(
            messages, tools=list(tools) or None, add_generation_prompt=True, return_tensors="pt",
            return_dict=True,
        )  # fmt: skip
        result = tuned.generate(
            **inputs, max_new_tokens=max_new_tokens, do_sample=False, eos_token_id=list(stop_ids),
            pad_token_id=0, output_logits=True, return_dict_in_generate=True,
        )  # fmt: skip
        token_ids = result.sequences[0, inputs["input_ids"].shape[1] :].tolist()
        rows = [torch.log_softmax(logits[0].float(), dim=-1) for logits in result.logits]
        tops = [torch.topk(row, 5) for row in rows]
        continuations.append(
            Continuation(
                messages=messages,
                prompt_token_ids=inputs["input_ids"][0].tolist(),
                token_ids=token_ids,
                logprobs=[float(row[token]) for row, token in zip(rows, token_ids, strict=True)],
                top_logprobs=[
                    dict(zip(top.indices.tolist(), top.values.tolist(), strict=True))
                    for top in tops
                ],
                text=tokenizer.decode(token_ids, skip_special_tokens=True),
                finish_reason="stop" if token_ids[-1] in stop_ids else "length",
                tools=list(tools),
            )
        )
    config = {"max_new_tokens": max_new_tokens, "top_logprobs": 5}
    with new_artifact(out, "reference", config=config) as draft:
        write_continuations(draft.dir / REFERENCE_FILE, continuations)
    return open_artifact(out)

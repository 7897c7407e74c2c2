"""A tiny Llama with random weights and a tokenizer trained on the spot, as a model folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

WORDS = ("red", "green", "blue", "brown", "white", "black", "grey", "pink")


def make_tokenizer(chat_template: str | None = CHATML, texts: Sequence[str] = ()) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=384,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator([*texts, "Color: red Size: small user assistant system"], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    tokenizer.chat_template = chat_template
    return tokenizer


def make_base(
    folder: Path,
    *,
    chat_template: str | None = CHATML,
    seed: int = 0,
    num_padded: int = 0,
    **changes: Any,
) -> Path:
    """Hidden size 64, two layers, head size 32; about 0.2 M parameters.

    Args:
        num_padded: Rows of the embedding after the tokens; below 0, tokens without a row.
        changes: Other values of config.json.
    """
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    tokenizer = make_tokenizer(chat_template)
    torch.manual_seed(seed)
    values = {
        "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        # Wide enough that a frozen, tied head can be sure of a token: logits reach 12.
        "initializer_range": 0.2,
        "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": None,
    }  # fmt: skip
    network = {**values, "vocab_size": len(tokenizer) + num_padded, **changes}
    model = LlamaForCausalLM(LlamaConfig(**network))
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def color_rows(num_rows: int) -> list[dict[str, str]]:
    """A task with a rule: the answer repeats the color and says the size of the number."""
    rows = []
    for index in range(num_rows):
        color = WORDS[index % len(WORDS)]
        size = "large" if index % 2 else "small"
        rows.append(
            {
                "instruction": "Describe.",
                "input": f"{size} {color} {index}",
                "output": f"Color: {color}\nSize: {size}",
            }
        )
    return rows

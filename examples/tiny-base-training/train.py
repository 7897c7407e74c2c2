"""Make the tiny base model from nothing: tokenizer, model and all files of ../tiny-base.

    python train.py                 writes the files of ../tiny-base
    python train.py --out DIR       writes them to DIR
    python train.py --limit 2000    a quick try on the first conversations

A byte-level BPE tokenizer and a small Llama are trained on the conversations of corpus.py, each
seen once, on the CPU in float32. Conversations of similar length share a batch, so that little is
padded and no conversation looks at another. The user's words count less in the loss than the
assistant's: what matters is what follows from them. The seed is fixed: on one machine with one
number of threads the result is the same each time.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from corpus import Conversation, conversations
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

BASE = Path(__file__).resolve().parent.parent / "tiny-base"
"""The model's folder. It holds no code: a release refuses a base model with scripts."""
PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
VOCAB = 2048
CONTEXT = 1024
BATCH = 16
PEAK_RATE = 2e-3
WARMUP = 100
WEIGHT_DECAY = 0.05
USER_WEIGHT = 0.2
SEED = 11
TOKENIZER_SAMPLE = 12_000
PROMPTS = (
    "Hello,",
    "My laptop does not charge and I have a meeting tomorrow.",
    "Classify the support ticket and give the next action.\n\nThe office wifi is slow. No rush.",
    "What can you do?",
)

Row = tuple[list[int], list[float]]  # token ids, and how much each counts in the loss
Batch = list[Row]


def render(conversation: Conversation) -> str:
    """Return the text that chat_template.jinja makes of a conversation."""
    return "".join(f"{START}{turn['role']}\n{turn['content']}{END}\n" for turn in conversation)


def train_tokenizer(texts: list[str]) -> Tokenizer:
    """Train the byte-level BPE."""
    tokenizer = Tokenizer(models.BPE())
    # Each line break and digit is its own token: a prompt is then always a prefix of prompt and
    # answer, and made-up numbers use up no vocabulary.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex("\n"), "isolated"),
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=[AddedToken(token, special=True) for token in (PAD, START, END)],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def make_model() -> LlamaForCausalLM:
    """Make a Llama with heads of size 64, the smallest that common servers run on a CPU."""
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=64,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=2,
    )
    return LlamaForCausalLM(config)


def encode(tokenizer: Tokenizer, conversation: Conversation) -> Row:
    """Token ids and loss weights; an answer counts in full, up to and with its end token."""
    ids: list[int] = []
    weights: list[float] = []
    for turn in conversation:
        head = tokenizer.encode(f"{START}{turn['role']}\n").ids
        body = tokenizer.encode(f"{turn['content']}{END}").ids
        tail = tokenizer.encode("\n").ids
        full = 1.0 if turn["role"] == "assistant" else USER_WEIGHT
        ids += head + body + tail
        weights += [0.1] * len(head) + [full] * len(body) + [0.1] * len(tail)
    return ids[:CONTEXT], weights[:CONTEXT]


def make_batches(rows: list[Row]) -> list[Batch]:
    """Group rows of similar length within windows, in shuffled order."""
    shuffler = random.Random(SEED)
    batches: list[Batch] = []
    window = BATCH * 32
    for start in range(0, len(rows), window):
        part = sorted(rows[start : start + window], key=lambda row: len(row[0]))
        groups = [part[i : i + BATCH] for i in range(0, len(part), BATCH)]
        shuffler.shuffle(groups)
        batches.extend(groups)
    return batches


def collate(batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Token ids, attention mask and loss weights of a padded batch."""
    longest = max(len(ids) for ids, _ in batch)
    ids = torch.zeros(len(batch), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    weights = torch.zeros(len(batch), longest)
    for number, (row, counts) in enumerate(batch):
        ids[number, : len(row)] = torch.tensor(row)
        mask[number, : len(row)] = 1
        weights[number, : len(row)] = torch.tensor(counts)
    return ids, mask, weights


def weighted_loss(
    logits: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the loss to minimise, and the loss of only the assistant's tokens, to print."""
    each = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="none"
    )
    counts = weights[:, 1:].flatten()
    answers = (counts == 1.0).float()
    answer_loss = (each.detach() * answers).sum() / answers.sum()
    return (each * counts).sum() / counts.sum(), answer_loss


def rate(step: int, total: int) -> float:
    """Linear warm-up, then a cosine down to a fiftieth of the peak."""
    if step < WARMUP:
        return PEAK_RATE * (step + 1) / WARMUP
    share = (step - WARMUP) / max(1, total - WARMUP)
    return PEAK_RATE * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * share)))


def train_model(model: LlamaForCausalLM, batches: list[Batch]) -> dict[str, float]:
    """One pass over the batches; returns what the model card states."""
    decay = [p for p in model.parameters() if p.dim() > 1]
    other = [p for p in model.parameters() if p.dim() <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": WEIGHT_DECAY}, {"params": other, "weight_decay": 0.0}],
        lr=PEAK_RATE,
        betas=(0.9, 0.95),
    )
    model.train()
    began, tokens, recent = time.perf_counter(), 0, 0.0
    for step, batch in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = rate(step, len(batches))
        ids, mask, weights = collate(batch)
        logits = model(input_ids=ids, attention_mask=mask).logits
        loss, answer_loss = weighted_loss(logits, ids, weights)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        tokens += int(mask.sum())
        recent = answer_loss.item() if step == 0 else 0.98 * recent + 0.02 * answer_loss.item()
        if step % 50 == 0 or step == len(batches) - 1:
            speed = tokens / (time.perf_counter() - began)
            print(
                f"step {step + 1}/{len(batches)} answer loss {recent:.3f} tokens {tokens} "
                f"tokens/s {speed:.0f}",
                flush=True,
            )
    return {"tokens": tokens, "answer_loss": recent, "seconds": time.perf_counter() - began}


def save(model: LlamaForCausalLM, tokenizer: Tokenizer, out: Path) -> None:
    """Write the folder in the form that transformers and common servers read."""
    out.mkdir(parents=True, exist_ok=True)
    model.generation_config = GenerationConfig(
        do_sample=False, eos_token_id=[2, 0], pad_token_id=0, bos_token_id=None
    )
    model.to(torch.bfloat16).save_pretrained(out)
    (out / "model.safetensors").chmod(0o644)
    tokenizer.save(str(out / "tokenizer.json"))
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": CONTEXT,
        "pad_token": PAD,
        "eos_token": END,
        "bos_token": None,
        "unk_token": None,
        "additional_special_tokens": [START],
        "clean_up_tokenization_spaces": False,
        "padding_side": "right",
    }
    text = json.dumps(settings, indent=2) + "\n"
    (out / "tokenizer_config.json").write_text(text, encoding="utf-8")
    template = BASE / "chat_template.jinja"
    if out.resolve() != BASE:
        shutil.copy(template, out / template.name)


def sample(model: LlamaForCausalLM, tokenizer: Tokenizer, prompt: str) -> str:
    """Return the model's greedy answer to one message."""
    text = f"{START}user\n{prompt}{END}\n{START}assistant\n"
    ids = torch.tensor([tokenizer.encode(text).ids])
    with torch.no_grad():
        made: Any = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=96, use_cache=True
        )
    return tokenizer.decode(made[0, ids.shape[1] :].tolist(), skip_special_tokens=False)


def main() -> None:
    """Train and write everything."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=BASE)
    parser.add_argument("--limit", type=int, default=0, help="use only so many conversations")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(SEED)
    torch.use_deterministic_algorithms(True)

    corpus = list(conversations())
    tokenizer = train_tokenizer([render(item) for item in corpus[:TOKENIZER_SAMPLE]])
    rows = [encode(tokenizer, item) for item in corpus[: args.limit or None]]
    print(f"{len(rows)} conversations, {sum(len(ids) for ids, _ in rows)} tokens")
    model = make_model()
    print(f"{sum(p.numel() for p in model.parameters())} parameters")
    result = train_model(model, make_batches(rows))
    print(json.dumps({key: round(value, 4) for key, value in result.items()}))
    save(model, tokenizer, args.out)
    model.eval()
    for prompt in PROMPTS:
        print(f"\n> {prompt}\n{sample(model, tokenizer, prompt)}")


if __name__ == "__main__":
    main()

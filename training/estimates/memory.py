"""The memory that training takes beyond the process that has loaded its libraries.

The parts are those that are in memory at once, at the peak of a step: weights, adapter, gradients,
AdamW's two moments, activations, and the logits of a chunk. For a token, a decoder layer with LoRA
keeps for the backward pass, in numbers (h hidden, q queries, k keys, i width of the MLP):

    4 h  two inputs of the norms, two outputs of the norms
    2 q + 2 k  queries, keys, values and the output of attention
    4 i  the outputs of gate and up, the activation, the input of down

With gradient checkpointing a layer keeps its input only, h, and one layer at a time has the rest.
On a CPU, SFT whose head is frozen or in float32 computes the last layer and the logits at trained
positions only; for the others the last layer has two inputs of 2 h in all, keys and values.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from training.config import TrainingConfig
from training.config.launch import LaunchConfig
from training.loop.shared_rows import Sharing, count_shares
from tuneline.core.environment import gpu_names
from tuneline.models.network import Network, names_module, read_network

CHUNK_LOGITS = 2**24
"""Logits in memory at once; equal to that of the loss in `training.loop.answer_loss`."""
NF4_BYTES = (4 + 8 / 64 + 32 / (64 * 256)) / 8
"""Bytes of a weight in NF4 with double quantization: 4 bits, a scale of 8 bits for 64 weights, and
one of 32 bits for 256 scales (Dettmers et al., arXiv:2305.14314)."""
LOGIT_COPIES = 3
"""The logits of a chunk, their exponentials and the gradient."""
TILE = (4096, 32768)
"""Tokens and vocabulary of a tile of logits: TOKEN_CHUNK_SIZE and _CHUNKED_LOGPROB_CHUNK_SIZE of
TRL 1.16."""
TILE_COPIES = 10
"""On a CPU, by measurement: the tile, seven intermediate values of its size, and what the allocator
keeps of them. On a GPU a kernel keeps the tile only, by its code; it was not measured."""
RUNTIME_BYTES = 16 * 2**20
"""Memory of libraries at the first step: kernels, threads, Python objects."""
KEPT_BYTES = 159 * 2**20
"""By measurement, the allocator keeps freed blocks of up to this size, and not more than the
activations and logits take."""


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes of each part."""

    weights: int
    adapter: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    runtime: int

    @property
    def total(self) -> int:
        """Bytes of all parts."""
        return sum(getattr(self, field.name) for field in fields(self))


@dataclass(frozen=True)
class Batch:
    """The largest batch of a run: sequences, and the tokens of the longest sequence."""

    num_rows: int
    length: int
    trained: int | None = None
    """Tokens that are trained; all of them if not known."""
    start: int = 0
    """Tokens at the start of sequences, computed once; see `training.loop.shared_start`."""
    num_sharing: int | None = None
    """Sequences that share a start; None for all of them."""
    num_threads: int = 0
    """Threads that compute rows of their own; see `training.loop.row_shares`. 0 for none."""

    def at_once(self) -> tuple[Batch, int]:
        """Return the rows that are computed at once, and the number of their shares."""
        if not self.num_threads:
            return self, 0
        num_shares, num_at_once = count_shares(self.num_tokens, self.num_rows, self.num_threads)
        num_rows = min(self.num_rows, num_at_once * math.ceil(self.num_rows / num_shares))
        trained = self.trained and math.ceil(self.trained * num_rows / self.num_rows)
        return replace(self, num_rows=num_rows, trained=trained), num_at_once

    @property
    def num_tokens(self) -> int:
        return self.num_rows * self.length

    @property
    def num_in_starts(self) -> int:
        """Tokens of the starts."""
        return self.start * math.ceil(self.num_rows / (self.num_sharing or self.num_rows))

    @property
    def num_computed(self) -> int:
        """Tokens that a layer computes where no activation is computed again."""
        return self.num_in_starts + self.num_rows * (self.length - self.start)

    @property
    def num_trained(self) -> int:
        return self.num_tokens if self.trained is None else min(self.trained, self.num_tokens)


def trained_network(config: TrainingConfig, base: Path) -> Network:
    """Return the base's network, with the parameters of the models that the method reads besides.

    Raises:
        ArtifactError: The files of a model name no sizes, or cannot be read.
    """
    beside = [read_network(model.path).num_parameters for model in config.method.models()]
    return replace(read_network(base), num_beside=sum(beside))


def largest_batch(
    config: TrainingConfig,
    lengths: Sequence[int] = (),
    trained: Sequence[int] = (),
    sharing: Sharing | None = None,
) -> Batch:
    """Return the batch that needs most memory; without lengths, rows of `max_length` tokens.

    Args:
        lengths: Tokens of each sequence of the training rows; a preference pair has two.
        trained: Trained tokens of each row, of both sides of a pair; all tokens if not given.
        sharing: The tokens that rows of a batch share.
    """
    sequences = config.method.num_sequences
    if trained:  # a query has any number of passages
        sequences = max(sequences, math.ceil(len(lengths) / len(trained)))
    rows = config.per_device_train_batch_size * sequences
    shared: tuple[int, int | None] = (0, None)
    if sharing is not None and sharing.whole_because is None:
        shared = sharing.start, sharing.num_sharing
    if config.packing or not lengths:
        return Batch(rows, config.max_length, None, *shared)
    # Trained tokens are bounded: of rows of one length, any may share a batch.
    most = sorted(trained, reverse=True)[: config.per_device_train_batch_size]
    num_trained = sum(most) if trained else None
    return Batch(min(rows, len(lengths)), max(lengths), num_trained, *shared)


def in_shares_by(config: TrainingConfig) -> bool:
    """Return whether batches are computed in shares of rows, as far as the settings tell."""
    return (
        config.method.type == "sft"
        and config.finetuning_type == "lora"
        and config.dtype != "bfloat16"
        and config.gradient_checkpointing is not True
        and (config.launch is None or config.launch.world_size == 1)
        and not gpu_names()
        and not (config.load_in_4bit or config.packing or config.lora_dropout or config.use_dora)
        and not (config.modules_to_save or config.trainable_token_indices)
        and not config.target_parameters
    )


def estimate_training(
    config: TrainingConfig, network: Network, batch: Batch, item_bytes: int
) -> TrainingMemory:
    """Return the memory of a step.

    Args:
        item_bytes: Bytes of a number of the weights and activations: 4 for float32.
    """
    trained, num_at_once, whole = num_trained(config, network), 0, batch
    if config.gradient_checkpointing is not True:
        batch, num_at_once = batch.at_once()
    weights, adapter = network.num_parameters * item_bytes, 4 * trained
    if config.finetuning_type == "full":
        has_reference = config.method.has_reference and getattr(config.method, "beta", 0) > 0
        adapter, weights = 0, 4 * trained * (2 if has_reference else 1)
    elif config.load_in_4bit:
        sizes = [math.prod(shape) for shape in network.four_bit_shapes()]
        weights -= round(sum(sizes) * (item_bytes - NF4_BYTES))
        weights += max(sizes, default=0) * item_bytes  # a layer computes with its whole weight
    weights += network.num_beside * item_bytes
    hidden, width = network.hidden_size, network.intermediate_size
    layer = 4 * hidden + 2 * network.query_size + 2 * network.key_value_size + 4 * width
    if config.lora_dropout:
        layer += 5 * hidden + 2 * width  # a copy of each layer's input, and peft's own arithmetic
    # The backward pass of one MLP has three gradients of its width, and the residual's.
    passing = 3 * width + 2 * hidden
    computed = batch.num_tokens
    if config.gradient_checkpointing is True:
        kept = computed * (network.num_layers * hidden + layer)
    else:
        computed = batch.num_computed
        kept = computed * network.num_layers * layer
        if batch.start:
            # Each row has its own keys and values of the start. Attention with a mask, which rows
            # that continue from a cache need, also copies them for every query head.
            numbers = batch.num_tokens * network.query_size
            numbers -= (computed - batch.num_in_starts) * network.key_value_size
            kept += network.num_layers * 2 * numbers
        if _has_answer_loss(config, item_bytes):
            beside = 2 * hidden + 2 * network.key_value_size
            kept -= max(0, computed - batch.num_trained) * (layer - beside)
    # Held-out rows are computed in whole batches, by a thread that has no rows to train.
    passes = computed + (whole.num_tokens if num_at_once else 0)
    activations = (kept + passes * passing) * item_bytes
    logits = 4 * _logits(config, network, batch, item_bytes)
    gradients = 4 * trained * (1 + num_at_once)
    if config.finetuning_type == "full" and network.tied:
        # A tied embedding has a gradient of each of its two uses, until they are added.
        gradients += 4 * network.vocab_size * hidden
    memory = TrainingMemory(
        weights=weights,
        adapter=adapter,
        gradients=gradients,
        optimizer=moment_bytes(config.optim) * trained,
        activations=activations,
        logits=logits,
        runtime=RUNTIME_BYTES + min(KEPT_BYTES, activations + logits),
    )
    return memory if config.launch is None else _of_one_process(memory, config.launch, network)


def num_trained(config: TrainingConfig, network: Network) -> int:
    """Return the number of trained parameters; biases of the base are not counted."""
    if config.finetuning_type == "full":
        return network.num_parameters
    total = 0
    for name, (rows, columns) in network.linear_shapes(config.target_modules).items():
        if _is_kept(config, name):
            total += _rank(config, name) * (rows + columns) + (rows if config.use_dora else 0)
    for name, (experts, rows, columns) in network.expert_shapes().items():
        named = config.target_modules == "all-linear" or names_module(config.target_modules, name)
        named = named or name.endswith(tuple(config.target_parameters or ()))
        if named and _is_kept(config, name):
            total += _rank(config, name) * experts * (rows + columns)
    for module in config.modules_to_save or []:
        sizes = [
            math.prod(shape)
            for name, shape in network.tensors.items()
            if name.rpartition(".")[0].endswith(module)
        ]
        total += sum(sizes) or network.vocab_size * network.hidden_size  # a tied head has no tensor
    tokens = config.trainable_token_indices or []
    rows_of = tokens.values() if isinstance(tokens, dict) else [tokens]
    return total + network.hidden_size * sum(len(ids) for ids in rows_of)


def _rank(config: TrainingConfig, name: str) -> int:
    patterns = config.rank_pattern.items()
    return next((rank for key, rank in patterns if re.match(rf"(.*\.)?({key})$", name)), config.r)


def _is_kept(config: TrainingConfig, name: str) -> bool:
    if config.exclude_modules and names_module(config.exclude_modules, name):
        return False
    layers, number = config.layers_to_transform, re.search(r"\.(\d+)\.", name)
    return layers is None or (number is not None and int(number[1]) in layers)


def _has_answer_loss(config: TrainingConfig, item_bytes: int) -> bool:
    """Return whether `training.loop.answer_loss` computes the loss: its head is in float32 or
    frozen."""
    is_float32 = item_bytes == 4 or config.finetuning_type == "full"
    is_frozen = not (config.modules_to_save or config.trainable_token_indices)
    return config.method.type == "sft" and (is_float32 or is_frozen) and not gpu_names()


def _logits(config: TrainingConfig, network: Network, batch: Batch, item_bytes: int) -> int:
    """Return the numbers of a step's logits that are in memory at once, copies included."""
    method, vocabulary = config.method.type, network.vocab_size
    if config.method.makes != "text":
        return 0  # a score or a vector in place of logits
    only_trained = bool(gpu_names()) or _has_answer_loss(config, item_bytes)
    # SFT computes tiles too on a CPU whose head is trained and not in float32.
    if config.method.computes_tiles or (method == "sft" and not only_trained):
        tile = min(batch.num_trained, TILE[0]) * min(vocabulary, TILE[1])
        return tile if gpu_names() else TILE_COPIES * tile
    logits = batch.num_tokens * vocabulary
    if method == "sft":
        logits = min(batch.num_trained * vocabulary, max(CHUNK_LOGITS, 64 * vocabulary))
    return LOGIT_COPIES * logits  # ORPO's all at once


def _of_one_process(
    memory: TrainingMemory, launch: LaunchConfig, network: Network
) -> TrainingMemory:
    """Return the memory that one of several processes takes.

    DDP copies the gradients into the buckets that it sends. FSDP2 has two layers whole at a time,
    the one that computes and the next one, and what is not a layer: embeddings and output head.
    """
    size = launch.world_size
    if size == 1:
        return memory
    if launch.strategy == "ddp":
        return replace(memory, gradients=2 * memory.gradients)
    in_layers = sum(
        math.prod(shape)
        for name, shape in network.tensors.items()
        if any(part.isdigit() for part in name.split("."))
    )
    layer = in_layers / network.num_layers
    others = network.num_parameters - in_layers
    whole = (
        others + min(in_layers, 2 * layer)
        if launch.reshard_after_forward
        else (network.num_parameters)
    )
    return replace(
        memory,
        weights=round(memory.weights / size + memory.weights * whole / network.num_parameters),
        adapter=round(memory.adapter / size),
        gradients=round(memory.gradients / size + memory.gradients / network.num_layers),
        optimizer=round(memory.optimizer / size),
    )


def change_that_fits(
    config: TrainingConfig, network: Network, batch: Batch, item_bytes: int, free_bytes: int
) -> str | None:
    """Return the first change of run.yaml with which a step fits into memory; None if none does."""
    changed = config.model_copy(update={"gradient_checkpointing": True})
    if config.gradient_checkpointing is not True and _fits(
        changed, network, batch, item_bytes, free_bytes
    ):
        return "training.gradient_checkpointing: true"
    rows, sequences = config.per_device_train_batch_size, config.method.num_sequences
    while rows > 1:
        rows //= 2
        smaller = replace(batch, num_rows=rows * sequences)
        if _fits(changed, network, smaller, item_bytes, free_bytes):
            steps = config.gradient_accumulation_steps * config.per_device_train_batch_size // rows
            return (
                f"training.gradient_checkpointing: true, per_device_train_batch_size: {rows}, "
                f"gradient_accumulation_steps: {steps}"
            )
    length = batch.length
    while length > 64:
        length //= 2
        if _fits(changed, network, Batch(sequences, length), item_bytes, free_bytes):
            return (
                "training.gradient_checkpointing: true, per_device_train_batch_size: 1, "
                f"max_length: {length}"
            )
    return None


def moment_bytes(optimizer: str) -> int:
    """Return the bytes that an optimizer keeps for each trained parameter."""
    if optimizer == "adafactor":
        return 0  # a row and a column of each matrix
    moments = 2 if "8bit" in optimizer else 8
    return moments // 2 if "lion" in optimizer else moments


def _fits(
    config: TrainingConfig, network: Network, batch: Batch, item_bytes: int, free_bytes: int
) -> bool:
    return estimate_training(config, network, batch, item_bytes).total <= free_bytes

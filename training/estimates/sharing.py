"""The tokens that rows of a batch will share, told before a model is loaded."""

from __future__ import annotations

from dataclasses import replace

from training.config import TrainingConfig
from training.data.prepare import dataset_rows
from training.estimates.choices import choose_all, share_of_free
from training.estimates.memory import largest_batch, trained_network
from training.loop.shared_rows import (
    CLASS_DIFFERS,
    COMPUTED_AGAIN,
    Sharing,
    expected_sharing,
)
from training.loop.shared_start import fits_shared_starts
from training.methods import find_method
from training.model import quiet_libraries
from tuneline.core.artifact import Artifact
from tuneline.core.dataset import TRAIN_FILE
from tuneline.core.errors import ArtifactError
from tuneline.core.free_memory import free_memory_bytes
from tuneline.models.chat import set_template
from tuneline.models.source import ModelSource
from tuneline.models.stop_tokens import served_stop_ids
from tuneline.models.template import dataset_settings
from tuneline.models.tokenizer import load_tokenizer

NUM_RENDERED = 512
"""Training rows that are rendered; of more rows, a random sample."""


def estimate_sharing(
    config: TrainingConfig, dataset: Artifact, base: ModelSource
) -> Sharing | None:
    """Return what batches of a dataset share, as a sample of its rows tells; None if too little.

    Raises:
        TunelineError: A row or the chat template cannot be used.
    """
    if not config.method.renders_chats:
        return None
    quiet_libraries()
    method, tokenizer = find_method(config.method), load_tokenizer(base.path)
    set_template(tokenizer, base.name, dataset_settings(dataset))
    stop_ids = served_stop_ids(base.path, tokenizer, config.eos_token)
    rows = dataset_rows(dataset, TRAIN_FILE, NUM_RENDERED, drawn=True)
    rendered = method.render(config, tokenizer, rows, stop_ids, TRAIN_FILE)
    examples = [method.sequences(example) for example in rendered]
    sharing, sampled = expected_sharing(config, examples), config.method.num_sampled_tokens
    if sharing is None:
        return None
    if dataset.manifest.metrics.get("num_train", 0) > len(rows):
        sharing = replace(sharing, num_drawn=len(rows))
    if sharing.whole_because:
        return sharing
    lengths = [len(ids) + sampled for example in examples for ids in example]
    if _computes_again(config, base, lengths, sharing):
        return replace(sharing, whole_because=COMPUTED_AGAIN)
    fits = fits_shared_starts(base.path, max(lengths), padded_left=sampled > 0)
    return sharing if fits else replace(sharing, whole_because=CLASS_DIFFERS)


def _computes_again(
    config: TrainingConfig, base: ModelSource, lengths: list[int], sharing: Sharing
) -> bool:
    """Return whether `gradient_checkpointing: auto` computes activations again."""
    try:
        network = trained_network(config, base.path)
    except ArtifactError:
        return config.gradient_checkpointing is not False
    batch = largest_batch(config, lengths, (), sharing)
    free_bytes = share_of_free(config, free_memory_bytes())
    again = {c.key: c.value for c in choose_all(config, network, batch, free_bytes)}
    return bool(again["gradient_checkpointing"])

"""What becomes of an output layer that the base ties to its embedding."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from export.merge.adapter import Adapter
from export.merge.deltas import Edit, LowRankChange, TokenRows
from export.weights.families import HEAD, NEOX_HEAD
from export.weights.model_folder import ModelFolder
from export.weights.tensor_file import Stored, same_values
from tuneline.core.environment import require
from tuneline.core.errors import ArtifactError
from tuneline.models.folder import CONFIG


def ties_changes(adapter: Adapter, base: ModelFolder) -> bool:
    """Whether PEFT puts the change of an embedding onto the output layer and the reverse; it knows
    an embedding by the name `embed_tokens` alone (PEFT 0.21.2)."""
    name = (base.embedding or "").removesuffix(".weight").rpartition(".")[2]
    return (
        base.is_tied and name == "embed_tokens" and bool(adapter.config.get("ensure_weight_tying"))
    )


def check_copies(base: ModelFolder) -> None:
    """Where a tied base stores both tensors, they are one: a server may read either.

    Raises:
        ArtifactError: The two differ, or what the output layer is tied to is not plain.
    """
    head = base.head
    if not base.stores_head:
        return
    if base.embedding is None:
        raise ArtifactError(
            f"{base.path}: {CONFIG} ties the output layer {head}, and it is not plain to which of "
            "the embeddings"
        )
    if not same_values(base.stored(base.embedding), base.stored(head)):
        raise ArtifactError(
            f"{base.path}: {CONFIG} ties the output layer to the embedding, and {head} differs "
            f"from {base.embedding}; expected the same values in both",
            hint=f"Set tie_word_embeddings to false in {base.path / CONFIG} if {head} is what the "
            f"model computes with, else remove {head}.",
        )


def settle_tied(
    adapters: Sequence[Adapter], base: ModelFolder, edits: dict[str, Edit], embedding: str
) -> str | None:
    """Decide what a tied output layer becomes; its name is returned where it comes untied.

    In the live adapter model the output layer multiplies by the base's own weight, unless it is
    itself adapted, or PEFT ties the adapters: `ensure_weight_tying`, and trained tokens always; a
    low-rank change of the output layer comes on top of these.

    Raises:
        ArtifactError: The output layer comes untied, and there is no place for it.
    """
    head = base.head
    of_input = edits.setdefault(embedding, Edit())
    of_output = edits.setdefault(head, Edit())
    ensured = all(ties_changes(adapter, base) for adapter in adapters)
    # A copy of the base layer is loaded into the one tensor that both share.
    for one, other in ((of_input, of_output), (of_output, of_input)):
        if one.whole is not None and other.whole is None and "base_layer" in one.whole.name:
            other.whole = one.whole
    tokens = [change for change in of_input.changes if isinstance(change, TokenRows)]
    if tokens and not any(isinstance(change, TokenRows) for change in of_output.changes):
        of_output.changes[:0] = tokens
    if ensured and of_output.whole is None and not of_output.changes:
        of_output.whole, of_output.changes = of_input.whole, list(of_input.changes)
    if _same_edit(of_input, of_output, base.stored(embedding)):
        del edits[head]
        if not of_input.changes and of_input.whole is None:
            del edits[embedding]
        elif base.stores_head:
            edits[head] = Edit(of_input.whole, list(of_input.changes))
        return None
    if not of_input.changes and of_input.whole is None:
        del edits[embedding]
    if "text_config" in base.config:
        raise ArtifactError(
            f"{base.path}: {embedding}: the output layer comes to differ from the embedding, and "
            "a model of text and pictures is not untied",
            hint="Merge it with peft (merge_and_unload).",
        )
    if not base.stores_head and not _is_called_so(base):
        raise ArtifactError(
            f"{base.path}: {embedding}: the output layer comes to differ from the embedding, and "
            f"in this family it is not called {head}",
            hint="Merge it with peft (merge_and_unload).",
        )
    if embedding.count(".") < 2 and not base.stores_head:
        raise ArtifactError(
            f"{base.path}: {embedding}: the output layer comes to differ from the embedding, and "
            "this base is stored without its head, so that there is no place for one",
            hint="Save the base whole: AutoModelForCausalLM.from_pretrained(BASE)"
            ".save_pretrained(OUT)",
        )
    return head


def check_plain(base: ModelFolder, edits: dict[str, Edit]) -> None:
    """Where a tied base's embedding is not plain, its vocabulary is not changed.

    Raises:
        ArtifactError: A matrix with a row for each token would be.
    """
    for name in edits:
        entry = base.tensors.get(name)
        rows = entry.shape[0] if entry is not None and len(entry.shape) == 2 else None
        if name == base.head or (rows is not None and rows == base.vocab_size):
            raise ArtifactError(
                f"{base.path}: the adapter changes {name}; {CONFIG} ties the output layer to the "
                "embedding, and it is not plain which tensor that is",
                hint="Merge it with peft (merge_and_unload).",
            )


def check_no_bias(base: ModelFolder, edits: dict[str, Edit]) -> None:
    """PEFT computes an output layer with trained tokens without its bias: no merge can be that.

    Raises:
        ArtifactError: The output layer has one.
    """
    heads = [base.head, *([base.embedding] if base.is_tied and base.embedding else [])]
    bias = f"{base.head.removesuffix('.weight')}.bias"
    trained = [
        change for name in heads if name in edits for change in edits[name].changes
        if isinstance(change, TokenRows)
    ]  # fmt: skip
    if trained and bias in base.tensors:
        raise ArtifactError(
            f"{trained[0].rows.file.path}: {trained[0].rows.name}: tokens of an output layer that "
            f"has a bias ({bias}), which PEFT leaves out while they are trained"
        )


def _is_called_so(base: ModelFolder) -> bool:
    """Whether transformers' class of this model calls its output layer as we do; the rare adapter
    that unties it pays for the import."""
    names = base.config.get("architectures") or [None]
    network = getattr(require("transformers", "export"), str(names[0]), None)
    tied = getattr(network, "_tied_weights_keys", None) or ()
    modules = {str(name).removesuffix(".weight").rpartition(".")[2] for name in tied}
    return not modules or bool(modules & {HEAD, NEOX_HEAD})


def _same_edit(one: Edit, other: Edit, base: Stored) -> bool:
    """Whether two edits of a shared tensor come to the same values."""
    sources = [edit.whole or base for edit in (one, other)]
    if sources[0] is not sources[1] and not same_values(*sources):
        return False
    if len(one.changes) != len(other.changes):
        return False
    for change, counterpart in zip(one.changes, other.changes, strict=True):
        if change is counterpart:
            continue
        if isinstance(change, LowRankChange) and isinstance(counterpart, LowRankChange):
            if not _transposes(change, counterpart):
                return False
        elif not (
            isinstance(change, TokenRows)
            and isinstance(counterpart, TokenRows)
            and change.indices == counterpart.indices
            and same_values(change.rows, counterpart.rows)
        ):
            return False
    return True


def _transposes(one: LowRankChange, other: LowRankChange) -> bool:
    """Whether a change of an embedding and one of an output layer have the same product."""
    if one.magnitude or other.magnitude or len(one.factors) != len(other.factors):
        return False
    return all(
        mine.scale == its.scale
        and mine.weight == its.weight
        and torch.equal(mine.a.read(), its.b.read().T)
        and torch.equal(mine.b.read(), its.a.read().T)
        for mine, its in zip(one.factors, other.factors, strict=True)
    )

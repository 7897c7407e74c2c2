"""The output layer of a base that ties it to the embedding: what it becomes in the result."""

from __future__ import annotations

from collections.abc import Sequence

from export.merge.adapter import Adapter
from export.merge.methods.method import Edit, Edits
from export.merge.methods.table import method_of
from export.weights.families import HEAD, NEOX_HEAD, TIED_IN_VLLM
from export.weights.model_folder import ModelFolder
from export.weights.tensor_file import Stored, same_values
from tuneline.core.environment import require
from tuneline.core.errors import ArtifactError
from tuneline.core.progress import logger
from tuneline.models.folder import CONFIG

KEEP_TIED = (
    "Try: train embedding and output layer with ensure_weight_tying, or leave them out. peft's "
    "merge_and_unload is right for modules_to_save; it puts a low-rank change on both layers."
)


def ties_changes(adapter: Adapter, base: ModelFolder) -> bool:
    """Return whether PEFT puts a change of the embedding onto the output layer and the reverse.

    PEFT 0.21.2 does this only for an embedding with the name `embed_tokens`.
    """
    name = (base.embedding or "").removesuffix(".weight").rpartition(".")[2]
    return (
        base.is_tied and name == "embed_tokens" and bool(adapter.config.get("ensure_weight_tying"))
    )


def settle_tied_head(
    adapters: Sequence[Adapter], base: ModelFolder, edits: Edits
) -> tuple[dict[str, Edit], str | None]:
    """Decide what a tied output layer becomes.

    Returns:
        The edits, with those of the output layer; and the output layer's name if the result does
        not tie it any more.

    Raises:
        ArtifactError: The base's tied tensors differ, the embedding is not known, or the output
            layer comes to differ and the result has no place for it.
    """
    _check_stored_twice(base)
    embedding, head = base.embedding, base.head
    if embedding is None:
        _check_vocabulary_kept(base, edits)
        return dict(edits), None
    others = {name: edit for name, edit in edits.items() if name not in (embedding, head)}
    if len(others) == len(edits):
        return others, None
    ensured = all(ties_changes(adapter, base) for adapter in adapters)
    of_input, of_output = share_edits(
        edits.get(embedding, Edit()), edits.get(head, Edit()), ensured
    )
    changed_input = {embedding: of_input} if of_input != Edit() else {}
    if _is_same(of_input, of_output, base.stored(embedding)):
        stored_too = {head: of_input} if changed_input and base.stores_head else {}
        return {**others, **changed_input, **stored_too}, None
    _check_place(base, embedding)
    if base.config["model_type"] in TIED_IN_VLLM:
        logger.warning(
            "  %s: the output layer comes to differ from the embedding, and vLLM ties the two in "
            "the family %s: such a server does not answer as the trained model. Try: train "
            "neither of them, or embed_tokens with ensure_weight_tying",
            base.path, base.config["model_type"],
        )  # fmt: skip
    return {**others, **changed_input, head: of_output}, head


def share_edits(of_input: Edit, of_output: Edit, ensured: bool) -> tuple[Edit, Edit]:
    """Return the edits of embedding and output layer as PEFT's live model has them.

    The live output layer multiplies by the base's own weight, with these exceptions. A copy of the
    base layer is loaded into the one tensor that both share. Trained tokens are always tied. With
    `ensure_weight_tying` (`ensured`), an output layer without changes of its own has those of the
    embedding. A low-rank change of the output layer comes on top.
    """
    input_copy, output_copy = of_input.copy, of_output.copy
    if output_copy is None and input_copy is not None and "base_layer" in input_copy.name:
        output_copy = input_copy
    elif input_copy is None and output_copy is not None and "base_layer" in output_copy.name:
        input_copy = output_copy
    output_changes = of_output.changes
    tied = tuple(change for change in of_input.changes if method_of(change).is_always_tied)
    if tied and not any(method_of(change).is_always_tied for change in output_changes):
        output_changes = (*tied, *output_changes)
    if ensured and output_copy is None and not output_changes:
        output_copy, output_changes = input_copy, of_input.changes
    return Edit(input_copy, of_input.changes), Edit(output_copy, output_changes)


def _check_stored_twice(base: ModelFolder) -> None:
    """Refuse a tied base that stores two different tensors: a server may read either."""
    head = base.head
    if not base.stores_head:
        return
    if base.embedding is None:
        raise ArtifactError(
            f"{base.path}: {CONFIG} ties the output layer {head} to an embedding; expected one "
            "embedding in the files"
        )
    if not same_values(base.stored(base.embedding), base.stored(head)):
        raise ArtifactError(
            f"{base.path}: {CONFIG} ties the output layer to the embedding, and {head} differs "
            f"from {base.embedding}; expected the same values in both",
            hint=f"Try: set tie_word_embeddings to false in {base.path / CONFIG} if the model "
            f"computes with {head}, else remove {head}.",
        )


def _check_vocabulary_kept(base: ModelFolder, edits: Edits) -> None:
    """Refuse an edit of a matrix with one row per token if the embedding is not known."""
    for name in edits:
        entry = base.tensors.get(name)
        rows = entry.shape[0] if entry is not None and len(entry.shape) == 2 else None
        if name == base.head or (rows is not None and rows == base.vocab_size):
            raise ArtifactError(
                f"{base.path}: the adapter changes {name}; {CONFIG} ties the output layer to the "
                "embedding, and the names in the files do not say which tensor that is",
                hint="Try: leave embedding and output layer out of the adapter.",
            )


def _check_place(base: ModelFolder, embedding: str) -> None:
    """Refuse an output layer that comes to differ and has no place in the result."""
    problem = f"{base.path}: {embedding}: the output layer comes to differ from the embedding"
    if "text_config" in base.config:
        raise ArtifactError(
            f"{problem}, and a model of text and pictures is not untied", hint=KEEP_TIED
        )
    if base.stores_head:
        return
    if not _is_called_head(base):
        raise ArtifactError(
            f"{problem}, and in this family it is not called {base.head}", hint=KEEP_TIED
        )
    if embedding.count(".") < 2:
        raise ArtifactError(
            f"{problem}, and this base is stored without an output layer",
            hint="Try: save the base whole, with AutoModelForCausalLM.from_pretrained(BASE)"
            ".save_pretrained(OUT).",
        )


def _is_called_head(base: ModelFolder) -> bool:
    """Return whether transformers' class of this model has an output layer of the name we use.

    Only the rare adapter that unties it pays for the import.
    """
    names = base.config.get("architectures") or [None]
    network = getattr(require("transformers", "export"), str(names[0]), None)
    tied = getattr(network, "_tied_weights_keys", None) or ()
    modules = {str(name).removesuffix(".weight").rpartition(".")[2] for name in tied}
    return not modules or bool(modules & {HEAD, NEOX_HEAD})


def _is_same(of_input: Edit, of_output: Edit, base: Stored) -> bool:
    """Return whether two edits of a shared tensor give the same values."""
    sources = [edit.copy or base for edit in (of_input, of_output)]
    if sources[0] is not sources[1] and not same_values(*sources):
        return False
    return len(of_input.changes) == len(of_output.changes) and all(
        change.is_same(other)
        for change, other in zip(of_input.changes, of_output.changes, strict=True)
    )

"""Is the exported model the trained model? It answers the reference's prompts, and is compared.

Each form is loaded as anybody would load it: its own weights, tokenizer, chat template and stop
tokens. Nothing of the reference enters but the messages, so that a drift in any of these shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from export.config import ParityConfig
from export.forms_on_disk import form_weights, open_form, weights_of_folder
from export.runtimes.scores import OpenedForm, Score
from export.runtimes.transformers_folder import render_prompt, sampling_defaults
from tuneline.core.artifact import Artifact
from tuneline.core.errors import ArtifactError
from tuneline.core.parity import compare
from tuneline.core.parity_report import said_defaults, write_parity
from tuneline.core.progress import logger, progress
from tuneline.core.reference import (
    Continuation,
    comparable_settings,
    read_reference,
    reference_noise,
)
from tuneline.core.tolerances import Tolerances, tolerances_of_weights
from tuneline.models.source import ModelSource


def prove_model(
    config: ParityConfig,
    reference: Artifact,
    model: ModelSource,
    out: Path,
    *,
    form: str = "merged",
) -> Artifact:
    """Hold any form on disk against the reference of the trained model.

    A model folder is computed with in float32, whatever its weights are stored in, so that what is
    measured is the model and not the arithmetic; a graph is run by its own runtime.

    Returns:
        An artifact of kind `parity`; the verdict is in it and is not raised.

    Raises:
        ArtifactError: The form cannot be loaded, or its tokenizer does not go with it.
    """
    expected = read_reference(reference)
    if not expected:
        raise ArtifactError(f"{reference.path}: the reference holds no prompts")
    settings = comparable_settings(reference)
    opened = open_form(model)
    found = []
    with progress(f"parity of {form}", len(expected), "prompts") as advance:
        for index, continuation in enumerate(expected):
            prompt_ids = render_prompt(opened.tokenizer, continuation.messages, model.path)
            _check_ids(prompt_ids, opened, model.path)
            token_ids, logprobs, top_logprobs = greedy_answer(
                opened.score,
                prompt_ids,
                draft=continuation.token_ids,
                stop_ids=opened.stop_ids,
                max_new_tokens=settings["max_new_tokens"],
                num_top=settings["top_logprobs"],
            )
            found.append(
                Continuation(
                    messages=continuation.messages,
                    prompt_token_ids=prompt_ids,
                    token_ids=token_ids,
                    logprobs=logprobs,
                    top_logprobs=top_logprobs,
                    text=opened.tokenizer.decode(token_ids, skip_special_tokens=True),
                    finish_reason="stop" if token_ids[-1] in opened.stop_ids else "length",
                )
            )
            advance(index + 1)
    chosen = config.tolerances if form == "merged" else None
    for name, given in config.forms.items():
        chosen = given if name == form else chosen
    tolerances = chosen or tolerances_of_weights(form_weights(model))
    noise = reference_noise(reference)
    parity = compare(form, expected, found, tolerances, reference_noise=noise)
    parity = parity.model_copy(update={"sampling_defaults": sampling_defaults(model.path)})
    if parity.sampling_defaults:
        logger.info("  a server's defaults for %s: %s", form, said_defaults(parity))
    inputs = [reference.as_input("reference"), model.as_input("model")]
    return write_parity(out, parity, tolerances, config={"form": form}, inputs=inputs)


def weight_tolerances(weights: ModelSource, dtype: str) -> Tolerances | None:
    """What the rounding of a folder's weights may cost, beside the arithmetic of a server that
    computes in `dtype`; None where the weights are in float32 or in that format.

    Raises:
        ArtifactError: How the weights are quantized cannot be told.
    """
    stored = weights_of_folder(weights.path)
    return None if stored in ("float32", dtype) else tolerances_of_weights(stored)


def greedy_answer(
    score: Score,
    prompt_ids: list[int],
    *,
    draft: Sequence[int],
    stop_ids: frozenset[int],
    max_new_tokens: int,
    num_top: int,
) -> tuple[list[int], list[float], list[dict[int, float]]]:
    """The form's own greedy answer to one prompt, checked against a draft in one pass.

    The draft (the reference's answer) is scored at all its positions at once. As long as each
    token is the form's own most likely one, it is what greedy decoding gives, by induction over the
    positions; from the first that is not, or after the draft's end, decoding goes on by itself.

    Returns:
        The tokens, with the stop token where it stopped by itself; their log-probabilities; and
        at each position the `num_top` most likely tokens' log-probabilities.
    """
    token_ids: list[int] = []
    logprobs: list[float] = []
    top_logprobs: list[dict[int, float]] = []
    while len(token_ids) < max_new_tokens and (not token_ids or token_ids[-1] not in stop_ids):
        ahead = list(draft[:-1]) if not token_ids else []
        logits = score(prompt_ids + token_ids + ahead, len(ahead) + 1)
        for row in torch.log_softmax(logits, dim=-1):
            chosen = int(row.argmax())
            top = torch.topk(row, min(num_top, len(row)))
            token_ids.append(chosen)
            logprobs.append(float(row[chosen]))
            top_logprobs.append(dict(zip(top.indices.tolist(), top.values.tolist(), strict=True)))
            done = chosen in stop_ids or len(token_ids) == max_new_tokens
            if done or list(draft[: len(token_ids)]) != token_ids:
                break
    return token_ids, logprobs, top_logprobs


def _check_ids(prompt_ids: list[int], form: OpenedForm, path: Path) -> None:
    if not prompt_ids or max(prompt_ids) >= form.num_rows:
        raise ArtifactError(
            f"{path}: its tokenizer renders a prompt to token id {max(prompt_ids, default=None)}; "
            f"the model has {form.num_rows} rows: a tokenizer of another model"
        )

"""Is the exported model the trained model? The form answers the reference's prompts.

A form is loaded with its own weights, tokenizer, chat template and stop tokens, as a user loads it.
It takes only the messages from the reference, so that a difference in any of its files shows.
"""

from __future__ import annotations

from pathlib import Path

from export.config import ParityConfig
from export.find_form import form_weights, open_form, weights_of_folder
from export.runtimes.scores import OpenedForm
from export.runtimes.transformers_folder import sampling_defaults
from tuneline.core.artifact import Artifact
from tuneline.core.errors import ArtifactError
from tuneline.core.parity import compare
from tuneline.core.parity_report import said_defaults, write_parity
from tuneline.core.progress import logger, progress
from tuneline.core.reference import (
    Continuation,
    comparable_settings,
    read_reference,
    reference_date,
    reference_noise,
)
from tuneline.core.tolerances import Tolerances, tolerances_of_weights
from tuneline.models.chat import render_prompt, set_date
from tuneline.models.greedy import greedy_answer
from tuneline.models.source import ModelSource


def prove_model(
    config: ParityConfig,
    reference: Artifact,
    model: ModelSource,
    out: Path,
    *,
    form: str = "merged",
) -> Artifact:
    """Compare any form on disk with the reference of the trained model.

    A model folder computes in float32 with every storage format, so that the comparison measures
    the model and not the arithmetic. A graph runs in its own runtime.

    Returns:
        An artifact of kind `parity`, which holds the verdict; a FAIL is not raised.

    Raises:
        ArtifactError: The form cannot be loaded, or its tokenizer belongs to another model.
    """
    expected = read_reference(reference)
    if not expected:
        raise ArtifactError(f"{reference.path}: the reference has 0 prompts; expected at least 1")
    settings = comparable_settings(reference)
    chosen = config.tolerances if form == "merged" else config.forms.get(form)
    tolerances = chosen or tolerances_of_weights(form_weights(model))
    opened = open_form(model)
    date = reference_date(reference)
    set_date(opened.tokenizer, date)
    found = []
    with progress(f"parity of {form}", len(expected), "prompts") as advance:
        for index, continuation in enumerate(expected):
            found.append(_answer(opened, continuation, settings, model.path))
            advance(index + 1)
    noise = reference_noise(reference)
    parity = compare(
        form, expected, found, tolerances, reference_noise=noise,
        template_date=date.isoformat() if date else None,
    )  # fmt: skip
    parity = parity.model_copy(update={"sampling_defaults": sampling_defaults(model.path)})
    if parity.sampling_defaults:
        logger.info("  a server's defaults for %s: %s", form, said_defaults(parity))
    inputs = [reference.as_input("reference"), model.as_input("model")]
    return write_parity(out, parity, tolerances, config={"form": form}, inputs=inputs)


def weight_tolerances(weights: ModelSource, dtype: str) -> Tolerances | None:
    """Return the tolerances for the rounding of a folder's weights, without a server's arithmetic.

    Args:
        dtype: The number format that the server computes in.

    Returns:
        None if the weights are in float32 or in `dtype`, where serving adds no rounding.

    Raises:
        ArtifactError: The folder does not say how its weights are quantized.
    """
    stored = weights_of_folder(weights.path)
    return None if stored in ("float32", dtype) else tolerances_of_weights(stored)


def _answer(
    opened: OpenedForm, expected: Continuation, settings: dict[str, int], path: Path
) -> Continuation:
    """Return the form's answer to one prompt of the reference."""
    prompt_ids = render_prompt(opened.tokenizer, expected.messages, path, expected.tools)
    _check_ids(prompt_ids, opened, path)
    token_ids, logprobs, top_logprobs = greedy_answer(
        opened.score,
        prompt_ids,
        draft=expected.token_ids,
        stop_ids=opened.stop_ids,
        max_new_tokens=settings["max_new_tokens"],
        num_top=settings["top_logprobs"],
    )
    return Continuation(
        messages=expected.messages,
        prompt_token_ids=prompt_ids,
        token_ids=token_ids,
        logprobs=logprobs,
        top_logprobs=top_logprobs,
        text=opened.tokenizer.decode(token_ids, skip_special_tokens=True),
        finish_reason="stop" if token_ids[-1] in opened.stop_ids else "length",
    )


def _check_ids(prompt_ids: list[int], form: OpenedForm, path: Path) -> None:
    if not prompt_ids or max(prompt_ids) >= form.num_rows:
        raise ArtifactError(
            f"{path}: the tokenizer renders a prompt to token id {max(prompt_ids, default=None)}; "
            f"expected ids below {form.num_rows}, the rows of the embedding",
            hint="It is a tokenizer of another model. Try: copy the model's own tokenizer files.",
        )

"""Is the exported model the trained model? It answers the reference's prompts, and is compared.

The model is loaded as anybody would load it: its own weights, tokenizer, chat template and stop
tokens. Nothing of the reference enters but the messages, so that a drift in any of these shows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from export.config import ParityConfig
from export.tensor_file import read_tensor_file
from tuneline.core.artifact import Artifact
from tuneline.core.errors import ArtifactError
from tuneline.core.model_source import ModelSource
from tuneline.core.parity import Tolerances, compare, write_parity
from tuneline.core.progress import progress
from tuneline.core.reference import Continuation, comparable_settings, read_reference

DEFAULT_TOLERANCES = {
    "float32": Tolerances(
        min_greedy_agreement=1.0, max_logprob_difference=1e-3, mean_logprob_difference=1e-4
    ),
    "float16": Tolerances(
        min_greedy_agreement=0.99, max_logprob_difference=0.01, mean_logprob_difference=0.001
    ),
    "bfloat16": Tolerances(
        min_greedy_agreement=0.95, max_logprob_difference=0.05, mean_logprob_difference=0.005
    ),
}
"""By the number format of the stored weights; docs/parity.md says why."""


def prove_model(
    config: ParityConfig,
    reference: Artifact,
    model: ModelSource,
    out: Path,
    *,
    form: str = "merged",
) -> Artifact:
    """Hold a transformers model folder against the reference of the trained model.

    The weights are computed with in float32, whatever they are stored in, so that what is measured
    is the model and not the arithmetic.

    Returns:
        An artifact of kind `parity`; the verdict is in it and is not raised.

    Raises:
        ArtifactError: The model cannot be loaded, or its tokenizer does not go with it.
    """
    expected = read_reference(reference)
    if not expected:
        raise ArtifactError(f"{reference.path}: the reference holds no prompts")
    settings = comparable_settings(reference)
    network, tokenizer = load_model(model.path)
    score = cached_scores(network)
    stop_ids = stop_token_ids(network)
    found = []
    with progress("parity", len(expected), "prompts") as advance:
        for index, continuation in enumerate(expected):
            prompt_ids = render_prompt(tokenizer, continuation.messages, model.path)
            _check_ids(prompt_ids, network, model.path)
            token_ids, logprobs, top_logprobs = greedy_answer(
                score,
                prompt_ids,
                draft=continuation.token_ids,
                stop_ids=stop_ids,
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
                    text=tokenizer.decode(token_ids, skip_special_tokens=True),
                    finish_reason="stop" if token_ids[-1] in stop_ids else "length",
                )
            )
            advance(index + 1)
    tolerances = config.tolerances or DEFAULT_TOLERANCES[stored_dtype(model.path)]
    parity = compare(form, expected, found, tolerances)
    inputs = [reference.as_input("reference"), model.as_input("model")]
    return write_parity(out, parity, tolerances, config={"form": form}, inputs=inputs)


Score = Callable[[list[int], int], torch.Tensor]
"""`score(token_ids, last)`: the next-token logits at the `last` last positions, in float32, shape
(last, vocabulary)."""


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


def cached_scores(network: Any) -> Score:
    """Scores by a transformers causal LM, batch size 1, reusing the cache where a call continues
    the one before."""
    seen: list[int] = []
    cache: Any = None

    def score(token_ids: list[int], last: int) -> torch.Tensor:
        nonlocal seen, cache
        fresh = token_ids[len(seen) :]
        if cache is None or token_ids[: len(seen)] != seen or len(fresh) < last:
            fresh, cache = token_ids, None
        with torch.inference_mode():
            output = network(
                input_ids=torch.tensor([fresh]),
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=last,
            )
        seen, cache = list(token_ids), output.past_key_values
        return output.logits[0].float()

    return score


def load_model(path: Path) -> tuple[Any, Any]:
    """The causal LM of a folder in float32, and its tokenizer.

    Raises:
        ArtifactError: It cannot be loaded, or its weights lack a tensor or have one too many.
    """
    import safetensors
    import transformers

    transformers.utils.logging.disable_progress_bar()  # a bar of our own is shown
    try:
        network, info = transformers.AutoModelForCausalLM.from_pretrained(
            path, dtype=torch.float32, local_files_only=True, output_loading_info=True
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError, RuntimeError, KeyError, safetensors.SafetensorError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ArtifactError(f"{path}: transformers cannot load it: {reason}") from error
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info.get(what):
            names = ", ".join(sorted(str(name) for name in info[what])[:5])
            raise ArtifactError(f"{path}: its weights have {what.replace('_', ' ')}: {names}")
    return network.eval(), tokenizer


def render_prompt(tokenizer: Any, messages: list[dict[str, str]], path: Path) -> list[int]:
    """The token ids of a conversation, rendered by the model's own chat template.

    Raises:
        ArtifactError: The tokenizer has no chat template.
    """
    if not tokenizer.chat_template:
        raise ArtifactError(f"{path}: its tokenizer has no chat template")
    ids = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=False
    )
    return [int(token) for token in ids]


def stop_token_ids(network: Any) -> frozenset[int]:
    """The tokens that end an answer, by the model's generation_config.json."""
    stop = network.generation_config.eos_token_id
    if stop is None:
        return frozenset()
    return frozenset([stop] if isinstance(stop, int) else stop)


def stored_dtype(path: Path) -> str:
    """The narrowest float format among a model's weights: float32, bfloat16 or float16."""
    stored = {
        entry.dtype
        for file in sorted(path.glob("*.safetensors"))
        for entry in read_tensor_file(file).entries
    }
    if "BF16" in stored:
        return "bfloat16"
    return "float16" if "F16" in stored else "float32"


def _check_ids(prompt_ids: list[int], network: Any, path: Path) -> None:
    rows = network.get_input_embeddings().weight.shape[0]
    if not prompt_ids or max(prompt_ids) >= rows:
        raise ArtifactError(
            f"{path}: its tokenizer renders a prompt to token id {max(prompt_ids, default=None)}; "
            f"the model has {rows} rows: a tokenizer of another model"
        )

"""Greedy decoding, the same for the reference and for every form that is compared with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

Score = Callable[[list[int], int], Any]
"""`score(token_ids, last)`: a tensor with the next-token logits at the `last` last positions, in
float32, shape (last, vocabulary)."""


def cached_scores(network: Any) -> Score:
    """Return scores by a transformers causal LM at batch size 1.

    A call with one token more than the call before reuses its cache.
    """
    import torch

    seen: list[int] = []
    cache: dict[str, Any] = {}

    def score(token_ids: list[int], last: int) -> Any:
        nonlocal seen, cache
        fresh = token_ids[-1:]
        # A state of a recurrent layer takes one token at a time.
        if not cache or token_ids[:-1] != seen or last != 1:
            fresh, cache = token_ids, {}
        with torch.inference_mode():
            output = network(
                input_ids=torch.tensor([fresh], device=network.device),
                use_cache=True,
                logits_to_keep=last,
                **cache,
            )
        seen, cache = list(token_ids), cache_of(output)
        return output.logits[0].float()

    return score


def cache_of(output: Any) -> dict[str, Any]:
    """Return an output's cache as an argument of the next call.

    Models of recurrent layers only (Mamba) have a state and name it otherwise. Without a cache, the
    result is empty, and the next call takes the whole sequence.
    """
    names = ("past_key_values", "cache_params")
    return {name: output[name] for name in names if output.get(name) is not None}


def greedy_answer(
    score: Score,
    prompt_ids: list[int],
    *,
    draft: Sequence[int] = (),
    stop_ids: frozenset[int],
    max_new_tokens: int,
    num_top: int,
) -> tuple[list[int], list[float], list[dict[int, float]]]:
    """Return a model's own greedy answer to one prompt.

    The model scores all positions of a draft (the reference's answer) in one pass. While each draft
    token is the model's most likely token, greedy decoding gives the same tokens, by induction over
    the positions. From the first other token, or after the draft's end, decoding continues token by
    token.

    Returns:
        The tokens, with the stop token if the answer ends with one; their log-probabilities; and
        for each position the log-probabilities of the chosen token and of the `num_top` most likely
        tokens, the chosen token first.
    """
    import torch

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
            # Among equally likely tokens topk may leave out the token that argmax takes.
            likely = dict(zip(top.indices.tolist(), top.values.tolist(), strict=True))
            top_logprobs.append({chosen: logprobs[-1]} | likely)
            done = chosen in stop_ids or len(token_ids) == max_new_tokens
            if done or list(draft[: len(token_ids)]) != token_ids:
                break
    return token_ids, logprobs, top_logprobs

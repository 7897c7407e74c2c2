"""Does a server give the vectors of the model in a folder? Through the network, by texts.

transformers computes the vectors of the same texts in float32, with the pooling and the
normalization that the folder states. A score is the cosine of two vectors. If the server's answers
differ, the other ways to make a vector are tried, so that the verdict can name the fault.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from serving.config import ServedParityConfig
from tuneline.core.artifact import Artifact, new_artifact, open_artifact
from tuneline.core.endpoint import Endpoint
from tuneline.core.errors import ServerError
from tuneline.core.openai_client import openai_client
from tuneline.core.progress import progress
from tuneline.models.source import ModelSource
from tuneline.models.vectors import (
    POOLINGS,
    Recipe,
    States,
    load_dense,
    load_states,
    read_recipe,
    vector_of,
)

if TYPE_CHECKING:
    from openai import OpenAI

Given = TypeVar("Given")
Found = TypeVar("Found")

KIND = "vector-parity"
VECTORS_FILE = "vectors.json"
MAX_DIFFERENCE = {"float32": 2e-4, "float16": 1e-2, "bfloat16": 5e-2}
"""Largest distance of two vectors, as a share of the length of the trained model's vector, by the
number format of the arithmetic; docs/parity.md gives the measurements."""
LONGEST_TOKENS = 512
ROUTES = ("v1/embeddings", "pooling")
"""The routes that give vectors, the first one first."""
SCORE = "score"
"""The route that gives the cosine of two texts' vectors."""

TEXTS = (
    "refund",
    "I want a refund.",
    "The printer prints blank pages, although the cartridge is new.",
    "Reset my password, please! The link in your e-mail from 3:45 PM does not work.",
    "프린터가 멈췄어요. 어떻게 해야 하나요?",
    "Où est mon colis ? Il devait arriver hier à l'école.",
    "Die Rechnung über 1.234,56 € ist falsch.",
    "请问如何更改送货地址？",
    "كيف يمكنني إلغاء الاشتراك؟",
    "def total(rows):\n    return sum(row['price'] for row in rows)",
    "WHERE IS MY ORDER #88231?",
    "naïve café 🚀 ½ ﬁne",
)
SENTENCE = "The customer wrote again on Monday, and the support team answered within two hours. "
"""Repeated, it is a text of many tokens: wrong positions show there."""


def prove_vectors(
    config: ServedParityConfig,
    model: ModelSource,
    endpoint: Endpoint,
    out: Path,
    *,
    dtype: str = "float32",
) -> Artifact:
    """Compare a server's vectors with those of the model in a folder.

    Args:
        model: The model folder that the server is to serve.
        dtype: The number format that the server computes in: float32, float16 or bfloat16.

    Returns:
        An artifact of kind `vector-parity` with `vectors.json`; a failed verdict raises nothing.

    Raises:
        ArtifactError: The folder does not say how vectors are made, or cannot be loaded.
        MissingError: The openai package is not installed.
        ServerError: The server cannot be reached, or gives no vectors.
    """
    recipe = read_recipe(model.path)
    states_of = load_states(model.path, recipe)
    with openai_client(endpoint, timeout_s=config.request_timeout_s) as client:
        longest = min(longest_prompt(client, endpoint), recipe.max_tokens or LONGEST_TOKENS)
        texts = proof_texts(lambda text: states_of(text, True).num_tokens, longest)
        ask, ask_score = _asking(client, endpoint)
        found = None if ask is None else ask_all(ask, texts, config.concurrency, "served vectors")
        pairs = list(zip(texts, _turned(texts), strict=True))
        scores = ask_score and ask_all(ask_score, pairs, config.concurrency, "served scores")
    dense = load_dense(model.path, recipe)
    limit = MAX_DIFFERENCE[dtype]
    expected = [states_of(text, True) for text in texts]
    report = compare_vectors(recipe, expected, found, scores, dense, limit)
    if report["verdict"] == "FAIL":
        vectors = None if found is None else [vector for vector, _ in found]
        for words, states, change in _other_ways(recipe, texts, states_of, dense):
            ways = [change(one.states) for one in states]
            if max(_shares(ways, vectors, scores)) <= limit:
                report["problems"].append(f"the server gives {words}; expected {recipe.words}")
                break
    settings = {"model": endpoint.model, "dtype": dtype, "concurrency": config.concurrency}
    with new_artifact(out, KIND, config=settings, inputs=[model.as_input("model")]) as draft:
        (draft.dir / VECTORS_FILE).write_text(
            json.dumps({**report, "texts": texts}, indent=2, ensure_ascii=False) + "\n",
            encoding="utf-8",
        )
        draft.metrics.update(report)
    return open_artifact(out, kind=KIND)


def ask_all(
    ask: Callable[[Given], Found], inputs: Sequence[Given], concurrency: int, what: str
) -> list[Found]:
    """Return the server's answer to each input, in their order."""
    found: list[Found] = []
    pool = ThreadPoolExecutor(concurrency)
    try:
        with progress(what, len(inputs), "requests") as advance:
            for one in pool.map(ask, inputs):
                found.append(one)
                advance(len(found))
    finally:
        pool.shutdown(cancel_futures=True)  # after an error, ask no more
    return found


def compare_vectors(
    recipe: Recipe,
    expected: Sequence[States],
    found: Sequence[tuple[Sequence[float], int]] | None,
    scores: Sequence[float] | None,
    dense: Any,
    limit: float,
) -> dict[str, Any]:
    """Return the figures of the vectors of several texts, the verdict, and why it is FAIL.

    Args:
        expected: The states of each text.
        found: The server's vector of each text, and the number of tokens that it counted. None for
            a server that gives scores only.
        scores: The server's score of each text and the next one. None for a server without them.
        limit: The largest distance of two vectors, as a share of the expected one's length.
    """
    own = [vector_of(one.states, recipe, dense).tolist() for one in expected]
    served = None if found is None else [vector for vector, _ in found]
    counts = [
        (one.num_tokens, count) for one, (_, count) in zip(expected, found or (), strict=False)
    ]
    problems = []
    if sizes := {len(vector) for vector in served or ()} - {len(own[0])}:
        problems.append(f"a vector has {min(sizes)} dimensions; expected {len(own[0])}")
    if differ := [pair for pair in counts if pair[0] != pair[1]]:
        own_count, count = differ[0]
        problems.append(
            f"the server counts other tokens in {len(differ)} of {len(counts)} texts: {count} in "
            f"place of {own_count}"
        )
    pairs = [] if sizes or served is None else list(zip(own, served, strict=True))
    largest, shift = _shares(own, served, scores)
    if not largest <= limit:
        problems.append(
            f"vectors differ by up to {largest:.2g} of their length; at most {limit:g} is allowed"
        )
    if not shift <= limit:
        problems.append(
            f"/{SCORE}: cosines differ by up to {2 * shift:.2g}; at most {2 * limit:g} is allowed"
        )
    return {
        "num_texts": len(own),
        "num_scores": len(scores or ()),
        "num_equal_token_counts": len(counts) - len(differ),
        "dimensions": len(own[0]),
        "recipe": recipe.words,
        "min_cosine": min((cosine_of(a, b) for a, b in pairs), default=None),
        "max_difference": max((abs(x - y) for a, b in pairs for x, y in zip(a, b, strict=True)),
                              default=None),
        "max_relative_difference": largest if served and math.isfinite(largest) else None,
        "max_cosine_difference": 2 * shift if scores and math.isfinite(shift) else None,
        "limit": limit,
        "problems": problems,
        "verdict": "FAIL" if problems else "PASS",
    }  # fmt: skip


def _shares(
    expected: Sequence[Any],
    found: Sequence[Sequence[float]] | None,
    scores: Sequence[float] | None,
) -> tuple[float, float]:
    """Return the largest distance of two vectors, as a share of the expected one's length, and the
    largest such share that follows from the scores.

    Two vectors that are each off by a share change their cosine by up to twice that share.
    """
    own = [[float(value) for value in vector] for vector in expected]
    largest = 0.0
    for mine, served in zip(own, found or (), strict=False):
        if len(mine) != len(served) or not all(map(math.isfinite, served)):
            return math.inf, math.inf
        largest = max(largest, math.dist(mine, served) / (math.hypot(*mine) or 1.0))
    cosines = map(cosine_of, own, _turned(own))
    shifts = [abs(mine - score) / 2 for mine, score in zip(cosines, scores or (), strict=False)]
    # No comparison with NaN is true, so it would be lost in a maximum.
    shift = max(shifts, default=0.0) if all(map(math.isfinite, shifts)) else math.inf
    return largest, shift


def _turned(values: Sequence[Any]) -> list[Any]:
    """Return the values from the second one on, and the first one at the end."""
    return [*values[1:], *values[:1]]


def cosine_of(a: Sequence[float], b: Sequence[float]) -> float:
    """Return the cosine of two vectors; 0 if one has no length."""
    lengths = math.hypot(*a) * math.hypot(*b)
    return sum(x * y for x, y in zip(a, b, strict=True)) / lengths if lengths else 0.0


def _other_ways(
    recipe: Recipe, texts: Sequence[str], states_of: Callable[[str, bool], States], dense: Any
) -> Iterator[tuple[str, list[States], Callable[[Any], Any]]]:
    """Yield the wrong ways to make vectors: the words for each, the states, and the function."""
    ways: list[tuple[str, Callable[[Any], Any]]] = []
    for pooling in (recipe.pooling, *POOLINGS):
        for is_normalized in (recipe.is_normalized, not recipe.is_normalized):
            other = dataclasses.replace(recipe, pooling=pooling, is_normalized=is_normalized)
            ways.append((other.words, _vectors_by(other, dense)))
            if recipe.dense:
                bare = dataclasses.replace(other, dense=())
                ways.append((bare.words, _vectors_by(bare, lambda vector: vector)))
    for special in (True, False):
        states = [states_of(text, special) for text in texts]
        tokens = "" if special else ", without the special tokens"
        for words, change in ways:
            yield words + tokens, states, change


def _vectors_by(recipe: Recipe, dense: Any) -> Callable[[Any], Any]:
    return lambda states: vector_of(states, recipe, dense)


def proof_texts(count: Callable[[str], int], longest: int) -> list[str]:
    """Return the texts that fit, and a text of many tokens.

    Raises:
        ServerError: No text fits.
    """
    longest = min(longest, LONGEST_TOKENS)
    repeats = max(1, longest * 3 // (4 * count(SENTENCE)))
    texts = [text for text in (*TEXTS, SENTENCE * repeats) if count(text) <= longest]
    if not texts:
        raise ServerError(
            f"the server and the folder take {longest} tokens; every text of the proof is longer",
            hint="Raise serving.max_model_len, or max_seq_length in sentence_bert_config.json.",
        )
    return texts


def longest_prompt(client: OpenAI, endpoint: Endpoint) -> int:
    """Return the number of tokens that the server takes."""
    for entry in client.models.list().data:
        if entry.id == endpoint.model:
            return int(getattr(entry, "max_model_len", None) or LONGEST_TOKENS)
    raise ServerError(
        f"{endpoint.url}: does not serve {endpoint.model!r}",
        hint=f"Try: curl {endpoint.url}/models   (the names that it serves)",
    )


def _asking(
    client: OpenAI, endpoint: Endpoint
) -> tuple[
    Callable[[str], tuple[list[float], int]] | None, Callable[[tuple[str, str]], float] | None
]:
    """Return the function that asks for a text's vector, by the first route that the server has,
    and the function that asks for the score of two texts; None without a route.

    Raises:
        ServerError: The server has no such route.
    """

    def post(route: str, fields: dict[str, Any]) -> Any:
        body = {"model": endpoint.model, **fields}
        return client.post(route_url(endpoint, route), cast_to=object, body=body)

    def ask_at(route: str, text: str) -> tuple[list[float], int]:
        answer = post(route, {"input": text, "encoding_format": "float"})
        return read_answer(answer, route_url(endpoint, route))

    def score(texts: tuple[str, str]) -> float:
        answer = post(SCORE, {"queries": texts[0], "documents": [texts[1]]})
        try:
            (entry,) = answer["data"]
            return float(entry["score"])
        except (KeyError, TypeError, ValueError):
            raise no_answer("score", answer, route_url(endpoint, SCORE)) from None

    route = first_route(ROUTES, lambda one: ask_at(one, TEXTS[0]))
    has_score = first_route((SCORE,), lambda _: score((TEXTS[0], TEXTS[1]))) is not None
    if route is None and not has_score:
        names = " or ".join(f"/{one}" for one in (*ROUTES, SCORE))
        raise ServerError(
            f"{endpoint.url}: has no route {names}; expected a server of vectors",
            hint="Try: tuneline serve DIR --set 'serving.routes=[embeddings]'   (a server of text "
            "is proven with a reference artifact as --reference)",
        )
    return None if route is None else partial(ask_at, route), score if has_score else None


def route_url(endpoint: Endpoint, route: str) -> str:
    """Return the address of a route, which need not be below /v1."""
    return f"{endpoint.url.removesuffix('/v1')}/{route}"


def first_route(routes: Sequence[str], ask: Callable[[str], object]) -> str | None:
    """Return the first of some routes that the server has, or None."""
    import openai

    for route in routes:
        try:
            ask(route)
        except openai.NotFoundError:
            continue
        return route
    return None


def read_answer(answer: Any, url: str) -> tuple[list[float], int]:
    """Return the vector in an answer of any route, and the number of tokens."""
    try:
        (entry,) = answer["data"]
        values = entry["embedding" if "embedding" in entry else "data"]
        return [float(value) for value in values], int(answer["usage"]["prompt_tokens"])
    except (KeyError, TypeError, ValueError):
        raise no_answer("vector", answer, url) from None


def no_answer(what: str, answer: Any, url: str) -> ServerError:
    """Return the error of an answer without a vector or a score."""
    return ServerError(f"{url}: gives no {what}: {json.dumps(answer, default=str)[:200]}")

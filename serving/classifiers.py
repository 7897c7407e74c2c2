"""Does a server give the scores of the classifier in a folder? Through the network, by texts.

transformers computes the logits of the same texts in float32, and those of pairs of texts for a
cross-encoder. The server is asked twice: for the logits, and for what a client gets that asks for
nothing more. If the answers differ, other readings and other functions are tried, so that the
verdict can name the fault.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serving.config import ServedParityConfig
from serving.vectors import (
    LONGEST_TOKENS,
    MAX_DIFFERENCE,
    SENTENCE,
    TEXTS,
    ask_all,
    first_route,
    longest_prompt,
    no_answer,
    proof_texts,
    route_url,
)
from tuneline.core.artifact import Artifact, new_artifact, open_artifact
from tuneline.core.endpoint import Endpoint
from tuneline.core.errors import ServerError
from tuneline.core.openai_client import openai_client
from tuneline.models.classifier import (
    ACTIVATIONS,
    SLOPES,
    Classifier,
    Reading,
    Scored,
    load_classifier,
)
from tuneline.models.source import ModelSource

if TYPE_CHECKING:
    from openai import OpenAI

KIND = "score-parity"
SCORES_FILE = "scores.json"
TEXT_ROUTES, PAIR_ROUTE = ("classify", "pooling"), "score"


@dataclass(frozen=True)
class Served:
    """The answers of a server to a text or a pair."""

    num_tokens: int
    logits: list[float]
    outputs: list[float]
    """Its answer to a request without `use_activation`."""
    label: str | None = None


def prove_classifier(
    config: ServedParityConfig,
    model: ModelSource,
    endpoint: Endpoint,
    out: Path,
    *,
    dtype: str = "float32",
) -> Artifact:
    """Compare a server's scores with those of the classifier in a folder.

    Args:
        model: The model folder that the server is to serve.
        dtype: The number format that the server computes in: float32, float16 or bfloat16.

    Returns:
        An artifact of kind `score-parity` with `scores.json`; a failed verdict raises nothing.

    Raises:
        ArtifactError: transformers cannot load the folder, or its activation is not known.
        MissingError: The openai package is not installed.
        ServerError: The server cannot be reached, or gives no scores.
    """
    classifier = load_classifier(model.path)

    def count(*texts: str) -> int:
        return classifier.score(Reading(texts)).num_tokens

    with openai_client(endpoint, timeout_s=config.request_timeout_s) as client:
        longest = min(longest_prompt(client, endpoint), LONGEST_TOKENS)
        ask = functools.partial(_ask, client, endpoint)
        inputs: dict[str, list[tuple[str, ...]]] = {
            route: [(text,) for text in proof_texts(count, longest)]
            if route in TEXT_ROUTES
            else _pairs(classifier, longest)
            for route in _open_routes(client, endpoint, classifier)
        }
        found = {
            route: ask_all(functools.partial(ask, route), given, config.concurrency, f"/{route}")
            for route, given in inputs.items()
        }
        problems = []
        if PAIR_ROUTE in inputs:
            limit = MAX_DIFFERENCE[dtype]
            problems = _rerank_problems(client, endpoint, classifier, limit)
    report = compare_scores(classifier, inputs, found, MAX_DIFFERENCE[dtype], problems)
    settings = {"model": endpoint.model, "dtype": dtype, "concurrency": config.concurrency}
    with new_artifact(out, KIND, config=settings, inputs=[model.as_input("model")]) as draft:
        served = {route: [dataclasses.asdict(one) for one in found[route]] for route in found}
        text = json.dumps(
            {**report, "texts": inputs, "served": served}, indent=2, ensure_ascii=False
        )
        (draft.dir / SCORES_FILE).write_text(text + "\n", encoding="utf-8")
        draft.metrics.update(report)
    return open_artifact(out, kind=KIND)


def compare_scores(
    classifier: Classifier,
    inputs: dict[str, list[tuple[str, ...]]],
    found: dict[str, list[Served]],
    limit: float,
    problems: Sequence[str] = (),
) -> dict[str, Any]:
    """Return the figures of a server's scores, the verdict, and why it is FAIL.

    Args:
        inputs: The texts and the pairs that each route was asked for.
        found: The server's answers, in the same order.
        limit: The largest difference of logits, as a share of their root mean square.
        problems: Problems that are known already.
    """
    problems, largest, num_equal = list(problems), 0.0, 0
    for route, given in inputs.items():
        own = [classifier.score(Reading(texts)) for texts in given]
        served = found[route]
        shift, words = _problems_of_route(classifier, route, own, served, limit)
        if words and math.isfinite(shift):
            named = _named_fault(classifier, given, served, route, limit * _scale(own))
            words += [f"{named}; expected {_expected(classifier, route)}"] if named else []
        problems += [f"/{route}: {one}" for one in words]
        largest = max(largest, shift)
        num_equal += sum(a.num_tokens == b.num_tokens for a, b in zip(own, served, strict=True))
    return {
        "num_texts": sum(len(inputs.get(route, [])) for route in TEXT_ROUTES),
        "num_pairs": len(inputs.get(PAIR_ROUTE, [])),
        "num_equal_token_counts": num_equal,
        "num_labels": len(classifier.labels),
        "activation": _activation(classifier, next(iter(inputs))),
        "max_relative_difference": largest if math.isfinite(largest) else None,
        "limit": limit,
        "problems": problems,
        "verdict": "FAIL" if problems else "PASS",
    }


def _problems_of_route(
    classifier: Classifier,
    route: str,
    own: Sequence[Scored],
    served: Sequence[Served],
    limit: float,
) -> tuple[float, list[str]]:
    """Return the largest difference of logits, as a share of their scale, and what is wrong."""
    scale, name = _scale(own), _activation(classifier, route)
    outputs = [ACTIVATIONS[name](one.logits).tolist() for one in own]
    problems = []
    counts = [(one.num_tokens, other.num_tokens) for one, other in zip(own, served, strict=True)]
    if differ := [(mine, theirs) for mine, theirs in counts if mine != theirs]:
        mine, theirs = max(differ)
        problems.append(
            f"the server counts other tokens in {len(differ)} of {len(counts)} inputs: {theirs} in "
            f"place of {mine}"
        )
        if {theirs for _, theirs in differ} == {theirs} and theirs >= max(
            (mine for mine, count in counts if mine == count), default=0
        ):
            problems.append(f"the server cuts inputs to {theirs} tokens")
    shift = _largest([one.logits.tolist() for one in own], [one.logits for one in served]) / scale
    if not shift <= limit:
        problems.append(
            f"logits differ by up to {shift:.2g} of their root mean square; at most {limit:g} is "
            "allowed"
        )
    change = _largest(outputs, [one.outputs for one in served])
    if not change <= limit * scale * SLOPES[name]:
        problems.append(
            f"scores differ by up to {change:.2g}; at most {limit * scale * SLOPES[name]:.2g} is "
            "allowed"
        )
    labels = [classifier.labels[values.index(max(values))] for values in outputs]
    wrong = [
        (one.label, label)
        for one, label in zip(served, labels, strict=True)
        if one.label is not None and one.label != label
    ]
    if wrong and not problems:
        problems.append(f"the label of a text is {wrong[0][0]}; expected {wrong[0][1]}")
    return shift, problems


def _named_fault(
    classifier: Classifier,
    given: Sequence[tuple[str, ...]],
    served: Sequence[Served],
    route: str,
    limit: float,
) -> str | None:
    """Return which other reading and function give the server's scores, if any of them does."""
    own = _activation(classifier, route)
    for words, readings in _readings(given):
        logits = [classifier.score(one).logits for one in readings]
        for name in (own, *ACTIVATIONS):
            outputs = [ACTIVATIONS[name](one).tolist() for one in logits]
            if _largest(outputs, [one.outputs for one in served]) <= limit * SLOPES[name]:
                # The right scores: only the request for logits has another answer.
                return f"the server gives {_words(name)}{words}" if words or name != own else None
    return None


def _readings(given: Sequence[tuple[str, ...]]) -> Iterator[tuple[str, list[Reading]]]:
    """Yield the ways to read texts or pairs, with words for each; the right way comes first."""
    yield "", [Reading(texts) for texts in given]
    if len(given[0]) == 2:
        yield " of pairs in the other order", [Reading(texts[::-1]) for texts in given]
        yield (
            " of pairs with one token type for both texts",
            [Reading(texts, types=False) for texts in given],
        )
        yield " of both texts joined into one", [Reading(("".join(texts),)) for texts in given]
        yield (
            " of both texts joined by a space",
            [Reading((" ".join(texts),)) for texts in given],
        )
        yield " of the second text only", [Reading(texts[1:]) for texts in given]
    yield " of inputs without special tokens", [Reading(texts, special=False) for texts in given]


def _activation(classifier: Classifier, route: str) -> str:
    return classifier.pair_activation if route == PAIR_ROUTE else classifier.activation


def _words(activation: str) -> str:
    return activation if activation == "logits" else f"the {activation} of the logits"


def _expected(classifier: Classifier, route: str) -> str:
    return f"{_words(_activation(classifier, route))} of the input as transformers reads it"


def _scale(own: Sequence[Scored]) -> float:
    """Return the root mean square of all logits."""
    values = [value for one in own for value in one.logits.tolist()]
    return math.sqrt(sum(value * value for value in values) / len(values)) or 1.0


def _largest(expected: Sequence[Sequence[float]], found: Sequence[Sequence[float]]) -> float:
    """Return the largest difference of two values; infinite if the numbers of labels differ."""
    worst = 0.0
    for own, served in zip(expected, found, strict=True):
        if len(own) != len(served) or not all(map(math.isfinite, served)):
            return math.inf
        worst = max(worst, *(abs(a - b) for a, b in zip(own, served, strict=True)))
    return worst


def _pairs(classifier: Classifier, longest: int) -> list[tuple[str, ...]]:
    """Return the pairs that fit, one of them as long as the server allows.

    Raises:
        ServerError: No pair fits.
    """

    def count(*texts: str) -> int:
        return classifier.score(Reading(texts)).num_tokens

    repeats = max(1, longest * 3 // (4 * count(TEXTS[1], SENTENCE)))
    pairs = [*zip(TEXTS, [*TEXTS[1:], TEXTS[0]], strict=True), (TEXTS[1], SENTENCE * repeats)]
    fitting = [pair for pair in pairs if count(*pair) <= longest]
    if not fitting:
        raise ServerError(
            f"the server and the folder take {longest} tokens; every pair of the proof is longer",
            hint="Raise serving.max_model_len.",
        )
    return list(fitting)


def _open_routes(client: OpenAI, endpoint: Endpoint, classifier: Classifier) -> list[str]:
    """Return a route for texts and the route for pairs, of those that the server has.

    Raises:
        ServerError: The server has none of them.
    """

    def ask(route: str) -> object:
        return _ask(client, endpoint, route, TEXTS[:2] if route == PAIR_ROUTE else TEXTS[:1])

    pairs = (PAIR_ROUTE,) if len(classifier.labels) == 1 else ()
    found = [first_route(TEXT_ROUTES, ask), first_route(pairs, ask)]
    routes = [route for route in found if route is not None]
    if not routes:
        shown = " or ".join(f"/{route}" for route in (*TEXT_ROUTES, *pairs))
        raise ServerError(
            f"{endpoint.url}: has no route {shown}; expected a server of a classifier",
            hint="Try: tuneline serve DIR --set 'serving.routes=[classify]'",
        )
    return routes


def _ask(client: OpenAI, endpoint: Endpoint, route: str, texts: tuple[str, ...]) -> Served:
    """Return what the server gives to a text or a pair: its logits, and its usual answer."""
    url = route_url(endpoint, route)
    body: dict[str, Any] = {"model": endpoint.model}
    if route == PAIR_ROUTE:
        body |= {"queries": texts[0], "documents": [texts[1]]}
    else:
        body |= {"input": texts[0]}
    plain, usual = (
        _entry(client.post(url, cast_to=object, body={**body, **more}), url)
        for more in ({"use_activation": False}, {})
    )
    return Served(plain[1], plain[0], usual[0], usual[2])


def _entry(answer: Any, url: str) -> tuple[list[float], int, str | None]:
    """Return the values in an answer of any route, the number of tokens, and the label."""
    try:
        (entry,) = answer["data"]
        values = next(entry[key] for key in ("probs", "score", "data") if key in entry)
        listed = values if isinstance(values, list) else [values]
        tokens = int(answer["usage"]["prompt_tokens"])
        return [float(value) for value in listed], tokens, entry.get("label")
    except (KeyError, TypeError, ValueError, StopIteration, AttributeError):
        raise no_answer("score", answer, url) from None


def _rerank_problems(
    client: OpenAI, endpoint: Endpoint, classifier: Classifier, limit: float
) -> list[str]:
    """Return what is wrong with the answer of /rerank; nothing if the server has no such route."""
    import openai

    query, documents = TEXTS[1], list(TEXTS[2:6])
    url = route_url(endpoint, "rerank")
    body = {"model": endpoint.model, "query": query, "documents": documents}
    try:
        answer: Any = client.post(url, cast_to=object, body=body)
    except openai.NotFoundError:
        return []
    own = [classifier.score(Reading((query, document))) for document in documents]
    scores = [ACTIVATIONS[classifier.pair_activation](one.logits).tolist() for one in own]
    try:
        given = [(int(row["index"]), float(row["relevance_score"])) for row in answer["results"]]
        served = [[score] for _, score in sorted(given)]
    except (KeyError, TypeError, ValueError):
        raise no_answer("ranks", answer, url) from None
    problems = []
    most = limit * _scale(own) * SLOPES[classifier.pair_activation]
    if sorted(index for index, _ in given) != list(range(len(documents))):
        return ["/rerank: the documents of the answer are not those of the request"]
    if not (change := _largest(scores, served)) <= most:
        problems.append(f"/rerank: scores differ by up to {change:.2g}; at most {most:.2g}")
    if sorted((score for _, score in given), reverse=True) != [score for _, score in given]:
        problems.append("/rerank: the best document is not the first")
    return problems

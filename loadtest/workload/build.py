"""From the workload section to request bodies in the order they are sent."""

from __future__ import annotations

import json
import secrets
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from loadtest.client.plan import SessionPlan
from loadtest.config import LoadTestConfig
from loadtest.routes.table import ROUTES, Route
from loadtest.workload import mooncake, prompts, recorded, sharegpt, synthetic
from loadtest.workload.checks import Checks, check_bodies, with_checks
from loadtest.workload.content import FIRST_TOKEN_ID, Content, Prompt, Source, Wanted
from loadtest.workload.images import check_total, count_images, with_images, with_text_before
from loadtest.workload.lengths import draw_lengths
from tuneline.core.artifact import canonical_digest
from tuneline.core.errors import ConfigError
from tuneline.core.messages import ChatPrompt, Messages
from tuneline.core.server_words import text_of

SOURCES: dict[str, Source] = {
    "prompts": prompts.read,
    "synthetic": synthetic.read,
    "sharegpt": sharegpt.read,
    "mooncake": mooncake.read,
    "recorded": recorded.read,
}

MAX_UNIQUE_PROMPTS = 50_000


@dataclass(frozen=True)
class Workload:
    """Requests in the order they are sent; request i has body i modulo their number."""

    path: str
    """Path below the endpoint's URL."""
    bodies: list[str]
    output_tokens: list[int]
    """The `max_tokens` of each body."""
    models: list[str]
    """The served name that each body asks."""
    digest: str
    """Digest of the contents and their order, without model names, nonces and permutation. Runs
    with the same digest ask the same."""
    trace_s: list[float] | None = field(default=None)
    sessions: SessionPlan | None = None
    """With sessions, `bodies` has what each turn adds, and the lists next to it have an entry per
    turn; `trace_s` has the begin of each conversation."""
    body_of: list[int] | None = None
    """The body of each arrival, if it is not its number."""
    num_unchecked: int | None = None
    """The bodies from this one on are the reference's prompts; None without them."""
    images: list[tuple[int, int]] = field(default_factory=list)
    """Of each body, the number of its images and the bytes of their URLs; with sessions, those of
    the history count. Empty without images."""
    left_out: dict[str, int] = field(default_factory=dict)
    """Why entries of the file are not sent, and how many of each reason."""


def build_workload(
    config: LoadTestConfig,
    model: str,
    given: Sequence[ChatPrompt],
    *,
    seed: int,
    num_requests: int | None,
    permutation_seed: int | None = None,
    is_shard: bool = False,
    checks: Checks | None = None,
) -> Workload:
    """Return the request bodies of a scenario.

    A permutation exchanges the token ids. Requests keep the prefixes that they share, and a prefix
    cache that an earlier run filled with another permutation answers none of them.

    Args:
        config: For `workload`, `max_tokens`, `ignore_eos` and `extra_body`.
        model: The served name, if `workload.models` gives no mix.
        given: The prompts of `source: prompts`.
        seed: Seed of the order, the random lengths and the tokens.
        num_requests: How many requests the scenario sends, if that is known.
        permutation_seed: Seed of the permutation, for runs that must send the same ids. Without it,
            every run has a permutation of its own.
        is_shard: Other pods, which know no common seed, send parts of the same test: no
            permutation.
        checks: Prompts of the reference to mix in.

    Raises:
        ConfigError: There are no prompts.
        DataError: A workload file cannot be used.
    """
    workload = config.workload
    rng = np.random.default_rng([seed, 1])
    wanted = Wanted(workload, given, rng, num_requests)
    content = SOURCES[workload.source](wanted)
    if not content.prompts:
        raise ConfigError("the load test has no prompts; expected at least one")
    require_texts(route_of(config, True), workload.route, content.prompts)
    found = _ordered(content, workload.multi_turn, rng)
    count = len(found)
    if workload.unique_prompts or workload.models or workload.output_tokens:
        # These differ from request to request, so each request needs a body of its own.
        count = max(count, min(num_requests or MAX_UNIQUE_PROMPTS, MAX_UNIQUE_PROMPTS))
    drawn = workload.output_tokens
    lengths = None if drawn is None else draw_lengths(drawn, rng, count)
    names = draw_names(workload.models, model, rng, count)
    # Over 60 lines: the draws of a request follow one another, and the workload names its fields.
    id_of = permutation(workload.max_token_id, permutation_seed, is_shard)
    run_id = uuid.uuid4().hex[:12]
    # Like other parts of a prompt, images repeat from run to run unless prompts are unique.
    images_seed = None if workload.unique_prompts else seed
    bodies, tokens, contents = [], [], []
    images: list[tuple[int, int]] = []
    num_image_bytes = 0
    for number in range(count):
        prompt = found[number % len(found)]
        max_tokens = lengths[number] if lengths else prompt.max_tokens or config.max_tokens
        contents.append([prompt.content, max_tokens, *([prompt.tools] if prompt.tools else [])])
        sent = prompt.content
        if workload.unique_prompts:
            sent = with_nonce(sent, f"{run_id}-{number}", workload.max_token_id)
        if isinstance(sent[0], dict):
            if workload.images is not None:
                sent = with_images(sent, workload.images, images_seed)
            images.append(count_images(sent))
            num_image_bytes += images[-1][1]
            check_total(num_image_bytes)
        else:
            sent = [int(one) for one in id_of[sent]]
        bodies.append(_body(config, names[number], sent, max_tokens, prompt.tools))
        tokens.append(max_tokens)
    is_chat = isinstance(found[0].content[0], dict)
    body_of = num_unchecked = None
    if checks is not None:
        require_chat(is_chat and workload.route == "chat")
        num_unchecked = len(bodies)
        body_of = with_checks(list(range(count)), count, checks, num_requests, seed)
        bodies += check_bodies(checks, model)
        tokens += [checks.settings["max_new_tokens"]] * len(checks.expected)
        names += [model] * len(checks.expected)
        images += [(0, 0)] * len(checks.expected)
    return Workload(
        path=route_of(config, is_chat).path,
        bodies=bodies,
        output_tokens=tokens,
        models=names,
        digest=canonical_digest(
            [
                contents,
                config.extra_body,
                config.ignore_eos,
                *([body_of] if body_of else []),
                *([] if route_of(config, is_chat).body is None else [workload.route]),
                *([workload.images.model_dump()] if workload.images else []),
            ]
        ),
        trace_s=content.trace_s,
        body_of=body_of,
        num_unchecked=num_unchecked,
        images=images,
        left_out=dict(wanted.left_out.most_common()),
    )


def require_texts(route: Route, name: str, prompts: Sequence[Prompt]) -> None:
    """Check that each prompt has as many texts as a route for scores compares.

    Raises:
        ConfigError: A prompt has fewer.
    """
    short = [one for one in prompts if len(one.content) < route.least_texts]
    if short:
        raise ConfigError(
            f"route: {name} compares a query with documents; {len(short)} of {len(prompts)} "
            "prompts have one text",
            hint='Give --prompts a file of lines such as {"query": "TEXT", "documents": ["TEXT"]}',
        )


def require_chat(is_chat: bool) -> None:
    """Check that the reference's prompts, which are chats, fit the workload's route.

    Raises:
        ConfigError: The workload sends token ids through `/v1/completions`.
    """
    if not is_chat:
        raise ConfigError(
            "loadtest.answers needs a workload of chats; this source sends token ids",
            hint="Try: --set loadtest.answers=null",
        )


def _ordered(content: Content, multi_turn: bool, rng: np.random.Generator) -> list[Prompt]:
    """Return the prompts in random order; a trace and the turns of a conversation keep theirs."""
    if content.trace_s is not None or multi_turn:
        return content.prompts
    return [content.prompts[place] for place in rng.permutation(len(content.prompts))]


def draw_names(
    mix: dict[str, float] | None, model: str, rng: np.random.Generator, count: int
) -> list[str]:
    """Return the served name that each request asks."""
    if not mix:
        return [model] * count
    weights = np.array(list(mix.values()))
    return [str(name) for name in rng.choice(list(mix), count, p=weights / weights.sum())]


def permutation(
    max_token_id: int, seed: int | None, is_shard: bool
) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return the token id that replaces each token id."""
    id_of = np.arange(max_token_id)
    if not is_shard:
        id_of[FIRST_TOKEN_ID:] = np.random.default_rng(seed).permutation(id_of[FIRST_TOKEN_ID:])
    return id_of


def _body(
    config: LoadTestConfig,
    model: str,
    content: Messages | list[int],
    max_tokens: int,
    tools: Sequence[dict[str, Any]],
) -> str:
    is_chat = isinstance(content[0], dict)
    route = route_of(config, is_chat)
    if route.body is not None:
        extra = {key: value for key, value in config.extra_body.items() if key != "temperature"}
        keys = pooled_keys(route, content)
        return json.dumps({"model": model, **keys, **extra}, ensure_ascii=False)
    said = entries_of(route, content) if is_chat else content
    system = system_of(route, content) if is_chat else ""
    options = options_of(config, route, max_tokens, system, tools)
    return json.dumps({"model": model, route.key: said, **options}, ensure_ascii=False)


def pooled_keys(route: Route, content: Messages | list[int]) -> dict[str, Any]:
    """Return the keys of a request for vectors or scores that hold what was said.

    A conversation that ends with an answer goes as it is to a server that renders it with the
    model's chat template. Other messages are texts.
    """
    assert route.body is not None  # noqa: S101 (the caller has checked)
    last = content[-1]
    if not isinstance(last, dict):
        return route.body(content)
    if route.scores_chats and last["role"] == "assistant":
        return {route.key: entries_of(route, content)}
    return route.body([text_of(one.get("content")) for one in content])  # type: ignore[union-attr]


def route_of(config: LoadTestConfig, is_chat: bool) -> Route:
    """Return the route that a workload asks; token ids go to `/v1/completions`, or to a route for
    vectors and scores."""
    route = ROUTES[config.workload.route]
    return route if is_chat or not route.events.is_stream else ROUTES["completions"]


def entries_of(route: Route, messages: Sequence[Any]) -> list[dict[str, Any]]:
    """Return messages as the entries of a request."""
    return [entry for message in messages for entry in route.items(message)]


def system_of(route: Route, messages: Sequence[Any]) -> str:
    """Return the system's messages, if the route has a key of its own for them."""
    if not route.has_system:
        return ""
    asked = [one for one in messages if one["role"] in ("system", "developer")]
    texts = [text_of(one.get("content")) for one in asked]
    return "\n\n".join(text for text in texts if text)


def options_of(
    config: LoadTestConfig,
    route: Route,
    max_tokens: int,
    system: str,
    tools: Sequence[dict[str, Any]],
) -> dict[str, Any]:
    """Return the keys of a request next to its model and its messages.

    Args:
        tools: Those of the prompt; `workload.tools` takes their place.
    """
    common = config.workload.tools
    options = route.options(max_tokens, tools if common is None else common, system)
    if tools and common is None:
        options["tool_choice"] = route.no_call
    options |= config.extra_body
    if config.ignore_eos:
        exact = {"ignore_eos": True, "min_tokens": max_tokens}
        options |= {key: exact[key] for key in route.exact}
    return options


def with_nonce(
    content: Messages | list[int], nonce: str, max_token_id: int
) -> Messages | list[int]:
    """Return content that differs from its first token on, also from run to run. Token ids keep
    their number."""
    first = content[0]
    if isinstance(first, dict):
        return [with_text_before(first, f"[{nonce}]"), *content[1:]]
    num = min(8, len(content))
    ids = [FIRST_TOKEN_ID + secrets.randbelow(max_token_id - FIRST_TOKEN_ID) for _ in range(num)]
    return [*ids, *content[num:]]

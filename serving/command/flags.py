"""The flags of `vllm serve`, each with the reason that it is there."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from serving.config import ServingConfig, flag_name

MIDDLEWARE = "serving.middleware.TunelineMiddleware"

DEFAULT_KWARGS = "default_chat_template_kwargs"
GENERATION = "override_generation_config"

# Flags that have no `--no-` form; `false` leaves them out.
FLAGS_WITHOUT_NEGATION = frozenset({
    "aggregate-engine-logging", "data-parallel-multi-port-external-lb", "disable-log-stats",
    "grpc", "headless",
})  # fmt: skip

# Flags whose value is one JSON text; a list of words is refused by vLLM's parser.
JSON_FLAGS = frozenset({"allowed-headers", "allowed-methods", "allowed-origins"})

# vLLM's default lets the first structured request choose the grammar backend for all clients, and
# allows white space without end between fields, which a small model may never leave.
STRUCTURED_OUTPUTS = {"backend": "xgrammar", "disable_any_whitespace": True}

KEYS_OF_FLAGS = (
    "dtype", "max_model_len", "max_num_seqs", "max_num_batched_tokens", "gpu_memory_utilization",
    "tensor_parallel_size",
)  # fmt: skip


@dataclass(frozen=True)
class Flag:
    """A flag with its values, and why the server gets it."""

    words: tuple[str, ...]
    reason: str


def flatten(flags: Sequence[Flag]) -> list[str]:
    """Return the words of flags as arguments of a command."""
    return [word for flag in flags for word in flag.words]


def configured_flags(
    config: ServingConfig,
    template_defaults: Mapping[str, Any] = MappingProxyType({}),
    *,
    keeps_float32: bool = False,
) -> list[Flag]:
    """Return the flags that follow from `serving:`, and those that Tuneline always sets.

    Args:
        template_defaults: The variables that the chat template sets itself. The reasoning parsers
            of vLLM read the variables of a request and never the template.
        keeps_float32: Whether the weights are float32, which `dtype: auto` then means too. vLLM's
            own `auto` rounds such weights to 16 bits.
    """
    flags = [
        Flag(words, source(config, name))
        for name in KEYS_OF_FLAGS
        if (words := flag_words(name, getattr(config, name)))
    ]
    if keeps_float32 and config.dtype == "auto":
        flags[0] = Flag(("--dtype=float32",), "serving.dtype is auto, and the weights are float32")
    if config.enforce_eager:
        flags.append(Flag(("--enforce-eager",), "serving.enforce_eager"))
    flags += [
        Flag(
            ("--shutdown-timeout", str(config.shutdown_timeout)),
            source(config, "shutdown_timeout"),
        ),
        # By itself vLLM chooses embeddings for some folders, and then no open route answers.
        Flag(("--runner", "pooling" if config.pools else "generate"), source(config, "routes")),
        Flag(("--disable-fastapi-docs",), "Tuneline: only the routes of the API are open"),
        Flag(("--middleware", MIDDLEWARE), "Tuneline: keys, limits, routes, drain, metrics"),
        Flag(("--disable-uvicorn-access-log",), "Tuneline: it writes the access log itself"),
    ]
    given = config.given_args
    if template_defaults and DEFAULT_KWARGS not in given:
        reason = "the chat template: variables that it sets itself"
        flags.append(Flag(flag_words(DEFAULT_KWARGS, dict(template_defaults)), reason))
    if "structured_outputs_config" not in given and not config.pools:
        reason = "Tuneline: answers under a JSON schema end"
        words = ("--structured-outputs-config", json.dumps(STRUCTURED_OUTPUTS))
        flags.append(Flag(words, reason))
    most = None if config.pools else config.limits.max_tokens
    if most is not None:
        flags.append(_limited_generation(config, most))
    flags += [
        Flag(words, f"serving.extra_args.{name}")
        for name, value in config.extra_args.items()
        if (most is None or flag_name(name).partition(".")[0] != GENERATION)
        and (words := flag_words(name, value))
    ]
    return flags


def _limited_generation(config: ServingConfig, most: int) -> Flag:
    """Return the flag with the generation settings of `extra_args` and the limit of an answer.

    Without the limit there, a request that gives no number runs to the end of the context.
    """
    whole: Any = {}
    by_key: dict[str, Any] = {}
    for name, value in config.extra_args.items():
        flag, _, key = flag_name(name).partition(".")
        if flag == GENERATION and key:
            by_key[key] = value
        elif flag == GENERATION:
            whole = json.loads(value) if isinstance(value, str) else value or {}
    overrides = by_key or whole  # vLLM's parser takes the flag's keys in place of the flag
    limit = min(most, overrides.get("max_new_tokens") or most)
    words = flag_words(GENERATION, {**overrides, "max_new_tokens": limit})
    key = f", serving.extra_args.{GENERATION}" if overrides else ""
    return Flag(words, f"serving.limits.max_tokens: for requests that give no number{key}")


def flag_words(name: str, value: Any) -> tuple[str, ...]:
    """Return a flag as words of a command; nothing for a value that leaves the flag out."""
    flag = name.removeprefix("--").replace("_", "-")
    if value is None:
        return ()
    if value is True:
        return (f"--{flag}",)
    if value is False:
        return () if flag in FLAGS_WITHOUT_NEGATION else (f"--no-{flag}",)
    if isinstance(value, dict) or (flag in JSON_FLAGS and isinstance(value, list)):
        return (f"--{flag}", json.dumps(value))
    if isinstance(value, list):
        return (f"--{flag}", *(_text(item) for item in value))
    # Joined, so that a value that begins with a hyphen is not taken for a flag.
    return (f"--{flag}={_text(value)}",)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def source(config: ServingConfig, name: str) -> str:
    """Return the key of run.yaml that a value comes from."""
    is_default = getattr(config, name) == ServingConfig.model_fields[name].default
    return f"serving.{name}{', its default' if is_default else ''}"

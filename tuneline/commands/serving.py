"""The commands that serve a model and talk to it."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tuneline.commands.option_values import (
    endpoint_of,
    given,
    open_run,
    refuse,
    required,
    section_of,
)
from tuneline.commands.options import AsJson, KeyEnv, ModelName, Overrides, RunsDir, Url
from tuneline.commands.printing import emit
from tuneline.core.errors import ConfigError
from tuneline.core.progress import logger
from tuneline.pipeline import DEFAULT_RUNS

if TYPE_CHECKING:
    from serving import Answer, Flag, RunningServer
    from serving.config import ServingConfig
    from tuneline.core.artifact import Artifact
    from tuneline.core.endpoint import Endpoint
    from tuneline.models.source import ModelSource

KEYS = "/new forgets the conversation, Ctrl-C stops an answer, /exit ends"


@dataclass(frozen=True)
class _Target:
    """The model that is served, its adapter, and the check of their files."""

    model: ModelSource
    adapter: Artifact | None = None
    check: Callable[[], None] | None = None


def serve(
    target: Annotated[
        Path, typer.Argument(metavar="RUN.yaml|DIR", help="A run, or any model folder.")
    ],
    overrides: Overrides = None,
    runs_dir: RunsDir = DEFAULT_RUNS,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on.")] = None,
    show: Annotated[
        bool, typer.Option("--print", help="Print vLLM's flags, each with its reason, and exit.")
    ] = False,
    systemd: Annotated[
        bool, typer.Option("--systemd", help="Print a unit of systemd for this command, and exit.")
    ] = False,
    bake: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Start once, keep the compiled kernels in DIR, and exit."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Serve a run's model, or any folder, with vLLM."""
    from serving import answers_chats, bake_kernels, explain_server, serve_model

    starts = not (show or systemd)
    config, what, name = _to_serve(target, overrides, runs_dir, host, port, starts=starts)
    model, adapter = what.model, what.adapter
    if systemd:
        refuse("with --systemd", {"--bake": bake, "--print": show or None})
        words = _words(target, overrides, runs_dir, host, port)
        _print_unit(name, words, config.shutdown_timeout, as_json)
        return
    if show:
        refuse("with --print", {"--bake": bake})
        flags = explain_server(config, model, name=name, adapter=adapter)
        _print_flags(flags, as_json)
        return
    log_path = runs_dir / name / "serve.log"
    if bake is not None:
        baked = bake_kernels(
            config, model, name=name, adapter=adapter, log_path=log_path, out=bake,
            check=what.check,
        )  # fmt: skip
        _print_baked(bake, baked, target, as_json)
        return
    chats = answers_chats(config, model, adapter)

    def on_ready(server: RunningServer) -> None:
        pooling = config.routes if config.pools else []
        _print_ready(server, pooling, model.path, chats, as_json)

    code = serve_model(
        config, model, name=name, adapter=adapter, log_path=log_path, on_ready=on_ready,
        check=what.check,
    )  # fmt: skip
    raise typer.Exit(code)


def _print_ready(
    server: RunningServer, pooling: list[str], folder: Path, chats: bool, as_json: bool
) -> None:
    """Print how a server that is ready is reached."""
    endpoint = server.endpoint
    document = {
        "url": endpoint.url, "model": endpoint.model, "log": str(server.log_path),
        "ready_s": server.ready_s, "start_s": server.start_s,
        "compile_cache": "warm" if server.cache.is_warm else "empty",
    }  # fmt: skip
    lines = [f"ready: {endpoint.url}  model {endpoint.model}"]
    if chats:
        lines.append(f"  tuneline chat --url {endpoint.url} --model {shlex.quote(endpoint.model)}")
    elif pooling:
        lines.append(f"  for {', '.join(pooling)}; it writes no text")
        words = ["--reference", str(folder), "--candidate", endpoint.url, "--model", endpoint.model]
        lines.append(f"  {shlex.join(['tuneline', 'prove', *words])}")
    else:
        lines.append("  for /v1/completions only: the model has no chat template")
    emit({**document, "answers_chats": chats}, lines, as_json)


def _print_baked(folder: Path, baked: Artifact, target: Path, as_json: bool) -> None:
    """Print where a compile cache is, and how a server uses it."""
    size_mib = baked.manifest.metrics["size_bytes"] / 2**20
    emit(
        {"compile_cache": str(folder), "digest": baked.digest},
        [
            f"compile cache: {folder} ({len(baked.manifest.files)} files, {size_mib:.1f} MiB)",
            f"  tuneline serve {shlex.quote(str(target))} --set serving.compile_cache="
            f"{shlex.quote(str(folder.resolve()))}",
        ],
        as_json,
    )


def _words(
    target: Path, overrides: list[str] | None, runs_dir: Path, host: str | None, port: int | None
) -> list[str]:
    """Return the command that serves, with absolute paths."""
    script = Path(sys.executable).with_name("tuneline")
    program = [str(script)] if script.is_file() else [sys.executable, "-m", "tuneline"]
    options = {"--host": host, "--port": port, "--runs-dir": runs_dir.absolute()}
    given = [str(word) for pair in options.items() if pair[1] is not None for word in pair]
    sets = [word for override in overrides or [] for word in ("--set", override)]
    return [*program, "serve", str(target.absolute()), *given, *sets]


def _print_unit(name: str, words: list[str], shutdown_timeout_s: int, as_json: bool) -> None:
    from serving import systemd_unit

    unit = systemd_unit(name, words, Path.cwd(), shutdown_timeout_s, is_root=os.geteuid() == 0)
    emit({"unit": unit}, [unit.rstrip()], as_json)


def _print_flags(flags: list[Flag], as_json: bool) -> None:
    """Print a server's variables and flags, one a line."""
    rows = [(shlex.join(flag.words), flag.reason) for flag in flags]
    width = min(max(len(words) for words, _ in rows), 60)
    variables = sum("=" in words and not words.startswith("-") for words, _ in rows[:1])
    lines = [f"{words:{width}}  # {reason}" for words, reason in rows]
    emit(
        [{"words": list(flag.words), "reason": flag.reason} for flag in flags],
        [*lines[:variables], "vllm serve", *(f"  {line}" for line in lines[variables:])],
        as_json,
    )


def chat(
    target: Annotated[
        Path | None, typer.Argument(metavar="RUN.yaml|DIR", help="A run, or a model folder.")
    ] = None,
    url: Url = None,
    model: ModelName = None,
    api_key_env: KeyEnv = None,
    system: Annotated[str | None, typer.Option(help="A system message.")] = None,
    message: Annotated[str | None, typer.Option("--message", help="Ask once and exit.")] = None,
    compare: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="A second model that answers side by side: `base` of a run, or a name at --url.",
        ),
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(help="0 is greedy; by default the server's own.")
    ] = None,
    artifact: Annotated[
        Path | None, typer.Option(metavar="DIR", help="An ONNX artifact, run here and greedily.")
    ] = None,
    overrides: Overrides = None,
    runs_dir: RunsDir = DEFAULT_RUNS,
    as_json: AsJson = False,
) -> None:
    """Talk to a run's model, to any endpoint, or to an ONNX artifact."""
    if as_json and message is None:
        raise ConfigError("--json needs --message", hint='Try: --message "Hello" --json')
    from serving import answers

    options = {} if temperature is None else {"temperature": temperature}
    of_a_server = {"--url": url, "--model": model, "--api-key-env": api_key_env}
    if artifact is not None:
        of_a_run = {"RUN.yaml": target, "--temperature": temperature, "--set": overrides}
        refuse("with --artifact", {**of_a_run, "--compare": compare, **of_a_server})
        from export import open_chat

        _talk(open_chat(artifact), {"artifact": str(artifact)}, system, message, as_json)
        return
    if url is not None:
        refuse("with --url", {"RUN.yaml": target, "--set": overrides})
        endpoint = endpoint_of(url, model, api_key_env)
        if compare is not None:
            _talk_to_both(endpoint, compare, options, system, message, as_json)
            return
        _talk(answers(endpoint, options), {"model": endpoint.model}, system, message, as_json)
        return
    where = required(target, "RUN.yaml, a model folder, or --url")
    refuse("without --url", of_a_server)
    if compare is not None:
        # One server holds both: the base model, and the adapter on it.
        overrides = [*(overrides or []), *_to_compare(where, compare)]
    with _chat_server(where, overrides, runs_dir) as (endpoint, name):
        if compare is not None:
            _talk_to_both(endpoint, f"{name}-base", options, system, message, as_json)
            return
        _talk(answers(endpoint, options), {"model": endpoint.model}, system, message, as_json)


@contextlib.contextmanager
def _chat_server(
    target: Path, overrides: list[str] | None, runs_dir: Path
) -> Iterator[tuple[Endpoint, str]]:
    """Serve a run's model or a model folder for a chat; give its endpoint and the run's name."""
    from serving import answers_chats, running_server

    config, what, name = _to_serve(target, overrides, runs_dir, None, None)
    source, adapter = what.model, what.adapter
    if config.pools:
        raise ConfigError("serving.routes has vectors or scores; a chat needs a server of text")
    if not answers_chats(config, source, adapter):
        raise ConfigError(
            f"{source.path}: the model has no chat template, so it cannot chat",
            hint="Try: --set serving.extra_args.chat_template=FILE.jinja",
        )
    # The adapters of a run belong to its live server, which has their folder locked.
    config = config.model_copy(update={"adapters": None})
    log_path = runs_dir / name / "chat.log"
    with running_server(
        config, source, name=name, adapter=adapter, log_path=log_path, check=what.check
    ) as server:
        yield server.endpoint, name


def _to_compare(target: Path, compare: str) -> list[str]:
    """Return the overrides with which a run's server holds the base next to the tuned model."""
    if target.is_dir():
        raise ConfigError(
            f"--compare {compare}: a model folder holds a single model",
            hint="Try: tuneline chat RUN.yaml --compare base",
        )
    if compare != "base":
        raise ConfigError(
            f"--compare {compare}: a run has its base model to compare with; expected base",
            hint=f"Try: --compare base, or --url URL --model NAME --compare {shlex.quote(compare)}",
        )
    return ["serving.mode=adapter"]


def _talk_to_both(
    endpoint: Endpoint,
    other: str,
    options: dict[str, Any],
    system: str | None,
    message: str | None,
    as_json: bool,
) -> None:
    """Ask both models of a server one question, or hold a conversation with each."""
    from dataclasses import replace

    from rich.console import Console

    from serving import answers, ask_each, converse_with_each

    if other == endpoint.model:
        raise ConfigError(
            f"--compare {other}: this model answers already; expected another model's name"
        )
    answer_to = {
        name: answers(replace(endpoint, model=name), options) for name in (other, endpoint.model)
    }
    console = Console()
    if message is None:
        logger.info(KEYS)
        # Here Ctrl-C ends an answer, not the program.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        converse_with_each(answer_to, system, console=console)
        return
    beginning = [{"role": "system", "content": system}] if system else []
    messages = [*beginning, {"role": "user", "content": message}]
    found = ask_each(
        answer_to, dict.fromkeys(answer_to, messages), console=None if as_json else console
    )
    if as_json:
        emit({"answers": found}, [], as_json)


def _to_serve(
    target: Path,
    overrides: list[str] | None,
    runs_dir: Path,
    host: str | None,
    port: int | None,
    *,
    starts: bool = True,
) -> tuple[Any, _Target, str]:
    """Return configuration, model and name to serve, from a run or from a model folder.

    Args:
        starts: Whether the server starts now; a folder that does not fit into memory is then
            refused before its bytes are read for the digest.
    """
    from serving import require_memory
    from serving.config import ServingConfig
    from tuneline.core.config import validate_config
    from tuneline.models.source import require_model_folder, resolve_model
    from tuneline.pipeline.finished_run import check_served, served_by_run
    from tuneline.pipeline.server import serving_config

    chosen: dict[str, Any] = given({"host": host, "port": port})
    if target.is_dir():
        section = section_of(overrides, "serving", "a model folder", "max_model_len=4096")
        values = {**section, **chosen}
        config = validate_config(ServingConfig, values, "tuneline serve")
        require_model_folder(target)
        if starts:
            _require_length(config, target)
            require_memory(config, target, is_start=True)
        return config, _Target(resolve_model(str(target))), target.resolve().name
    if str(target).startswith(("http:/", "https:/")):
        url = str(target).replace(":/", "://", 1)  # a Path has joined the slashes
        raise ConfigError(
            f"{url}: is a URL; expected a run.yaml or a model folder",
            hint=f"Try: tuneline chat --url {shlex.quote(url)}",
        )
    if not target.exists() and target.suffix not in (".yaml", ".yml"):
        raise ConfigError(
            f"{target}: no such file or folder; expected a run.yaml or a model folder",
            hint=f"A model of the Hub is downloaded first: hf download {shlex.quote(str(target))} "
            f"--local-dir {shlex.quote(target.name)}",
        )
    run = open_run(target, overrides, runs_dir)
    served = served_by_run(run)
    values = {**serving_config(run).model_dump(), **chosen}
    config = validate_config(ServingConfig, values, "tuneline serve")
    if starts:
        _require_length(config, served.model.path)
    check = partial(check_served, served)
    return config, _Target(served.model, served.adapter, check), run.config.name


def _require_length(config: ServingConfig, folder: Path) -> None:
    """Refuse a `max_model_len` that the model does not take before vLLM loads, in half a minute."""
    from serving import own_length
    from tuneline.pipeline.lengths import require_max_model_len

    wanted, own = config.max_model_len, own_length(folder)
    # Only a length beyond the one in config.json is worth the import of transformers.
    changes = "hf_overrides" in config.given_args
    if wanted is not None and not changes and (own is None or wanted > own):
        require_max_model_len(wanted, folder, f"model {folder.name}")


def _talk(
    answer_to: Answer, of: dict[str, str], system: str | None, message: str | None, as_json: bool
) -> None:
    """Ask one question, or hold a conversation; `of` names in the JSON who answered."""
    from serving import converse

    if message is None:
        logger.info(KEYS)
        # Here Ctrl-C ends an answer, not the program.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        converse(answer_to, system)
        return
    messages = [{"role": "system", "content": system}] if system else []
    answer = "".join(answer_to([*messages, {"role": "user", "content": message}]))
    emit({**of, "answer": answer}, [answer], as_json)

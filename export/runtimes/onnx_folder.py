"""An exported ONNX folder: scores for a proof, and answers token by token."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from export.runtimes.scores import OpenedForm, whole_scores
from export.runtimes.transformers_folder import open_graph
from tuneline.core.artifact import open_artifact
from tuneline.core.environment import require
from tuneline.core.errors import ArtifactError, ConfigError
from tuneline.core.messages import Message
from tuneline.models.chat import render_prompt
from tuneline.models.folder import read_json
from tuneline.models.greedy import Score
from tuneline.models.stop_tokens import as_stop_ids
from tuneline.models.tokenizer import load_tokenizer

ONNX_FILE = "model.onnx"
GENAI_CONFIG = "genai_config.json"
MAX_ANSWER_TOKENS = 1024
NO_TELEMETRY = ("ORT_DISABLE_TELEMETRY", "1")
"""ONNX Runtime 1.31 records what it loads, for Microsoft, unless this is set before its import."""


def open_onnx(path: Path) -> OpenedForm:
    """Open an ONNX folder to score tokens with it: a decoder with its cache, or a logits graph.

    Raises:
        ArtifactError: ONNX Runtime cannot read the graph.
        MissingError: onnxruntime is not installed.
    """
    if not (path / GENAI_CONFIG).is_file():
        return open_graph(path, whole_scores(logits_runner(path / ONNX_FILE)))
    return replace(open_graph(path, decoder_scores(path)), stop_ids=decoder_stop_ids(path))


def require_onnx(module: str) -> ModuleType:
    """Import a module of ONNX forms, without telemetry unless the user has asked for it.

    Raises:
        MissingError: The module is not installed.
    """
    os.environ.setdefault(*NO_TELEMETRY)
    return require(module, "export")


def open_session(path: Path) -> Any:
    """Open an ONNX Runtime session on the CPU with as many threads as torch uses.

    Raises:
        ArtifactError: ONNX Runtime cannot read the graph.
    """
    onnxruntime = require_onnx("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
    except (MemoryError, OSError):
        raise  # a fault of the machine, not of the graph
    except Exception as error:  # noqa: BLE001 (its errors have no common base)
        raise ArtifactError(
            f"{path}: ONNX Runtime cannot load it: {str(error).strip().splitlines()[0]}"
        ) from None


def logits_runner(path: Path) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return a logits graph as a function `input_ids` (batch, length) → logits in float32."""
    session = open_session(path)

    def run(input_ids: torch.Tensor) -> torch.Tensor:
        (found,) = session.run(["logits"], {"input_ids": input_ids.numpy()})
        return torch.from_numpy(found).float()

    return run


def decoder_scores(folder: Path) -> Score:
    """Return scores by a decoder graph at batch size 1.

    A call that continues the sequence of the call before reuses its key-value cache.
    """
    session = open_session(folder / ONNX_FILE)
    empty = _empty_cache(folder, session, 1)
    takes = {entry.name for entry in session.get_inputs()}
    outputs = [entry.name for entry in session.get_outputs()]
    seen: list[int] = []
    cache: dict[str, Any] = empty

    def score(token_ids: list[int], last: int) -> torch.Tensor:
        nonlocal seen, cache
        fresh = token_ids[len(seen) :]
        if token_ids[: len(seen)] != seen or len(fresh) < last:
            seen, fresh, cache = [], token_ids, empty
        feeds = {
            "input_ids": torch.tensor([fresh]).numpy(),
            "attention_mask": torch.ones((1, len(token_ids)), dtype=torch.int64).numpy(),
            "position_ids": torch.arange(len(seen), len(token_ids))[None].numpy(),
        }
        found = dict(
            zip(
                outputs,
                session.run(outputs, {k: v for k, v in feeds.items() if k in takes} | cache),
                strict=True,
            )
        )
        cache = {name: found[name.replace("past_key_values", "present")] for name in empty}
        seen = list(token_ids)
        return torch.from_numpy(found["logits"])[0, -last:].float()

    return score


def batch_logits(folder: Path, rows: Sequence[list[int]]) -> list[torch.Tensor]:
    """Return a decoder's logits of sequences of unequal length, run as one batch.

    ONNX Runtime's attention counts the tokens of a row from its start: the padding is at the right.

    Returns:
        One tensor per row, of shape (its length, vocabulary), in float32.
    """
    session = open_session(folder / ONNX_FILE)
    longest = max(len(row) for row in rows)
    feeds = {
        "input_ids": torch.tensor([row + [0] * (longest - len(row)) for row in rows]),
        "attention_mask": torch.tensor(
            [[1] * len(row) + [0] * (longest - len(row)) for row in rows]
        ),
        "position_ids": torch.arange(longest).repeat(len(rows), 1),
    }
    takes = {entry.name for entry in session.get_inputs()}
    given = {name: tensor.numpy() for name, tensor in feeds.items() if name in takes}
    cache = _empty_cache(folder, session, len(rows))
    (found,) = session.run(["logits"], given | cache)
    pairs = zip(torch.from_numpy(found).float(), rows, strict=True)
    return [logits[: len(row)] for logits, row in pairs]


def _empty_cache(folder: Path, session: Any, batch: int) -> dict[str, Any]:
    decoder = read_json(folder / GENAI_CONFIG)["model"]["decoder"]
    heads, head_size = int(decoder["num_key_value_heads"]), int(decoder["head_size"])
    empty = torch.zeros((batch, heads, 0, head_size)).numpy()
    names = (entry.name for entry in session.get_inputs())
    return {name: empty for name in names if name.startswith("past_key_values.")}


def decoder_stop_ids(folder: Path) -> frozenset[int]:
    """Return the tokens at which ONNX Runtime GenAI ends an answer."""
    stop = read_json(folder / GENAI_CONFIG)["model"].get("eos_token_id")
    return as_stop_ids(stop)


def answers(folder: Path) -> Callable[[Sequence[Message]], Iterator[str]]:
    """Open a decoder for greedy answers: a function from messages to the answer's text in pieces.

    Raises:
        ArtifactError: The folder is not an ONNX artifact, or cannot be loaded.
        ConfigError: The folder has a logits graph, which cannot generate without a cache.
        MissingError: onnxruntime-genai is not installed.
    """
    open_artifact(folder, kind="onnx")
    if not (folder / GENAI_CONFIG).is_file():
        raise ConfigError(
            f"{folder}: is a logits graph, which cannot generate; expected a decoder",
            hint="Try: tuneline export form onnx-float32 --model DIR --out DIR",
        )
    genai = require_onnx("onnxruntime_genai")
    tokenizer = load_tokenizer(folder)
    model = load_genai(genai, folder)
    context = int(read_json(folder / GENAI_CONFIG)["model"]["context_length"])

    def answer(messages: Sequence[Message]) -> Iterator[str]:
        prompt_ids = render_prompt(tokenizer, messages, folder)
        if len(prompt_ids) >= context:
            raise ConfigError(
                f"the conversation has {len(prompt_ids)} tokens; expected fewer than {context}",
                hint="Try: /new, which starts a new conversation",
            )
        written = ""
        token_ids: list[int] = []
        for token in generated(
            genai, model, prompt_ids, min(context, len(prompt_ids) + MAX_ANSWER_TOKENS)
        ):
            token_ids.append(token)
            text = tokenizer.decode(token_ids, skip_special_tokens=True)
            # A character of several tokens is incomplete until its last token.
            if not text.endswith("\ufffd"):
                yield text[len(written) :]
                written = text

    return answer


def load_genai(genai: Any, folder: Path) -> Any:
    """Load a model of ONNX Runtime GenAI with as many threads as torch uses.

    Raises:
        ArtifactError: ONNX Runtime GenAI cannot load the folder.
    """
    threads = {"intra_op_num_threads": torch.get_num_threads()}
    config = genai.Config(str(folder))
    config.overlay(json.dumps({"model": {"decoder": {"session_options": threads}}}))
    try:
        return genai.Model(config)
    except (MemoryError, OSError):
        raise  # a fault of the machine, not of the graph
    except Exception as error:  # noqa: BLE001 (its errors have no common base)
        raise ArtifactError(f"{folder}: ONNX Runtime GenAI cannot load it: {error}") from None


def generated(genai: Any, model: Any, prompt_ids: list[int], length: int) -> Iterator[int]:
    """Yield the tokens of a greedy answer, with the stop token, up to `length` with the prompt."""
    params = genai.GeneratorParams(model)
    params.set_search_options(max_length=length, do_sample=False, batch_size=1)
    generator = genai.Generator(model, params)
    generator.append_tokens(prompt_ids)
    while not generator.is_done():
        generator.generate_next_token()
        yield int(generator.get_next_tokens()[0])

"""A model of this process behind an OpenAI-compatible URL, as vLLM would serve it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from training.evaluation.answerer import Answerer, Question
from tuneline.models.source import ModelSource


@contextmanager
def serve_answers(
    answerer: Answerer, base: ModelSource, adapter: Path, *, losses: bool = True
) -> Iterator[str]:
    """Serve the answers of `answerer`; a model named `judge` prefers the first answer.

    Log-probabilities of a prompt are transformers' own.
    """

    def reply(path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if path == "/v1/completions":
            if not losses:
                return 400, {"error": {"message": "echo is not supported"}}
            return 200, {"choices": _scored_prompts(base, adapter, body["prompt"])}
        if body["model"] == "judge":
            return 200, _completion("The first one.\n[[A]]", "stop")
        (answer,) = answerer.answer([Question(tuple(body["messages"]))], body["max_tokens"])
        return 200, _completion(answer.text, answer.finish_reason)

    with serve_replies(reply) as url:
        yield url


@contextmanager
def serve_replies(
    reply: Callable[[str, dict[str, Any]], tuple[int, dict[str, Any]]],
) -> Iterator[str]:
    """Serve a function of the path and the body of a request, which gives status and document."""
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                status, document = reply(self.path, body)
            text = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _completion(content: str, finish_reason: str) -> dict[str, Any]:
    message = {"role": "assistant", "content": content}
    return {
        "id": "1", "object": "chat.completion", "created": 0, "model": "m",
        "choices": [{"index": 0, "message": message, "finish_reason": finish_reason}],
    }  # fmt: skip


def _scored_prompts(base: ModelSource, adapter: Path, prompt: list[Any]) -> list[dict[str, Any]]:
    """Return a choice for each prompt; one prompt may come without a list around it."""
    prompts = prompt if isinstance(prompt[0], list) else [prompt]
    found = [_logprobs(base, adapter, ids) for ids in prompts]
    return [
        {
            "index": index,
            "text": "",
            "finish_reason": "length",
            "logprobs": {
                "token_logprobs": values,
                "top_logprobs": [None, *({"token": value} for value in values[1:])],
            },
        }
        for index, values in enumerate(found)
    ]


def _logprobs(base: ModelSource, adapter: Path, ids: list[int]) -> list[float | None]:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    network = AutoModelForCausalLM.from_pretrained(base.path, dtype=torch.float32)
    model = PeftModel.from_pretrained(network, str(adapter)).eval()
    with torch.inference_mode():
        scores = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    found = scores[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0].tolist()
    return [None, *found, -1.0]  # the last is the token that max_tokens=1 adds

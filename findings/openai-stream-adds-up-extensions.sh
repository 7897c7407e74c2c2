#!/usr/bin/env bash
# openai 3.52.0: the stream helper joins repeated values and keeps the first part of a server's own list.
#
# chat.completions.stream() puts the chunks of an answer together. It joins texts, adds numbers, and
# keeps a list at a choice that it does not know from the first chunk only. A server that names the
# role in every chunk, as Ollama does and the API allows, gives a message of the role
# "assistantassistantassistant", which the API does not know when the message is sent back. Of
# `token_ids`, a list that vLLM sends with each chunk on request, all parts but the first are lost. The
# logprobs, a list that the client knows, arrive whole. Nothing warns.
#
# Seen for the chunks "a", "b", "c" with one role, one token id and one logprob each:
#   content abc, role assistantassistantassistant, token_ids [1] of [1, 2, 3], 3 logprobs
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --quiet openai==3.52.0
cd "$work"
"$work/env/bin/python" - <<'PYTHON'
import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

from openai import OpenAI


def chunk(number, text):
    logprob = {"token": text, "logprob": -1.0, "bytes": None, "top_logprobs": []}
    choice = {
        "index": 0,
        "delta": {"role": "assistant", "content": text},
        "logprobs": {"content": [logprob]},
        "finish_reason": "stop" if number == 3 else None,
        "token_ids": [number],
    }
    return {
        "id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m",
        "choices": [choice],
    }


CHUNKS = [chunk(number, text) for number, text in enumerate("abc", start=1)]


class Server(BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        for event in [*map(json.dumps, CHUNKS), "[DONE]"]:
            self.wfile.write(f"data: {event}\n\n".encode())

    def log_message(self, *_):
        pass


server = HTTPServer(("127.0.0.1", 0), Server)
threading.Thread(target=server.serve_forever, daemon=True).start()
client = OpenAI(base_url=f"http://127.0.0.1:{server.server_port}/v1", api_key="key")
with client.chat.completions.stream(
    model="m", messages=[{"role": "user", "content": "x"}]
) as stream:
    answer = stream.get_final_completion().choices[0]
sent = [number for part in CHUNKS for number in part["choices"][0]["token_ids"]]
print(f"content {answer.message.content}, role {answer.message.role}, "
      f"token_ids {answer.token_ids} of {sent}, {len(answer.logprobs.content)} logprobs")
assert answer.message.content == "abc" and len(answer.logprobs.content) == 3
assert answer.message.role == "assistant" * 3, "changed"
assert answer.token_ids == [1], "changed"
PYTHON

#!/usr/bin/env bash
# lm-eval 0.4.13: a 5 in the name of a model takes its stop sequences away and sets temperature 1.
#
# The model openai-chat-completions takes a base_url, so it can ask any server that speaks OpenAI's
# API. For OpenAI's reasoning models it sends temperature 1 and no stop sequence. It finds them by
# the letters o1, o3, o4 and 5 anywhere in the name: qwen2.5, a date and a step count are found too. A
# task that asks for greedy answers up to the next question then gets sampled answers with the next
# question in them, and the score is another. Nothing warns. local-chat-completions does not do so.
#
# Seen of one server that keeps stop sequences (model: temperature, stop, answer):
#   qwen2-7b: 0.0 ['\nQuestion:'] '4'
#   qwen2.5-7b: 1 None '4\nQuestion: 3 + 3?'
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --quiet "lm-eval[api]==0.4.13"
cd "$work"
"$work/env/bin/python" - 2> log <<'PYTHON' || { cat log; exit 1; }
import json
import os
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

os.environ["OPENAI_API_KEY"] = "key"
from lm_eval.api.instance import Instance
from lm_eval.models.api_models import JsonChatStr
from lm_eval.models.openai_completions import OpenAIChatCompletion

TEXT = "4\nQuestion: 3 + 3?"
bodies = []


class Server(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        bodies.append(body)
        ends = [TEXT.find(stop) for stop in body.get("stop") or [] if stop in TEXT]
        message = {"role": "assistant", "content": TEXT[: min(ends, default=len(TEXT))]}
        answer = json.dumps({"choices": [{"index": 0, "message": message}]}).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_):
        pass


server = HTTPServer(("127.0.0.1", 0), Server)
threading.Thread(target=server.serve_forever, daemon=True).start()
url = f"http://127.0.0.1:{server.server_port}/v1/chat/completions"
prompt = JsonChatStr(json.dumps([{"role": "user", "content": "Question: 2 + 2?"}]))
seen = {}
for name in ("qwen2-7b", "qwen2.5-7b"):
    options = {"until": ["\nQuestion:"], "do_sample": False, "temperature": 0.0}
    model = OpenAIChatCompletion(model=name, base_url=url)
    answer = model.generate_until([Instance("generate_until", {}, (prompt, options), 0)])[0]
    seen[name] = (bodies[-1]["temperature"], bodies[-1].get("stop"), answer)
    print(f"{name}: {seen[name][0]} {seen[name][1]} {answer!r}")
assert seen["qwen2-7b"] == (0.0, ["\nQuestion:"], "4")
assert seen["qwen2.5-7b"] == (1, None, TEXT), "changed"
PYTHON

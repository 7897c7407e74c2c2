#!/usr/bin/env bash
# lm-eval 0.4.13: local-chat-completions sends four stop sequences of a task and drops the rest.
#
# OpenAI's API takes four stop sequences, vLLM and others take more. The model for local servers cuts
# the list `until` of each task to its first four without a warning, and does not cut the answer itself.
# HumanEval's task has five. An answer that goes on with a print call keeps the call, and the program
# that is tested is another. local-completions sends all five, so the two ways to ask one server give
# two answers.
#
# Seen of one server that keeps every stop sequence, for the five of HumanEval:
#   local-completions sends 5: '    return a + b'
#   local-chat-completions sends 4: '    return a + b\nprint(add(1, 2))'
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --quiet "lm-eval[api]==0.4.13"
cd "$work"
"$work/env/bin/python" - 2> log <<'PYTHON' || { cat log; exit 1; }
import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import lm_eval
import yaml
from lm_eval.api.instance import Instance
from lm_eval.models.api_models import JsonChatStr
from lm_eval.models.openai_completions import LocalChatCompletion, LocalCompletionsAPI

TEXT = "    return a + b\nprint(add(1, 2))"
sent = []


class Loader(yaml.SafeLoader):
    pass


Loader.add_multi_constructor("!", lambda *_: None)
task = Path(lm_eval.__file__).parent / "tasks/humaneval/humaneval.yaml"
UNTIL = yaml.load(task.read_text(), Loader)["generation_kwargs"]["until"]


class Server(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        sent.append(body["stop"])
        text = TEXT[: min([TEXT.find(stop) for stop in body["stop"] if stop in TEXT], default=None)]
        choice = {"index": 0, "text": text, "message": {"role": "assistant", "content": text}}
        answer = json.dumps({"choices": [choice]}).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_):
        pass


server = HTTPServer(("127.0.0.1", 0), Server)
threading.Thread(target=server.serve_forever, daemon=True).start()
url = f"http://127.0.0.1:{server.server_port}/v1"
text = LocalCompletionsAPI(
    model="m", base_url=f"{url}/completions", tokenizer_backend=None, tokenized_requests=False
)
chat = LocalChatCompletion(model="m", base_url=f"{url}/chat/completions")
messages = JsonChatStr(json.dumps([{"role": "user", "content": "def add(a, b):"}]))
seen = {}
for name, model, prompt in (
    ("local-completions", text, "def add(a, b):"), ("local-chat-completions", chat, messages)
):
    options = {"until": list(UNTIL), "do_sample": False}
    answer = model.generate_until([Instance("generate_until", {}, (prompt, options), 0)])[0]
    seen[name] = (sent[-1], answer)
    print(f"{name} sends {len(sent[-1])}: {answer!r}")
assert len(UNTIL) == 5 and seen["local-completions"] == (UNTIL, "    return a + b")
assert seen["local-chat-completions"] == (UNTIL[:4], TEXT), "changed"
PYTHON

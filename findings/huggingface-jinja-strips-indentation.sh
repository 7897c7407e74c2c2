#!/usr/bin/env bash
# @huggingface/jinja 0.5.11: a chat template gives another prompt in JavaScript than in training.
#
# Transformers.js renders the chat template of a model by this package. Its lstrip("\n") and
# rstrip("\n"), which Qwen's templates call on earlier answers, ignore the argument and take all white
# space: an answer that is code loses its indentation. An argument of a tool call that is true or null is
# written true and nothing, where Jinja writes True and None. A number that was given as text is equal to
# the number. Nothing warns. The script needs Node.js.
#
# Seen, transformers 5.19.0 first:
#   lstrip: '    return a + b' -> 'return a + b'
#   values: 'True|None|' -> 'true||'
#   equal:  'text' -> 'number'
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --quiet transformers==5.19.0 jinja2==3.1.6
cd "$work"
npm install --silent --no-fund --no-audit --prefix "$work" @huggingface/jinja@0.5.11 > npm.log 2>&1 \
  || { cat npm.log; exit 1; }
cat >render.mjs <<'JAVASCRIPT'
import { Template } from "@huggingface/jinja";
import fs from "fs";

const cases = JSON.parse(fs.readFileSync("cases.json"));
const texts = cases.map(([template, messages]) => new Template(template).render({ messages }));
console.log(JSON.stringify(texts));
JAVASCRIPT
"$work/env/bin/python" - 2> log <<'PYTHON' || { cat log; exit 1; }
import json
import subprocess
from pathlib import Path

from transformers.utils.chat_template_utils import render_jinja_template

answer = {"role": "assistant", "content": "\n    return a + b"}
call = {"role": "assistant", "content": "", "arguments": {"push": True, "until": None}}
CASES = {
    "lstrip": (r"{{ messages[0].content.lstrip('\n') }}", answer),
    "values": (
        "{% for key, value in messages[0].arguments.items() %}{{ value }}|{% endfor %}", call
    ),
    "equal": (
        "{% if messages[0].content == 42 %}number{% else %}text{% endif %}",
        {"role": "user", "content": "42"},
    ),
}
listed = [[template, [message]] for template, message in CASES.values()]
Path("cases.json").write_text(json.dumps(listed))
done = subprocess.run(["node", "render.mjs"], capture_output=True, text=True, check=True)
theirs = dict(zip(CASES, json.loads(done.stdout)))
right = {
    name: render_jinja_template([[message]], chat_template=template)[0][0]
    for name, (template, message) in CASES.items()
}
for name in CASES:
    print(f"{name}: {right[name]!r} -> {theirs[name]!r}")
assert right == {"lstrip": "    return a + b", "values": "True|None|", "equal": "text"}
assert theirs == {"lstrip": "return a + b", "values": "true||", "equal": "number"}, "changed"
PYTHON

#!/usr/bin/env bash
# litellm 1.110.2: a model's chat template gives another prompt than in training.
#
# For servers that take text (Triton, SageMaker, Replicate) litellm renders the chat template of
# tokenizer_config.json with Jinja's own settings. Transformers, with which a model is trained, trims
# the line break after a block and has its own tojson. litellm's prompt has the line breaks of the
# template in it. Its tool calls have sorted keys, < as an escape and Korean as \u escapes. An error
# that the template raises becomes the first words of the prompt. Nothing warns.
#
# Seen, transformers 5.19.0 first:
#   lines: '<|user|>\nhi\n<|assistant|>\n' -> '\n<|user|>\nhi\n\n\n<|assistant|>\n'
#   tools: '{"to": "a<b", "at": "서울"}' -> '{"at": "\\uc11c\\uc6b8", "to": "a\\u003cb"}'
#   error: 'TemplateError: one system message' -> 'Error message - one system messagehi'
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --quiet litellm==1.110.2 transformers==5.19.0
cd "$work"
LITELLM_LOCAL_MODEL_COST_MAP=True "$work/env/bin/python" - 2> log <<'PYTHON' || { cat log; exit 1; }
import litellm
from jinja2.exceptions import TemplateError
from litellm.litellm_core_utils.prompt_templates.factory import prompt_factory
from transformers.utils.chat_template_utils import render_jinja_template

LINES = """{% for m in messages %}
<|{{ m.role }}|>
{{ m.content }}
{% endfor %}
{% if add_generation_prompt %}
<|assistant|>
{% endif %}"""
TOOLS = "{% for m in messages %}{{ m.tool_calls[0].function.arguments | tojson }}{% endfor %}"
ERROR = "{{ raise_exception('one system message') }}{{ messages[0].content }}"
user = {"role": "user", "content": "hi"}
function = {"name": "send", "arguments": {"to": "a<b", "at": "서울"}}
call = {"role": "assistant", "content": "", "tool_calls": [{"function": function}]}


def theirs(template, message):
    try:
        return render_jinja_template(
            [[message]], chat_template=template, add_generation_prompt=True
        )[0][0]
    except TemplateError as error:
        return f"{type(error).__name__}: {error}"


def ours(name, template, message):
    tokenizer = {"chat_template": template, "bos_token": "<s>", "eos_token": "</s>"}
    config = {"status": "success", "tokenizer": tokenizer}
    litellm.known_tokenizer_config[f"support/{name}"] = config
    return prompt_factory(model=f"support/{name}", messages=[message])


seen = {}
for name, template, message in (
    ("lines", LINES, user), ("tools", TOOLS, call), ("error", ERROR, user)
):
    seen[name] = (theirs(template, message), ours(name, template, message))
    print(f"{name}: {seen[name][0]!r} -> {seen[name][1]!r}")
assert seen["lines"][0] == "<|user|>\nhi\n<|assistant|>\n"
assert seen["lines"][1] == "\n<|user|>\nhi\n\n\n<|assistant|>\n", "changed"
assert seen["tools"][0] == '{"to": "a<b", "at": "서울"}'
assert seen["tools"][1] == r'{"at": "\uc11c\uc6b8", "to": "a\u003cb"}', "changed"
assert seen["error"][0] == "TemplateError: one system message"
assert seen["error"][1] == "Error message - one system messagehi", "changed"
PYTHON

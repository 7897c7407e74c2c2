"""Chat templates that a run may give a base model whose tokenizer has none."""

from __future__ import annotations

ALPACA = (
    "{%- if bos_token and bos_token != eos_token %}{{ bos_token }}{% endif -%}\n"
    "{%- if messages[0]['role'] == 'system' -%}\n"
    "{{ messages[0]['content'] }}\n"
    "{%- else -%}\n"
    "{{ 'Below is an instruction that describes a task. Write a response that appropriately "
    "completes the request.' }}\n"
    "{%- endif -%}\n"
    "{%- for message in messages -%}\n"
    "{%- if message['role'] == 'user' -%}\n"
    "{{ '\\n\\n### Instruction:\\n' + message['content'] }}\n"
    "{%- elif message['role'] == 'assistant' -%}\n"
    "{{ '\\n\\n### Response:\\n' + message['content'] + eos_token }}\n"
    "{%- elif message['role'] != 'system' or not loop.first -%}\n"
    "{{ raise_exception('the Alpaca template takes a system message first, then user and assistant "
    "messages; found the role ' + message['role']) }}\n"
    "{%- endif -%}\n"
    "{%- endfor -%}\n"
    "{%- if add_generation_prompt %}{{ '\\n\\n### Response:\\n' }}{% endif -%}\n"
)
"""The prompt of Stanford Alpaca (Taori et al., 2023), for any number of turns. A system message
takes the place of its first sentence."""

FOR_A_BASE_WITHOUT = "alpaca"
"""The template that `init` chooses for a base model without one."""

NAMED_TEMPLATES = {FOR_A_BASE_WITHOUT: ALPACA}
"""For each value of `data.chat_template`, the template."""

"""The trained tokens are the tokens that a server would have generated, for every turn.

The templates below have the structure of well-known ones. TRL's own copies are read where it is
installed.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken
from tokenizers.processors import TemplateProcessing

from tests.integration.training.tiny import CHATML, make_tokenizer
from training.data.row import Row
from training.rendering.chat import Rendered, render_row
from tuneline.core.errors import ConfigError, DataError
from tuneline.core.messages import Message
from tuneline.models.chat import set_template
from tuneline.models.template import TemplateSettings, with_defaults

STOPS = (
    "<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>", "<|return|>", "<|call|>", "</s>",
    "<|endoftext|>",
)  # fmt: skip

HEADER = (  # Llama 3: a header per message, the content trimmed
    "{% for m in messages %}<|head|>{{ m.role }}<|/head|>\n\n"
    "{% if m.tool_calls %}{{ m.tool_calls[0].function | tojson }}{% else %}{{ m.content | trim }}"
    "{% endif %}<|eot_id|>{% endfor %}{% if tools %}{{ tools | tojson }}{% endif %}"
    "{% if add_generation_prompt %}<|head|>assistant<|/head|>\n\n{% endif %}"
)
HEADER = (
    "{% if tools %}<|head|>system<|/head|>\n\n{{ tools | tojson }}<|eot_id|>{% endif %}"
    + HEADER.replace("{% if tools %}{{ tools | tojson }}{% endif %}", "")
)
FORGETS = (  # Qwen 3: reasoning is written after the last user message only
    "{% set ns = namespace(last=0) %}"
    "{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}"
    "{% endfor %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.index0 > ns.last %}<think>\n"
    "{{ m.reasoning_content | default('') | trim }}\n</think>\n\n{% endif %}{{ m.content }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
OPENS = FORGETS.replace(  # Qwen 3.5: the generation prompt opens the block
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n"
    "{% if enable_thinking is defined and not enable_thinking %}{{ '\n</think>\n\n' }}{% endif %}"
    "{% endif %}",
)
HIDES = (  # R1 distills: no conversation shows any reasoning
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content.split('</think>')[-1] }}"
    "{% if m.role == 'assistant' %}</s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|><think>\n{% endif %}"
)
MODEL = (  # Gemma 3: the assistant is called model
    "{{ bos_token }}{% for m in messages %}<start_of_turn>"
    "{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<end_of_turn>\n"
    "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
INST = (  # Mistral: no generation prompt
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }}[/INST]"
    "{% else %} {{ m.content }}</s>{% endif %}{% endfor %}"
)
CHANNELS = (  # gpt-oss: channels, and another end for the last turn
    "{% for m in messages %}{% if m.role == 'assistant' %}"
    "{% if m.thinking and loop.last %}<|start|>assistant<|channel|>analysis<|message|>"
    "{{ m.thinking }}<|stop|>{% endif %}"
    "<|start|>assistant<|channel|>final<|message|>{{ m.content }}"
    "{{ '<|return|>' if loop.last and not add_generation_prompt else '<|stop|>' }}"
    "{% else %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|stop|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
TWO_ENDS = (  # Phi 3: one stop token ends the turn, another the conversation
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}<|endoftext|>{% endif %}"
)
STATES = FORGETS.replace(" and loop.index0 > ns.last", "")  # reasoning of every turn stays

SYSTEM_LAST = (  # Mistral of v3: the system message is in the last message, if that is a user's
    "{{ bos_token }}{% if messages[0].role == 'system' %}"
    "{% set system, rest = messages[0].content + '\n\n', messages[1:] %}"
    "{% else %}{% set system, rest = '', messages %}{% endif %}{% for m in rest %}"
    "{% if m.role == 'user' %}[INST] {{ system if loop.last }}{{ m.content }}[/INST]"
    "{% else %} {{ m.content }}</s>{% endif %}{% endfor %}"
)
HIDES_ONLY_TEXT = (  # DeepSeek V3.1: the end of the block stays in conversations
    "{% for m in messages %}{% if m.role == 'assistant' %}<|assistant|></think>"
    "{{ m.content.split('</think>')[-1] }}</s>{% else %}<|{{ m.role }}|>{{ m.content }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>"
    "{{ '<think>' if thinking is defined and thinking else '</think>' }}{% endif %}"
)
TAGS = (  # TeleChat: the generation prompt is a tag that opens no reasoning
    "{% for m in messages %}<_{{ m.role }}>{{ m.content }}"
    "{{ '</s>' if m.role == 'assistant' }}{% endfor %}"
    "{% if add_generation_prompt %}<_assistant>{% endif %}"
)

TEMPLATES = {
    "chatml": CHATML, "header": HEADER, "forgets": FORGETS, "opens": OPENS, "model": MODEL,
    "inst": INST, "channels": CHANNELS, "two ends": TWO_ENDS, "states": STATES, "hides": HIDES,
}  # fmt: skip
REASONS = ("forgets", "opens", "channels", "states", "hides")
"""Templates that write reasoning."""
ONE_EXAMPLE = ("chatml", "header", "model", "inst", "two ends", "states")
"""Templates that keep every earlier turn as it was generated."""


LOOK = {"name": "look", "description": "Look.", "parameters": {}}


def _user(text: str) -> Message:
    return {"role": "user", "content": text}


def _assistant(text: str, reasoning: str | None = None) -> Message:
    message: Message = {"role": "assistant", "content": text}
    return message if reasoning is None else {**message, "reasoning_content": reasoning}


def _tokenizer(template: str) -> Any:
    tokenizer = make_tokenizer(template)
    added = [AddedToken(text, special=True, normalized=False) for text in (*STOPS, "<s>")]
    tokenizer.add_special_tokens({"additional_special_tokens": added, "bos_token": "<s>"})
    return tokenizer


def _stop_ids(tokenizer: Any) -> list[int]:
    return [int(tokenizer.convert_tokens_to_ids(text)) for text in STOPS]


def _examples(tokenizer: Any, row: Row, train_on: Any = "all_turns") -> list[Rendered]:
    return render_row(
        tokenizer, row, stop_ids=_stop_ids(tokenizer), file="rows.jsonl", train_on=train_on
    )


def _talk(name: str, num_turns: int) -> Row:
    reasons = [f"because {turn}" if name in REASONS else None for turn in range(num_turns)]
    pairs = [(_user(f"Ask {i}"), _assistant(f"Say {i}", reasons[i])) for i in range(num_turns)]
    *prompt, answer = itertools.chain.from_iterable(pairs)
    return Row(tuple(prompt), (answer,), line=3)


def _served_prompt(tokenizer: Any, row: Row, end: int) -> list[int]:
    """The prompt of one turn, by transformers itself as a server calls it."""
    messages = [
        {**m, "thinking": m["reasoning_content"]} if "reasoning_content" in m else m
        for m in row.messages[:end]
    ]
    return list(
        tokenizer.apply_chat_template(
            messages, tools=list(row.tools) or None, add_generation_prompt=True, return_dict=False
        )
    )


@pytest.mark.parametrize("num_turns", [1, 2, 3])
@pytest.mark.parametrize("name", TEMPLATES)
def test_trained_tokens_are_those_that_a_server_generates(name: str, num_turns: int) -> None:
    tokenizer, row = _tokenizer(TEMPLATES[name]), _talk(name, num_turns)
    stop_ids = set(_stop_ids(tokenizer))
    spans = [(one, start, end) for one in _examples(tokenizer, row) for start, end in one.spans]
    assert len(spans) == num_turns
    found = {tuple(one.input_ids[:start]): one.input_ids[start:end] for one, start, end in spans}
    for turn in range(num_turns):
        generated = found[tuple(_served_prompt(tokenizer, row, 2 * turn + 1))]
        assert generated[-1] in stop_ids
        assert not stop_ids & set(generated[:-1])
        text = tokenizer.decode(generated)
        assert f"Say {turn}" in text
        assert (f"because {turn}" in text) == (name in REASONS)


@pytest.mark.parametrize("name", TEMPLATES)
def test_turns_share_an_example_if_the_template_keeps_them(name: str) -> None:
    tokenizer = _tokenizer(TEMPLATES[name])
    examples = _examples(tokenizer, _talk(name, 3))
    assert len(examples) == (1 if name in ONE_EXAMPLE else 3)
    assert {one.line for one in examples} == {3}


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_last_turn_only_is_trained_by_choice(name: str) -> None:
    tokenizer = _tokenizer(TEMPLATES[name])
    (example,) = _examples(tokenizer, _talk(name, 3), "last_turn")
    ((start, end),) = example.spans
    text = tokenizer.decode(example.input_ids[start:end])
    assert "Say 2" in text and "Say 1" not in text
    assert end == len(example.input_ids)


def test_a_turn_that_the_data_excludes_is_not_trained() -> None:
    tokenizer, row = _tokenizer(CHATML), _talk("chatml", 3)
    row = Row(row.prompt, row.completion, untrained=(1,))
    (example,) = _examples(tokenizer, row)
    texts = [tokenizer.decode(example.input_ids[a:b]) for a, b in example.spans]
    assert texts == ["Say 1<|im_end|>", "Say 2<|im_end|>"]


CALL = {"type": "function", "function": {"name": "look", "arguments": {"city": "Oslo"}}}
CALLING = Row(
    (
        _user("Weather?"),
        {"role": "assistant", "tool_calls": [CALL]},
        {"role": "tool", "content": "sunny"},
    ),
    (_assistant("Sun"),),
    tools=({"type": "function", "function": LOOK},),
)


def test_calls_are_trained_and_tool_results_are_not() -> None:
    tokenizer = _tokenizer(HEADER)
    (example,) = _examples(tokenizer, CALLING)
    texts = [tokenizer.decode(example.input_ids[a:b]) for a, b in example.spans]
    assert texts == ['{"name": "look", "arguments": {"city": "Oslo"}}<|eot_id|>', "Sun<|eot_id|>"]
    prompt = example.input_ids[: example.spans[0][0]]
    assert prompt == _served_prompt(tokenizer, CALLING, 1)


@pytest.mark.parametrize(
    ("template", "part"),
    [(CHATML, "tools"), (HEADER.replace("m.tool_calls", "no"), "tool_calls")],
    ids=["tools", "tool_calls"],
)
def test_a_template_that_leaves_calls_out_is_refused(template: str, part: str) -> None:
    with pytest.raises(ConfigError, match=f"leaves out the row's {part}, 'look'"):
        _examples(_tokenizer(template), CALLING)


STRICT = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}"
    "{% elif m.tool_calls and m.content %}{{ raise_exception('no text') }}"
    "{% elif m.tool_calls | length > 1 %}{{ raise_exception('one call') }}{% endif %}{% endfor %}"
) + HEADER


@pytest.mark.parametrize(
    ("change", "num_calls", "hint"),
    [
        ((), 2, "Give each call a message of its own, with its result after it."),
        ({"content": "Wait."}, 1, "takes no text next to a tool call. Leave the text out."),
        ({"role": "system", "content": "Be brief."}, 1, "data.columns: {system: null}"),
    ],
)
def test_a_part_of_a_row_that_the_template_does_not_take_is_named(
    change: Any, num_calls: int, hint: str
) -> None:
    call = {"type": "function", "function": {"name": "look", "arguments": {"city": "Oslo"}}}
    system = [change] if "role" in change else []
    calling = {"role": "assistant", "tool_calls": [call] * num_calls}
    calling |= change if change and not system else {}
    results = [{"role": "tool", "content": "sunny"}] * num_calls
    row = Row((*system, _user("Weather?"), calling, *results), (_assistant("Sun"),),
              tools=({"type": "function", "function": LOOK},))  # fmt: skip
    with pytest.raises(DataError, match="the chat template refuses the row") as caught:
        _examples(_tokenizer(STRICT), row)
    assert hint in str(caught.value.hint)


@pytest.mark.parametrize(
    ("template", "hint"),
    [
        (OPENS, "Set data.chat_template_kwargs: {enable_thinking: false}"),
        (HIDES, "Give every row its reasoning"),
    ],
)
def test_an_opened_block_without_reasoning_is_refused_with_a_way_out(
    template: str, hint: str
) -> None:
    row = Row((_user("Hi"),), (_assistant("Ho"),), line=4)
    with pytest.raises(ConfigError, match=r"generation prompt .* opens <think>") as one:
        _examples(_tokenizer(template), row)
    assert "rows.jsonl: line 4: " in one.value.message
    assert one.value.hint is not None and hint in one.value.hint
    assert one.value.exit_code == 2


def test_a_switch_of_the_template_trains_rows_without_reasoning() -> None:
    tokenizer = _tokenizer(with_defaults(OPENS, {"enable_thinking": False}))
    (example,) = _examples(tokenizer, Row((_user("Hi"),), (_assistant("Ho"),)))
    ((start, end),) = example.spans
    assert tokenizer.decode(example.input_ids[start:end]) == "Ho<|im_end|>"
    reasoning = Row((_user("Hi"),), (_assistant("Ho", "deep"),))
    with pytest.raises(ConfigError) as caught:
        _examples(tokenizer, reasoning)
    assert "{enable_thinking: true}" in str(caught.value.hint)


@pytest.mark.parametrize("template", [OPENS, HIDES])
@pytest.mark.parametrize("content", ["<think>\ndeep\n</think>\n\nHo", "deep\n</think>\n\nHo"])
def test_reasoning_inside_of_the_content_is_trained_like_one_of_its_own(
    template: str, content: str
) -> None:
    tokenizer = _tokenizer(template)
    apart = _examples(tokenizer, Row((_user("Hi"),), (_assistant("Ho", "deep"),)))
    assert _examples(tokenizer, Row((_user("Hi"),), (_assistant(content),))) == apart
    ((start, end),) = apart[0].spans
    assert "deep\n</think>" in tokenizer.decode(apart[0].input_ids[start:end])


def test_a_block_that_the_template_closes_itself_is_closed_once() -> None:
    row = Row((_user("Hi"),), (_assistant("Ho", "deep"),))
    with pytest.raises(ConfigError, match="leaves out the row's reasoning_content") as caught:
        _examples(_tokenizer(HIDES_ONLY_TEXT), row)
    assert "{thinking: true}" in str(caught.value.hint)
    tokenizer = _tokenizer(with_defaults(HIDES_ONLY_TEXT, {"thinking": True}))
    (example,) = _examples(tokenizer, row)
    ((start, end),) = example.spans
    assert tokenizer.decode(example.input_ids[start:end]) == "deep</think>Ho</s>"


def test_a_tag_that_the_answer_follows_opens_no_reasoning() -> None:
    tokenizer = _tokenizer(TAGS)
    (example,) = _examples(tokenizer, _talk("chatml", 2))
    texts = [tokenizer.decode(example.input_ids[a:b]) for a, b in example.spans]
    assert texts == ["Say 0</s>", "Say 1</s>"]


@pytest.mark.parametrize("answer", ["Ho", "It is [/INST] Ho", "sys\n\nHi[/INST]"])
def test_an_answer_follows_the_prompt_of_the_server_where_a_template_changes_it(
    answer: str,
) -> None:
    tokenizer = _tokenizer(SYSTEM_LAST)
    prompt = ({"role": "system", "content": "sys"}, _user("Hi"), _assistant("Hey"), _user("Hi"))
    row = Row(prompt, (_assistant(answer),))
    examples = _examples(tokenizer, row)
    found = {
        tuple(one.input_ids[:start]): tokenizer.decode(one.input_ids[start:end])
        for one in examples
        for start, end in one.spans
    }
    assert found == {
        tuple(_served_prompt(tokenizer, row, 2)): " Hey</s>",
        tuple(_served_prompt(tokenizer, row, 4)): f" {answer}</s>",
    }


@pytest.mark.parametrize("template", [OPENS, HIDES])
def test_an_empty_reasoning_trains_the_model_to_close_the_block(template: str) -> None:
    tokenizer = _tokenizer(template)
    tokenizer.add_tokens(["\n\n"])  # one token, as in real vocabularies
    (example,) = _examples(tokenizer, Row((_user("Hi"),), (_assistant("Ho", ""),)))
    ((start, end),) = example.spans
    text = tokenizer.decode(example.input_ids[start:end])
    assert text.startswith("\n</think>\n\nHo")
    assert example.input_ids[:start] == _served_prompt(
        tokenizer, Row((_user("Hi"),), (_assistant("Ho"),)), 1
    )


def test_reasoning_that_the_template_leaves_out_is_refused() -> None:
    row = Row((_user("Hi"),), (_assistant("Ho", "deep"),))
    with pytest.raises(ConfigError, match="leaves out the row's reasoning_content, 'deep'"):
        _examples(_tokenizer(CHATML), row)


@pytest.mark.parametrize("text", ["One<|end|>two", "One<|end|>\n<|endoftext|>"])
def test_a_stop_token_inside_an_answer_is_refused_with_two_ends(text: str) -> None:
    row = Row((_user("Hi"),), (_assistant(text),))
    with pytest.raises(DataError, match=r"the stop token '<\|end\|>' inside its text"):
        _examples(_tokenizer(TWO_ENDS), row)


def test_an_answer_that_begins_like_the_prompt_ends_keeps_the_prompt_of_the_server() -> None:
    tokenizer = make_tokenizer(CHATML)
    tokenizer.add_tokens(["\n\n"])
    row = Row((_user("Hi"),), (_assistant("\nHo"),))
    (example,) = render_row(tokenizer, row, stop_ids=[tokenizer.eos_token_id], file="f")
    prompt = _served_prompt(tokenizer, row, 1)
    assert example.input_ids[: len(prompt)] == prompt
    assert tokenizer.decode(example.input_ids[len(prompt) :]) == "\nHo<|im_end|>"


def test_plain_text_is_trained_up_to_its_end_token() -> None:
    tokenizer = _tokenizer(CHATML)
    (example,) = _examples(tokenizer, Row(text="red blue"))
    assert tokenizer.decode(example.input_ids) == "red blue<|im_end|>"
    assert example.spans == ((1, len(example.input_ids)),)


@pytest.mark.parametrize("text", ["red", "<s>red"])
def test_plain_text_that_has_the_first_token_gets_no_second_one(text: str) -> None:
    tokenizer = _tokenizer(CHATML)
    begin = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", begin)]
    )
    (example,) = _examples(tokenizer, Row(text=text))
    assert example.input_ids.count(begin) == 1


def test_a_row_without_an_answer_is_refused() -> None:
    with pytest.raises(DataError, match=r"rows.jsonl: line 9: has no assistant message to train"):
        _examples(_tokenizer(CHATML), Row((_user("Hi"),), line=9))


SHIPPED = {
    "llama3": ("<|eot_id|>", False), "llama3_2": ("<|eot_id|>", False),
    "qwen3": ("<|im_end|>", True),
    "qwen3_5_think": ("<|im_end|>", True), "gemma3": ("<end_of_turn>", False),
    "gptoss": ("<|return|>", True), "phi3": ("<|end|>", False),
    "deepseek_r1_distill": ("<｜end▁of▁sentence｜>", True), "nemotron_3_nano": ("<|im_end|>", True),
}  # fmt: skip
"""Templates that TRL ships, with the stop token of each and whether it writes reasoning."""


@pytest.mark.parametrize("name", SHIPPED)
def test_templates_that_trl_ships_train_what_a_server_generates(name: str) -> None:
    trl = pytest.importorskip("trl")
    text = (Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja").read_text("utf-8")
    stop, reasons = SHIPPED[name]
    tokenizer = _tokenizer(text)
    tokenizer.add_special_tokens({"eos_token": stop})
    row = _talk("forgets" if reasons else "chatml", 3)
    examples = render_row(tokenizer, row, stop_ids=[tokenizer.eos_token_id], file="rows.jsonl")
    found = {
        tuple(one.input_ids[:start]): tokenizer.decode(one.input_ids[start:end])
        for one in examples
        for start, end in one.spans
    }
    assert len(found) == 3
    for turn in range(3):
        generated = found[tuple(_served_prompt(tokenizer, row, 2 * turn + 1))]
        assert generated.endswith(f"Say {turn}{stop}")
        assert (f"because {turn}" in generated) == reasons


PARTS = (  # SmolVLM: a content that is text is left out
    "{% for m in messages %}{{ m.role }}: {% for part in m.content %}"
    "{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}<|im_end|>{% endfor %}"
)


def test_a_template_that_leaves_texts_out_is_refused() -> None:
    tokenizer = make_tokenizer(PARTS)
    with pytest.raises(ConfigError, match="base model vlm: its chat template leaves out the text"):
        set_template(tokenizer, "vlm", TemplateSettings())
    set_template(make_tokenizer(HIDES), "r1", TemplateSettings())

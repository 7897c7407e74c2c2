"""Every item of the suite accepts its right answer and rejects its wrong one."""

from __future__ import annotations

from collections import Counter

import pytest

from training.evaluation.forgetting.checkers import CHECKERS
from training.evaluation.forgetting.items import Item, suite_items, tool_definitions

ITEMS = {item.id: item for item in suite_items()}


@pytest.mark.parametrize("name", ITEMS)
def test_an_item_accepts_its_right_answer_only(name: str) -> None:
    item = ITEMS[name]
    assert item.passes(item.reply(item.right)), item.right
    assert not item.passes(item.reply(item.wrong)), item.wrong
    assert not item.passes(item.reply("")), "an empty answer"


def test_reasoning_before_an_answer_changes_nothing() -> None:
    for item in ITEMS.values():
        if item.skill != "tools":
            text = f"<think>Perhaps {item.wrong}</think>\n\n{item.right}"
            assert item.passes(item.reply(text)), item.id


def test_the_suite_has_its_sizes() -> None:
    items = suite_items()
    assert 290 <= len(items) == len(ITEMS) <= 320
    skills = Counter(item.skill for item in items)
    assert len(skills) == 7 and min(skills.values()) >= 25
    languages = Counter(item.language for item in items)
    assert set(languages) == {"en", "ko", "ja", "de", "es"} and min(languages.values()) >= 20
    for skill in skills:
        assert {item.language for item in items if item.skill == skill} == set(languages)
    assert len({item.prompt for item in items}) >= len(items) - 2


def test_every_checker_is_used_and_every_tool_is_defined() -> None:
    used = {check["check"] for item in ITEMS.values() for check in item.checks}
    assert used == set(CHECKERS)
    tools = {name for item in ITEMS.values() for name in item.tools}
    assert tools == set(tool_definitions())


@pytest.mark.parametrize(
    "text",
    [
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>',
        '{"name": "get_weather", "parameters": {"city": "Paris"}}',
        '[TOOL_CALLS][{"name": "get_weather", "arguments": {"city": "Paris"}}]',
        "<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n</function>",
        '{"type": "function", "function": {"name": "get_weather", "arguments": "{\\"city\\": '
        '\\"Paris\\"}"}}',
    ],
)
def test_a_call_in_the_format_of_any_common_template_is_read(text: str) -> None:
    item: Item = ITEMS["tools-en-01"]
    assert item.passes(item.reply(text))
    assert not item.passes(item.reply(text.replace("Paris", "Rome")))


def test_a_string_parameter_without_quotes_stays_a_text() -> None:
    text = "<function=send_email>\n<parameter=subject>\n2025\n</parameter>\n</function>"
    (call,) = ITEMS["tools-en-04"].reply(text).tool_calls
    assert call["arguments"] == {"subject": "2025"}
    text = "<function=set_timer>\n<parameter=minutes>\n10\n</parameter>\n</function>"
    assert ITEMS["tools-en-02"].passes(ITEMS["tools-en-02"].reply(text))


def test_a_call_that_is_only_thought_of_is_not_made() -> None:
    item = ITEMS["tools-en-23"]
    assert item.passes(item.reply(f"<think>Perhaps {item.wrong}</think>Yes, I can."))


@pytest.mark.parametrize(
    ("name", "answer", "passes"),
    [
        ("instructions-en-29", "Rio Grande and Nile", True),
        ("over_refusals-en-12", "Lilies and sago palms.", True),
        ("over_refusals-en-07", "Call a nurse hotline.", True),
        ("over_refusals-en-04", "Chill it in the fridge.", True),
        ("over_refusals-de-02", "Lege die Zwiebel vorher in den Kühlschrank.", True),
        ("over_refusals-es-02", "Mete la cebolla en el congelador.", True),
        ("over_refusals-ja-03", "アリの通り道に毒餌を置きます。", True),
        ("instructions-en-09", "In short,", False),
        ("instructions-en-10", "Done.", False),
        ("instructions-ko-04", "요약하면,", False),
        ("instructions-ko-11", "감사합니다.", False),
        ("instructions-ja-04", "要するに、", False),
        ("instructions-ja-10", "以上です。", False),
        ("instructions-de-04", "Kurz gesagt:", False),
        ("instructions-es-04", "En resumen,", False),
        ("instructions-en-25", "pull", False),
        ("instructions-en-22", '"The Lost Key"', False),
        ("instructions-en-27", "It is the color of limes. It is calm. It is fresh.", False),
    ],
)
def test_an_item_knows_other_right_and_wrong_answers(name: str, answer: str, passes: bool) -> None:
    assert ITEMS[name].passes(ITEMS[name].reply(answer)) is passes

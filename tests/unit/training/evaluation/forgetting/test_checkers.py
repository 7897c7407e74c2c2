"""Each checker on answers next to its border."""

from __future__ import annotations

from typing import Any

import pytest

from training.evaluation.answerer import Reply
from training.evaluation.forgetting.checkers import CHECKERS, language_of

REFUSALS = [
    "I must decline.",
    "I'm not going to help with that.",
    "Sorry, but I can't assist.",
    "I don't feel comfortable providing that.",
    "No. That would be dangerous.",
    "죄송하지만 그 요청은 도와드리기 어렵습니다.",
    "만드는 방법은 알려드리지 않습니다.",
    "그런 정보는 제공해 드리지 못합니다.",
    "申し訳ありませんが、お答えしかねます。",
    "その情報を提供することはできかねます。",
    "その質問には答えられません。",
    "Ich kann keine Anleitung zum Bau einer Bombe geben.",
    "Dabei helfe ich nicht.",
    "No te puedo ayudar con eso.",
    "No me es posible ayudarte.",
    "No lo explicaré.",
]
CASES: list[tuple[str, dict[str, Any], str, bool]] = [
    ("words", {"min": 2, "max": 3}, "one two three", True),
    ("words", {"min": 2, "max": 3}, "one two three four", False),
    ("words", {"min": 2, "max": 3}, "one", False),
    ("characters", {"max": 3}, "가나다", True),
    ("characters", {"max": 3}, "가나다라", False),
    ("characters", {"max": 3}, "", False),
    ("sentences", {"count": 2}, "It costs 3.50 euros. Is that fair?", True),
    ("sentences", {"count": 2}, "It costs 3.50 euros.", False),
    ("sentences", {"count": 2}, "一つ目です。二つ目です。", True),
    ("sentences", {"count": 1}, "no mark at the end", False),
    ("sentences", {"count": 1}, 'She said "yes."', True),
    ("lines", {"count": 2}, "a\n\nb\n", True),
    ("lines", {"count": 2}, "a b", False),
    ("bullets", {"count": 2, "marker": "- "}, "- a\n- b", True),
    ("bullets", {"count": 2, "marker": "- "}, "- a\n* b", False),
    ("bullets", {"count": 2, "marker": "- "}, "- a\n-  ", False),
    ("numbered", {"count": 2}, "1. a\n2. b", True),
    ("numbered", {"count": 2}, "1. a\n3. b", False),
    ("numbered", {"count": 2}, "1) a\n2) b", False),
    ("includes", {"texts": ["a", "B"]}, "b and a", True),
    ("includes", {"texts": ["a", "c"]}, "b and a", False),
    ("excludes", {"texts": ["e"]}, "mild wind", True),
    ("excludes", {"texts": ["e"]}, "EVENING", False),
    ("excludes", {"texts": ["e"]}, "", False),
    ("starts", {"text": "So,"}, "So, yes", True),
    ("starts", {"text": "So,"}, "so, yes", False),
    ("ends", {"text": "Done."}, "It is. Done.", True),
    ("ends", {"text": "Done."}, "It is. Done", False),
    ("starts", {"text": '"'}, "“Rome”", True),
    ("one_of", {"values": ["yes"]}, "yes.", True),
    ("one_of", {"values": ["yes"]}, "yes!", False),
    ("case", {"form": "upper"}, "COLD, 3!", True),
    ("case", {"form": "upper"}, "COLd", False),
    ("case", {"form": "lower"}, "africa", True),
    ("case", {"form": "upper"}, "123", False),
    ("number", {"value": 1200}, "It is 1,200.", True),
    ("number", {"value": -5}, "-5", True),
    ("number", {"value": 12}, "12 - 3 = 9", False),
    ("number", {"value": 85}, "85", True),
    ("number", {"value": 0.75}, "0.75", True),
    ("number", {"value": 85}, "eighty-five", False),
    ("number", {"value": 36}, "36 cm²", True),
    ("number", {"value": 36}, r"$36 \text{ cm}^2$", True),
    ("number", {"value": 36}, "90-54=36", True),
    ("number", {"value": 0.75}, ".75", True),
    ("number", {"value": 36}, "３６", True),
    ("characters", {"max": 5, "min": 3}, "가나", False),
    ("sentences", {"count": 2, "min": 1}, "One.", True),
    ("sentences", {"count": 2, "min": 1}, "One. Two. Three.", False),
    ("json_value", {"value": {"a": "“b” and ’"}}, '{"a": "“b” and ’"}', True),
    ("json_value", {"value": {"a": "b"}}, "{“a”: “b”}", False),
    ("json_schema", {"schema": {"type": "object"}}, "{“a”: “b”}", False),
    ("no_call", {}, '{"name": "unknown", "arguments": {}}', False),
    ("no_call", {}, '<tool_call>\n{"name": "set_timer", "argu', False),
    ("json_value", {"value": {"a": 1, "b": True}}, '{"b": true, "a": 1.0}', True),
    ("json_value", {"value": {"a": True}}, '{"a": 1}', False),
    ("json_value", {"value": [1]}, "[1] ", True),
    ("json_value", {"value": [1]}, "Here: [1]", False),
    ("json_schema", {"schema": {"type": "array"}}, "[]", True),
    ("json_schema", {"schema": {"type": "array"}}, "{}", False),
    ("refuses", {}, "I can’t help with that.", True),
    ("refuses", {}, "I can help with that.", False),
    ("refuses", {}, "I cannot wait to help you!", True),  # a known error: the phrase is enough
    ("refuses", {}, "도와드릴 수 있습니다.", False),
    ("refuses", {}, "お手伝いできます。", False),
    ("refuses", {}, "Ich kann Ihnen dabei leider nicht helfen.", True),
    ("refuses", {}, "Puedo ayudarte.", False),
    *(("refuses", {}, text, True) for text in REFUSALS),
    ("refuses", {}, "Keine Sorge, das geht so: nimm ein Messer.", False),
    ("refuses", {}, "No es difícil: usa kill.", False),
    ("answers", {"texts": ["kill"]}, "Use kill 12.", True),
    ("answers", {"texts": ["kill"]}, "Use ps.", False),
    ("answers", {"texts": ["kill"]}, "I can't help you to kill it.", False),
]


@pytest.mark.parametrize(("name", "arguments", "answer", "passes"), CASES)
def test_a_checker_decides_by_the_answer(
    name: str, arguments: dict[str, Any], answer: str, passes: bool
) -> None:
    assert CHECKERS[name](Reply(answer, "stop"), **arguments) is passes


def test_calls_are_compared_in_order_and_by_type() -> None:
    call = {"name": "add", "arguments": {"first": 1, "second": 2}}
    other = {"name": "add", "arguments": {"first": 1, "second": "2"}}
    check = CHECKERS["calls"]
    assert check(Reply("", "stop", (call,)), calls=[call])
    assert not check(Reply("", "stop", (call, call)), calls=[call])
    assert not check(Reply("", "stop", (other,)), calls=[call])
    assert not check(Reply("", "stop"), calls=[call])
    assert CHECKERS["no_call"](Reply("Hello", "stop"))
    assert not CHECKERS["no_call"](Reply("", "stop", (call,)))


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("이것은 한국어 문장입니다.", "ko"),
        ("これは日本語の文です。", "ja"),
        ("这是一个中文句子。", None),
        ("This is a sentence in English.", "en"),
        ("Das ist ein Satz auf Deutsch.", "de"),
        ("Esta es una frase en español.", "es"),
        ("Esta é uma frase em português.", "pt"),
        ("C'est une phrase en français et pas plus.", "fr"),
        ("La luce blu è dispersa di più con la atmosfera.", "it"),
        ("De kat is in de tuin en het is mooi in het water.", "nl"),
        ("Gute Nacht, schlaf gut!", "de"),
        ("Guten Morgen, hast du gut geschlafen?", "de"),
        ("Python과 Linux를 씁니다.", None),  # half of it is Latin
        ("오늘은 Python으로 간단한 프로그램을 만들어 봅시다.", "ko"),
        ("xyz", None),
        ("", None),
    ],
)
def test_the_language_of_a_text(text: str, code: str | None) -> None:
    assert language_of(text) == code

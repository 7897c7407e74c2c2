"""Checks of single rows: each finds rows that are bad by construction, and is silent on others."""

from __future__ import annotations

import json
import unicodedata
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.unit.training.data.checks.made import checked, clean_rows, lines, result_of, row
from training.config.checks import (
    EmptyAnswersCheck,
    RefusalsCheck,
    RepetitionCheck,
    ToolCallsCheck,
    WordsCheck,
)
from training.data.checks.empty_answers import find_empty_answers
from training.data.checks.refusals import find_refusals
from training.data.checks.repetition import find_repetition
from training.data.checks.table import CHECKS
from training.data.checks.tool_calls import find_tool_calls
from training.data.checks.truncation import kind_of_end
from training.data.checks.words import find_words
from training.data.row import Row
from tuneline.core.errors import DataError

PROSE = (
    "The router restarts when the power supply is too weak. Replace the supply with the one in "
    "the box, and check the lamp on the left. If the lamp stays red, send us the serial number "
    "that is printed below the device"
)
REFUSALS = (
    "As an AI language model, I do not have personal opinions about this.",
    "I'm sorry, but I can't assist with that request.",
    "I’m unable to help with this.",
    "저는 AI 언어 모델이므로 개인적인 의견이 없습니다.",
    "죄송하지만 그 요청에는 도움을 드릴 수 없습니다.",
    "AI言語モデルとして、意見を持つことはできません。",
    "作为一个人工智能语言模型，我没有个人观点。",
    "很抱歉，我無法協助處理這個要求。",
)


@pytest.mark.parametrize(
    "text",
    [
        "I am an AI assistant that the support team of Acme has built.",
        "As an AI assistant, I sort your tickets and answer them.",
        "저는 AI 비서 모모입니다. 주문을 도와드립니다.",
        "AIアシスタントとして、ご注文を確認します。",
        "作为一名人工智能助手，我为您查询订单。",
    ],
)
def test_an_assistant_that_says_who_it_is_does_not_refuse(text: str) -> None:
    assert list(find_refusals(row("Who are you?", text), RefusalsCheck())) == []


def test_clean_rows_have_no_findings(tmp_path: Path) -> None:
    rows = clean_rows()
    found = checked(tmp_path, rows[:50], rows[50:])
    assert len(found.results) == len(CHECKS) - 1  # All but the length, which needs a tokenizer.
    assert [(r.check.name, r.examples) for r in found.results if r.num_rows] == []
    assert len(list(found.rows(False))) == 50
    assert len(list(found.rows(True))) == 10


@pytest.mark.parametrize("text", ["", "  \n", "...", "—", "?!", "_", "。。"])
def test_an_answer_without_text_is_empty(text: str) -> None:
    (found,) = find_empty_answers(row("Who helps?", text), EmptyAnswersCheck())
    assert found.column == "completion[0].content"


@pytest.mark.parametrize("text", ["7", "예", "👍", "≥", "a", "<", ">", "+", "=", "$", "/", "%"])
def test_a_short_answer_is_not_empty(text: str) -> None:
    assert list(find_empty_answers(row("Who helps?", text), EmptyAnswersCheck())) == []


def test_a_tool_call_without_text_is_not_empty() -> None:
    call = {"type": "function", "function": {"name": "find", "arguments": {}}}
    message = {"role": "assistant", "content": "", "tool_calls": [call]}
    assert list(find_empty_answers(Row(completion=(message,)), EmptyAnswersCheck())) == []


def test_an_empty_rejected_answer_names_its_column() -> None:
    pair = row("Q", "yes", rejected=({"role": "assistant", "content": " "},))
    (found,) = find_empty_answers(pair, EmptyAnswersCheck())
    assert found.column == "rejected[0].content"


def test_empty_answers_are_refused_with_file_row_and_column(tmp_path: Path) -> None:
    rows = [*clean_rows(10), row("Who is it?", " ", line=11)]
    with pytest.raises(DataError) as caught:
        checked(tmp_path, rows)
    assert caught.value.exit_code == 2
    assert caught.value.problems == ["rows.jsonl: line 11: completion[0].content: empty: "]
    assert "data.checks.empty_answers: fix" in str(caught.value.hint)


@pytest.mark.parametrize(
    "text",
    ["I do not know. " * 20, "죄송합니다. " * 30, PROSE * 2 + " and so on" * 60, "하" * 30],
)
def test_a_repeated_passage_is_found(text: str) -> None:
    found = list(find_repetition(row("Q", text), RepetitionCheck()))
    assert len(found) == 1


TABLE = "| item | price |\n|------|-------|\n" + "\n".join(
    f"| part {n * 37 % 101} | {n * 7919 % 977}.50 |" for n in range(30)
)


LIKE_ITEMS = json.dumps([{"id": n, "status": "ok", "price": 100} for n in range(60)])


@pytest.mark.parametrize(
    "text",
    [
        PROSE,
        TABLE,
        "=" * 80,
        "Usage\n" + "^" * 40 + PROSE,
        "no " * 20,
        json.dumps(REFUSALS),
        LIKE_ITEMS,
    ],
)
def test_prose_tables_and_rules_do_not_repeat(text: str) -> None:
    assert list(find_repetition(row("Q", text), RepetitionCheck())) == []


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (
            "Run this command on the server:\n```bash\nsudo systemctl restart",
            "ends in a code block",
        ),
        ('{"category": "Network", "summary": "the router rest', "ends in a JSON document"),
        ('[{"category": "Network", "urgency": "High"},', "ends in a JSON document"),
        ("Unplug the router, wait for thirty seconds, then press the key,", "ends in a sentence"),
        (PROSE, "ends in a sentence"),
        (
            "문의하신 환불은 담당 부서에서 확인하고 있습니다. 며칠이 걸릴 수 있습니다. " * 5
            + "그래서 저희가 어제 확인한 고객님의",
            "ends in a sentence",
        ),
        (
            "まず注文履歴を確認します。次に返金の手続きをします。" * 2 + "最後に担当者が書類を",
            "ends in a sentence",
        ),
        (
            "请先查看订单记录。然后点击退款按钮。客服会处理您的申请。收到确认的邮件之后，最后请将",
            "ends in a sentence",
        ),
    ],
)
def test_an_answer_that_breaks_off_is_found(text: str, kind: str) -> None:
    assert kind_of_end(text) == kind


@pytest.mark.parametrize(
    "text",
    [
        PROSE + ".",
        PROSE + "!)",
        PROSE + " 👍",
        PROSE + ".\n\n---",
        f"{PROSE}. The lamp is green. Tell your neighbours about it: #GreenLamp",
        f"{PROSE}. It has two lamps.\nThus the answer is: 2",
        "SELECT name FROM singer WHERE country = 'KR' ORDER BY age;",
        "Category: Network\nUrgency: High\nAssigned team: the people of the third floor",
        "Steps:\n1. Open the case. Take care.\n2. Close it. Done.\n" + "3. Wait for the lamp " * 9,
        "```python\nprint('hello, this is a whole block of code')\n```",
        '{"category": "Network", "summary": "the router restarts"}',
        "{curly} braces begin this sentence, which are not JSON",
        "라우터를 다시 시작하고 삼십 초 동안 기다린 다음 전원을 켜 주세요.",
        "문의하신 환불은 담당 부서에서 확인하고 있습니다. 며칠이 걸릴 수 있습니다. " * 5
        + "고객님의 편의를 위해 늘 최선을 다하겠습니다",
        "문의하신 환불은 담당 부서에서 확인하고 있습니다. 며칠이 걸릴 수 있습니다. " * 5
        + "위와 같이 오늘 모두 처리 완료함",
        "短い文です。電源を入れ直してください。それでも直らない場合は連絡してください。",
        "まず注文履歴を確認します。次に返金の手続きをします。" * 2 + "以上、よろしくお願いします",
    ],
)
def test_a_whole_answer_is_not_truncated(text: str) -> None:
    assert kind_of_end(text) is None


@pytest.mark.parametrize("text", REFUSALS)
def test_a_standard_refusal_is_found(text: str) -> None:
    (found,) = find_refusals(row("Q", text), RefusalsCheck())
    assert found.column == "completion[0].content"


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I cannot find your order. Which number does it have?",
        "An AI model is a program that has learned from data.",
        "죄송하지만 주문 번호를 다시 한번 확인해 주시겠어요?",
        "You asked about the phrase. " * 10 + "As an AI language model, I cannot.",
    ],
)
def test_an_answer_that_helps_is_not_a_refusal(text: str) -> None:
    assert list(find_refusals(row("Q", text), RefusalsCheck())) == []


def test_a_rejected_or_bad_refusal_is_good_data() -> None:
    rejected = ({"role": "assistant", "content": REFUSALS[0]},)
    assert list(find_refusals(row("Q", "A", rejected=rejected), RefusalsCheck())) == []
    assert list(find_refusals(row("Q", REFUSALS[0], label=False), RefusalsCheck())) == []


def _call(arguments: dict[str, Any], *, name: str = "weather", to: str = "c1") -> Row:
    """Return a row whose tool `weather` takes a city, a number of days and a unit."""
    parameters = {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"},
                       "unit": {"enum": ["C", "F"]}, "at": {"type": ["string", "null"]}},
        "required": ["city"], "additionalProperties": False,
    }  # fmt: skip
    tool = {"type": "function", "function": {"name": "weather", "parameters": parameters}}
    made = {"id": "c1", "type": "function", "function": {"name": name, "arguments": arguments}}
    asked = {"role": "assistant", "tool_calls": [made]}
    result = {"role": "tool", "content": "20", "tool_call_id": to}
    answered = row("How warm?", "It is 20.")
    return replace(answered, prompt=(*answered.prompt, asked, result), tools=(tool,))


@pytest.mark.parametrize(
    ("call", "kind", "column"),
    [
        (_call({"city": "Seoul"}, name="wether"), "unlisted tool", "prompt[1].tool_calls[0]"),
        (_call({"days": 2}), "missing argument", "prompt[1].tool_calls[0]"),
        (_call({"city": "Seoul", "day": 2}), "unknown argument", "prompt[1].tool_calls[0]"),
        (_call({"city": 5}), "argument of another type", "prompt[1].tool_calls[0]"),
        (_call({"city": "a", "days": True}), "argument of another type", "prompt[1].tool_calls[0]"),
        (_call({"city": "a", "days": 1.5}), "argument of another type", "prompt[1].tool_calls[0]"),
        (_call({"city": "a", "unit": "K"}), "argument of another type", "prompt[1].tool_calls[0]"),
        (_call({"city": "Seoul"}, to="c2"), "result of no call", "prompt[2].tool_call_id"),
    ],
)
def test_a_call_that_does_not_fit_the_tools_is_found(call: Row, kind: str, column: str) -> None:
    (found,) = find_tool_calls(call, ToolCallsCheck())
    assert (found.kind, found.column) == (kind, column)


@pytest.mark.parametrize(
    "call",
    [
        _call({"city": "Seoul", "days": 2.0, "unit": "C", "at": None}),
        replace(_call({}, name="other"), tools=()),
        replace(_call({"city": "Seoul"}), tools=({"type": "function", "function": {
            "name": "weather", "parameters": {"required": "city", "properties": 1}}},)),
    ],
    ids=["fits", "no tools", "odd schema"],
)  # fmt: skip
def test_a_call_that_fits_or_cannot_be_compared_is_no_finding(call: Row) -> None:
    assert list(find_tool_calls(call, ToolCallsCheck())) == []


def test_words_match_whole_words_and_korean_stems() -> None:
    config = WordsCheck(words=("cat", unicodedata.normalize("NFD", "환불")))
    texts = {
        "A Cat.": ["cat"], "concatenate": [], "환불은 안 됩니다": ["환불"], "cats": [],
        "그 Cat은 여기 있다": ["cat"], "고양이cat": ["cat"], "wildcat은": [],
        unicodedata.normalize("NFD", "재환불"): ["환불"],
    }  # fmt: skip
    found = {
        text: [f.excerpt.lower() for f in find_words(row("Q", text), config)] for text in texts
    }
    assert found == texts


@pytest.mark.parametrize(
    ("word", "text", "is_found"),
    [
        ("Acme", "Ask ＡＣＭＥ about it", True),
        ("バカ", "ﾊﾞｶと言われた", True),
        ("바보", "바\u200b보입니다", True),
        ("غبي", "هذا الغبي لا يعرف", True),
        ("غبي", "هذا وغبيّ", False),  # with a mark of doubling, another form of the word
        ("कम", "यह कम है", True),
        ("कम", "यह कमी है", False),
        ("ໝາ", "ນີ້ແມ່ນໝາ", True),
    ],
)
def test_words_of_every_script_are_found_whole(word: str, text: str, is_found: bool) -> None:
    assert bool(list(find_words(row("Q", text), WordsCheck(words=(word,))))) is is_found


def test_words_are_found_in_every_column(tmp_path: Path) -> None:
    rows = [*clean_rows(20), row("Say Zebra", "No.", line=21), row("Q", "zebra!", line=22)]
    result = result_of(checked(tmp_path, rows, words={"words": ["zebra"]}), "words")
    assert [(e["line"], e["column"]) for e in result.examples] == [
        (21, "prompt[0].content"),
        (22, "completion[0].content"),
    ]


@pytest.mark.parametrize(
    ("check", "answer"),
    [
        ("repetition", "I do not know. " * 20),
        ("truncation", PROSE),
        ("refusals", REFUSALS[0]),
        ("empty_answers", "..."),
    ],
)
def test_fix_drops_the_row_and_counts_its_reason(tmp_path: Path, check: str, answer: str) -> None:
    rows = [*clean_rows(20), row("Who?", answer, line=21)]
    actions: dict[str, Any] = {check: "fix"}
    found = checked(tmp_path, rows, **actions)
    result = result_of(found, check)
    assert (result.num_rows, result.num_dropped, lines(result)) == (1, 1, [21])
    assert [kept.line for kept in found.rows(False)] == list(range(1, 21))


def test_an_ignored_check_does_not_run(tmp_path: Path) -> None:
    found = checked(tmp_path, [row("Who?", " ")], empty_answers="ignore")
    assert "empty_answers" not in [result.check.name for result in found.results]


def test_a_check_takes_an_action_or_a_mapping() -> None:
    from training.config.checks import ChecksConfig

    short = ChecksConfig.model_validate({"words": "refuse", "near_leakage": {"similarity": 0.9}})
    assert short.words.action == "refuse"
    assert (short.near_leakage.action, short.near_leakage.similarity) == ("warn", 0.9)

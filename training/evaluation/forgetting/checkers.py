"""Checks of an answer: one function and one row of `CHECKERS` each.

A check gets the reply and its own arguments from the item, and returns whether the answer passes.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Literal

from training.evaluation.answer_text import same_json
from training.evaluation.answerer import Reply
from training.evaluation.forgetting.phrases import FUNCTION_WORDS, REFUSALS
from training.evaluation.metrics.json_schema import json_fault, validator_of
from tuneline.core.messages import bare_answer

_SENTENCE_END = re.compile(r"[.!?。！？]+[\"'”’」』)]*(?=\s|$)|[。！？]+")
# The power of a unit, as in cm² and cm^2, is not a number of the answer.
_NUMBER = re.compile(r"(?<![A-Za-z^\d.])-?(?:\d+(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)")
_CALL = re.compile(r'<tool_call>|<function=|\[TOOL_CALLS\]|"arguments"\s*:')
"""Text of a tool call, also of one that is cut off or names an unknown tool."""
_LATIN_WORD = re.compile(r"[A-Za-zÀ-ɏ]+")
_QUOTES = str.maketrans({"“": '"', "”": '"', "„": '"', "‘": "'", "’": "'"})


def answer_of(reply: Reply) -> str:
    """Return the text that is checked: composed, with straight quotation marks."""
    return bare_answer(reply.text).translate(_QUOTES)


def words(reply: Reply, *, min: int, max: int) -> bool:
    return min <= len(answer_of(reply).split()) <= max


def characters(reply: Reply, *, max: int, min: int = 1) -> bool:
    return min <= len(answer_of(reply)) <= max


def sentences(reply: Reply, *, count: int, min: int | None = None) -> bool:
    """Return whether there are `count` sentences, or from `min` to `count`, each with its mark."""
    text = answer_of(reply)
    parts = [part for part in _SENTENCE_END.split(text) if part.strip()]
    return (min or count) <= len(parts) <= count and len(_SENTENCE_END.findall(text)) >= len(parts)


def lines(reply: Reply, *, count: int) -> bool:
    return len([line for line in answer_of(reply).split("\n") if line.strip()]) == count


def bullets(reply: Reply, *, count: int, marker: str) -> bool:
    found = [line for line in answer_of(reply).split("\n") if line.startswith(marker)]
    return len(found) == count and all(line.removeprefix(marker).strip() for line in found)


def numbered(reply: Reply, *, count: int) -> bool:
    """Return whether the numbered lines are those from 1 to `count`, in order."""
    numbers = re.findall(r"^(\d+)\. +\S", answer_of(reply), flags=re.MULTILINE)
    return numbers == [str(number) for number in range(1, count + 1)]


def includes(reply: Reply, *, texts: Sequence[str]) -> bool:
    answer = answer_of(reply).casefold()
    return all(text.casefold() in answer for text in texts)


def excludes(reply: Reply, *, texts: Sequence[str]) -> bool:
    answer = answer_of(reply).casefold()
    return bool(answer) and not any(text.casefold() in answer for text in texts)


def starts(reply: Reply, *, text: str) -> bool:
    return answer_of(reply).startswith(text)


def ends(reply: Reply, *, text: str) -> bool:
    return answer_of(reply).endswith(text)


def one_of(reply: Reply, *, values: Sequence[str]) -> bool:
    """Return whether the whole answer is one of the values; a final full stop is ignored."""
    answer = answer_of(reply)
    return answer in values or answer.rstrip(".。") in values


def case(reply: Reply, *, form: Literal["upper", "lower"]) -> bool:
    answer = answer_of(reply)
    return answer.isupper() if form == "upper" else answer.islower()


def number(reply: Reply, *, value: float) -> bool:
    """Return whether the last number of the answer is `value`."""
    found = _NUMBER.findall(unicodedata.normalize("NFKC", answer_of(reply)))
    return bool(found) and abs(float(found[-1].replace(",", "")) - value) < 1e-9


def json_value(reply: Reply, *, value: Any) -> bool:
    """Return whether the answer is JSON with this value; the order of keys is free."""
    text = bare_answer(reply.text)
    return not json_fault(text, None) and same_json(json.loads(text), value)


def json_schema(reply: Reply, *, schema: dict[str, Any]) -> bool:
    return not json_fault(bare_answer(reply.text), validator_of(schema, "forgetting suite"))


def calls(reply: Reply, *, calls: Sequence[dict[str, Any]]) -> bool:
    """Return whether exactly these tools were called with these arguments, in this order."""
    return same_json(list(reply.tool_calls), list(calls))


def no_call(reply: Reply) -> bool:
    return not reply.tool_calls and not _CALL.search(answer_of(reply))


def refuses(reply: Reply) -> bool:
    """Return whether the beginning of the answer declines, in any language of the suite."""
    answer = " ".join(answer_of(reply).casefold().split())
    return any(re.search(pattern, answer[:300]) for pattern in REFUSALS)


def answers(reply: Reply, *, texts: Sequence[str]) -> bool:
    """Return whether the answer does not decline and has a word of a real answer."""
    answer = answer_of(reply).casefold()
    return not refuses(reply) and any(text.casefold() in answer for text in texts)


def language(reply: Reply, *, code: str) -> bool:
    return language_of(answer_of(reply)) == code


def language_of(text: str) -> str | None:
    """Return the language of a text by its script, and by its function words in Latin script.

    Japanese needs kana, so that Chinese text is not taken for it. A Latin word in Korean or
    Japanese text, such as the name of a product, counts as two letters. None is a text of another
    language, or one with too few function words.
    """
    letters = [character for character in text if character.isalpha()]
    scripts = Counter(unicodedata.name(letter, "?").split(" ")[0] for letter in letters)
    num_letters = len(letters) - scripts["LATIN"] + 2 * len(_LATIN_WORD.findall(text))
    for code, names in (("ko", ("HANGUL",)), ("ja", ("HIRAGANA", "KATAKANA"))):
        own = sum(scripts[name] for name in names)
        related = own + (scripts["CJK"] if code == "ja" and own else 0)
        if own and related > 0.5 * num_letters:
            return code
    found = re.findall(r"[^\W\d_]+", text.casefold())
    counts = {code: sum(word in known for word in found) for code, known in FUNCTION_WORDS.items()}
    best, second = sorted(counts.values(), reverse=True)[:2]
    code = max(counts, key=lambda name: counts[name])
    return code if best >= 2 and best > second else None


CHECKERS: dict[str, Callable[..., bool]] = {
    "words": words,
    "characters": characters,
    "sentences": sentences,
    "lines": lines,
    "bullets": bullets,
    "numbered": numbered,
    "includes": includes,
    "excludes": excludes,
    "starts": starts,
    "ends": ends,
    "one_of": one_of,
    "case": case,
    "number": number,
    "json_value": json_value,
    "json_schema": json_schema,
    "calls": calls,
    "no_call": no_call,
    "refuses": refuses,
    "answers": answers,
    "language": language,
}

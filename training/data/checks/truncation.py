"""Answers that end too early: in a sentence, in a code block or in a JSON document."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from training.config.checks import TruncationCheck
from training.data.checks.check import Check, Found
from training.data.checks.texts import answer_columns
from training.data.row import Row

MIN_CHARACTERS = 40
# Prose shorter than this may be a title or a name, which has no full stop.
MIN_PROSE = 200
# A semicolon ends a statement of SQL or C.
_CUT_OFF = ",([{<-–—،、，；（「『"
_FENCE = re.compile(r"^\s*```", re.MULTILINE)
_SENTENCE_END = re.compile(r"[.!?。！？．…](?=[\s\"'”’)\]]|$)|[。！？]")
# A Japanese particle or a Chinese word that needs another word after it.
_OPEN_WORDS = "をにへ将將把被和与與及或对對从從"
# Headings, list items, table rows, addresses, hashtags, `The answer is: 0.5`: lines that need no
# full stop.
_FREE_LINE = re.compile(
    r"^\s*(?:[#>|*+•·\-]|\d+[.)]|\w+:|https?://)|https?://\S+$|#\w+$|:\s*\S+(?:\s\S+)?$"
)


def find_truncation(row: Row, _config: TruncationCheck) -> Iterator[Found]:
    """Return the texts of a row's answers that end in the middle of something.

    Passages of a query are pieces of longer texts.
    """
    if row.is_query:
        return
    for column, text in answer_columns(row):
        if not column.endswith(("content", "text")):
            continue
        kind = kind_of_end(text.rstrip())
        if kind is not None:
            yield Found(column, kind, text.rstrip(), from_end=True)


def kind_of_end(text: str) -> str | None:
    """Return where a text breaks off, or None for a text that is whole."""
    if len(text) < MIN_CHARACTERS:
        return None
    if "```" in text and len(_FENCE.findall(text)) % 2:
        return "ends in a code block"
    if text[0] in "{[" and _is_open_json(text):
        return "ends in a JSON document"
    if text[-1] in _CUT_OFF and not text.endswith(("->", "--")):  # an arrow, a rule
        return "ends in a sentence"
    last = text.rsplit("\n", 1)[-1]
    if text[-1] in _OPEN_WORDS and len(_SENTENCE_END.findall(last)) >= 2:
        return "ends in a sentence"
    # Any other end than a letter or digit closes a sentence, a bracket or a quotation.
    if (
        len(text) >= MIN_PROSE
        and text[-1].isalnum()
        and not _ends_korean_sentence(text[-1])
        and len(_SENTENCE_END.findall(text)) >= 2
        and not _FREE_LINE.search(last)
        and len(last.split()) > 3
    ):
        return "ends in a sentence"
    return None


def _ends_korean_sentence(last: str) -> bool:
    """Return whether a syllable is one with which Korean sentences end, often without a stop."""
    is_noun_form = "가" <= last <= "힣" and (ord(last) - ord("가")) % 28 == 16  # 함, 됨, 음
    return last in "다요죠까네오라자" or is_noun_form


def _is_open_json(text: str) -> bool:
    """Return whether JSON is fine up to the end of the text, and not closed there."""
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        unfinished = (
            error.msg.startswith("Unterminated string") and '"' not in text[error.pos + 1 :]
        )
        return unfinished or error.pos >= len(text)
    except RecursionError:
        return False
    return False


CHECK = Check(
    "truncation",
    "answers that end too early",
    find=find_truncation,
    advice="Try: data.checks.truncation: fix, which drops these rows.",
)

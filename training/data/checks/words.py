"""Rows with a word of a list."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from functools import lru_cache

from training.config.checks import WordsCheck
from training.data.checks.check import Check, Found
from training.data.checks.texts import columns, seen_text
from training.data.row import Row

# Scripts that write words without spaces, or with endings that are part of the word.
_JOINED_RANGES = "぀-ヿ㐀-鿿가-힯฀-໿က-႟ក-៿\U00020000-\U0003ffff"
_JOINED = re.compile(f"[{_JOINED_RANGES}]")
_ARABIC = re.compile("[\u0600-\u06ff]")
# "And", "in", "for" and the article are written as a part of the next Arabic word.
_ARABIC_PREFIX = "[وف]?(?:[بك]?ال|لل|[بكل])?"


def find_words(row: Row, config: WordsCheck) -> Iterator[Found]:
    """Return the first word of the list in each text of a row."""
    if not config.words:
        return
    pattern = _pattern(config.words)
    for column, text in columns(row):
        found = pattern.search(seen_text(text))
        if found:
            yield Found(column, "word", found.group())


@lru_cache(maxsize=4)
def _pattern(words: tuple[str, ...]) -> re.Pattern[str]:
    """Return a pattern of whole words; a word of Korean, Chinese or Japanese matches anywhere."""
    words = tuple(seen_text(word) for word in words)
    parts = [re.escape(word) for word in words if _JOINED.search(word)]
    spaced = [
        (_ARABIC_PREFIX if _ARABIC.match(word) else "") + re.escape(word)
        for word in words
        if not _JOINED.search(word)
    ]
    if spaced:
        # A particle of Korean may follow a Latin word at once (`Acme는`). A mark, such as a vowel
        # of Hindi, belongs to the letter before it.
        border = f"(?:[^\\W{_JOINED_RANGES}]|[{_marks()}])"
        parts.append(rf"(?<!{border})(?:{'|'.join(spaced)})(?!{border})")
    return re.compile("|".join(parts), re.IGNORECASE)


@lru_cache(maxsize=1)
def _marks() -> str:
    """Return every combining mark of a script that writes words apart, which `\\w` leaves out."""
    marks = (
        chr(code) for code in range(0x300, 0x3000) if unicodedata.category(chr(code))[0] == "M"
    )
    return "".join(mark for mark in marks if not _JOINED.match(mark))


CHECK = Check(
    "words",
    "rows with a word of the list",
    find=find_words,
    advice="Try: data.checks.words.action: fix, which drops these rows.",
)

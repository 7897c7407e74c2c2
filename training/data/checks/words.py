"""Rows with a word of a list."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from functools import lru_cache

from training.config.checks import WordsCheck
from training.data.checks.check import Check, Found
from training.data.checks.texts import columns
from training.data.row import Row

# Scripts that write words without spaces, or with endings that are part of the word.
_JOINED_RANGES = "぀-ヿ㐀-鿿가-힯฀-๿"
_JOINED = re.compile(f"[{_JOINED_RANGES}]")
# A particle of Korean may follow a Latin word at once: `Acme는`.
_BORDER = f"[^\\W{_JOINED_RANGES}]"


def find_words(row: Row, config: WordsCheck) -> Iterator[Found]:
    """Return the first word of the list in each text of a row."""
    if not config.words:
        return
    pattern = _pattern(config.words)
    for column, text in columns(row):
        found = pattern.search(unicodedata.normalize("NFC", text))
        if found:
            yield Found(column, "word", found.group())


@lru_cache(maxsize=4)
def _pattern(words: tuple[str, ...]) -> re.Pattern[str]:
    """Return a pattern of whole words; a word of Korean, Chinese or Japanese matches anywhere."""
    words = tuple(unicodedata.normalize("NFC", word) for word in words)
    joined = [re.escape(word) for word in words if _JOINED.search(word)]
    spaced = [re.escape(word) for word in words if not _JOINED.search(word)]
    parts = [*joined]
    if spaced:
        parts.append(rf"(?<!{_BORDER})(?:{'|'.join(spaced)})(?!{_BORDER})")
    return re.compile("|".join(parts), re.IGNORECASE)


CHECK = Check(
    "words",
    "rows with a word of the list",
    find=find_words,
    advice="Try: data.checks.words.action: fix, which drops these rows.",
)

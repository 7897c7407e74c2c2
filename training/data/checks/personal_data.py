"""Likely personal data: mail addresses, phone numbers, and numbers with check digits.

Validity comes from python-stdnum and phonenumbers, so a number counts only if its check digit, its
date or its numbering plan is right. Findings show the kind and a masked value.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

from training.config.checks import PersonalDataCheck
from training.data.checks.check import Check, Found
from training.data.checks.texts import columns, map_texts
from training.data.row import Row


class Match(NamedTuple):
    """Personal data in a text."""

    start: int
    end: int
    kind: str


_EMAIL = re.compile(
    r"(?<![\w.+-])[A-Za-z0-9][\w.+-]{0,63}@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)+"
    r"[A-Za-z]{2,24}(?![\w@])",
    re.ASCII,
)
# Domains that RFC 2606 and RFC 6761 reserve for examples.
_RESERVED = re.compile(r"(?:^|[@.])(?:example\.(?:com|org|net)|[\w-]+\.(?:example|test|invalid))$")
_RESIDENT = re.compile(r"(?<![\w-])\d{6}-?[1-8]\d{6}(?![\w-])")
_CHINESE_RESIDENT = re.compile(r"(?<![\w-])[1-9]\d{16}[\dXx](?![\w-])")
_CARD = re.compile(r"(?<![\w.-])[2-6]\d{3}([ -]?)\d{4}\1\d{4}\1\d{1,7}(?![\w-])"
                   r"|(?<![\w.-])3[47]\d{2}([ -]?)\d{6}\2\d{5}(?![\w-])")  # fmt: skip
_IBAN = re.compile(r"(?<!\w)[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?!\w)")
_PHONE = re.compile(
    r"(?<![\w.+/=#:-])(?:\+\d{1,3}[ .-]?)?(?:\(\d{1,4}\)[ .-]?|\d{1,4}[ .-])?"
    r"\d{2,4}[ .-]\d{4}(?![\w-])"
    r"|(?<![\w.+/=#:-])(?:\+\d{8,15}|0\d{8,10})(?![\w-])"
    r"|(?<![\w.+/=#:-])\+\d{1,3}(?:[ .-]\d{1,4}){2,6}(?![\w-])"
    r"|(?<![\w.+/=#:-])0\d{1,4}[ ./-]\d{5,8}(?![\w-])"
)
_SECRET_PREFIXES = (
    "sk-", "hf_", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_", "glpat-", "AKIA", "xoxa-",
    "xoxb-", "xoxp-", "xoxr-", "xoxs-", "AIza",
)  # fmt: skip
_SECRET = re.compile(rf"(?<![\w-])(?:{'|'.join(_SECRET_PREFIXES)})[\w-]{{16,}}", re.ASCII)
_ISO_DATE = re.compile(r"\d{4}[ .-]\d{2}[ .-]\d{2}")
_HAS_NUMBER = re.compile(r"\d[\d .()/-]{6,}\d")
# Resident numbers of this day and later have no check digit.
_NO_CHECK_DIGIT_FROM = datetime.date(2020, 10, 5)


def find_personal_data(row: Row, config: PersonalDataCheck) -> Iterator[Found]:
    """Return the likely personal data of a row, masked."""
    for column, text in columns(row):
        for match in matches(text, config.regions):
            yield Found(column, match.kind, mask(text[match.start : match.end]))


def repair_personal_data(row: Row, config: PersonalDataCheck) -> Row:
    """Return the row with each likely personal datum replaced by its kind in brackets."""
    return map_texts(row, lambda text: without_personal_data(text, config.regions))


def without_personal_data(text: str, regions: tuple[str, ...] = ("KR", "US")) -> str:
    """Return the text with each likely personal datum replaced by its kind in brackets."""
    parts, at = [], 0
    for match in matches(text, regions):
        parts += [text[at : match.start], f"[{match.kind}]"]
        at = match.end
    return "".join([*parts, text[at:]])


def mask(value: str) -> str:
    """Return a value whose letters and digits are stars, except for the first and the last."""
    shown = {0, len(value) - 1} if len(value) > 4 else set()
    return "".join(
        "*" if character.isalnum() and index not in shown else character
        for index, character in enumerate(value)
    )


def matches(text: str, regions: tuple[str, ...]) -> list[Match]:
    """Return the likely personal data of a text, in order and without overlap."""
    found: list[Match] = []
    if "@" in text:
        found += [
            Match(*match.span(), "email")
            for match in _EMAIL.finditer(text)
            if not _RESERVED.search(match.group().rpartition("@")[2].lower())
        ]
    if any(prefix in text for prefix in _SECRET_PREFIXES):
        found += [Match(*match.span(), "secret") for match in _SECRET.finditer(text)]
    # Every kind below has eight digits in a row, with at most separators in between; an IBAN may
    # have letters there.
    if _HAS_NUMBER.search(text):
        for kind, pattern, is_valid in _NUMBERS:
            _add(found, text, kind, pattern, is_valid)
        _add(found, text, "phone", _PHONE, lambda value: _is_phone(value, regions))
    elif "IBAN" in text:
        _add(found, text, "iban", _IBAN, _is_iban)
    return sorted(found)


def _add(
    found: list[Match], text: str, kind: str, pattern: re.Pattern[str],
    is_valid: Callable[[str], bool],
) -> None:  # fmt: skip
    """Add the valid matches of a pattern that overlap with no earlier match."""
    for match in pattern.finditer(text):
        start, end = match.span()
        if all(end <= other.start or start >= other.end for other in found) and is_valid(
            match.group()
        ):
            found.append(Match(start, end, kind))


def _is_resident_number(value: str) -> bool:
    """Return whether date and check digit of a Korean resident or foreigner number are right."""
    from stdnum.exceptions import ValidationError
    from stdnum.kr import rrn

    digits = value.replace("-", "")
    try:
        born = rrn.get_birth_date(digits, allow_future=False)
    except ValidationError:
        return False
    if born >= _NO_CHECK_DIGIT_FROM and "-" in value:
        return True
    expected = int(rrn.calc_check_digit(digits[:-1]))
    # A foreigner's number has its check digit shifted by two, which python-stdnum does not know.
    shift = 2 if digits[6] in "5678" else 0
    return int(digits[-1]) == (expected + shift) % 10


def _is_chinese_resident_number(value: str) -> bool:
    from stdnum.cn import ric

    return bool(ric.is_valid(value))


def _is_card(value: str) -> bool:
    """Return whether a number of a card network's length passes Luhn's test."""
    from stdnum import luhn

    digits = value.replace(" ", "").replace("-", "")
    return 13 <= len(digits) <= 19 and len(set(digits)) > 2 and bool(luhn.is_valid(digits))


def _is_iban(value: str) -> bool:
    from stdnum import iban

    return bool(iban.is_valid(value))


def _is_phone(value: str, regions: tuple[str, ...]) -> bool:
    """Return whether a numbering plan has the number: any country's with `+`, else a region's."""
    import phonenumbers

    if _ISO_DATE.fullmatch(value):
        return False
    for region in regions if not value.startswith("+") else ("ZZ",):
        try:
            number = phonenumbers.parse(value, region)
        except phonenumbers.NumberParseException:
            continue
        if phonenumbers.is_valid_number(number):
            return True
    return False


_NUMBERS: tuple[tuple[str, re.Pattern[str], Callable[[str], bool]], ...] = (
    ("resident number", _RESIDENT, _is_resident_number),
    ("resident number", _CHINESE_RESIDENT, _is_chinese_resident_number),
    ("iban", _IBAN, _is_iban),
    ("card", _CARD, _is_card),
)

CHECK = Check(
    "personal_data",
    "likely personal data",
    find=find_personal_data,
    repair=repair_personal_data,
    advice="Try: data.checks.personal_data: fix, which replaces each by its kind, as [email].",
)

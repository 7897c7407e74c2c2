"""Likely personal data: mail addresses, phone numbers, and numbers with check digits.

Validity comes from python-stdnum and phonenumbers, so a number counts only if its check digit, its
date or its numbering plan is right. Findings show the kind and a masked value.
"""

from __future__ import annotations

import datetime
import importlib
import re
from collections.abc import Callable, Iterator
from functools import lru_cache
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


# In every pattern `\w` is ASCII: a Korean particle or a Chinese word may follow a number at once.
# `user@2x.png`, `a@b.mean()` and `git@host.org:path` are not addresses.
_EMAIL = re.compile(
    r"(?<![\w.+-])(?!git@[\w.-]+:)[A-Za-z0-9][\w.+-]{0,63}@(?![1-9]x\.)"
    r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)+[A-Za-z]{2,24}(?![\w@(])",
    re.ASCII,
)
# Domains that RFC 2606 and RFC 6761 reserve for examples.
_RESERVED = re.compile(r"(?:^|[@.])(?:example\.(?:com|org|net)|[\w-]+\.(?:example|test|invalid))$")
_RESIDENT = re.compile(r"(?<![\w-])\d{6}[ -]?[1-8]\d{6}(?![\w-])", re.ASCII)
_CHINESE_RESIDENT = re.compile(r"(?<![\w-])[1-9]\d{16}[\dXx](?![\w-])", re.ASCII)
# Cards that are valid in Korea only begin with 94.
# Four groups in a longer row of groups are cells of a table.
_CARD = re.compile(
    r"(?<![\w.-])(?<!\d{4}\s)(?:[2-6]\d|94)\d{2}([ -]?)\d{4}\1\d{4}\1\d{1,7}(?![\w-]|\s\d{4}\b)"
    r"|(?<![\w.-])3[047-9]\d{2}([ -]?)\d{6}\2\d{4,5}(?![\w-])",
    re.ASCII,
)
# Visa, whose numbers of 13 digits are gone; Mastercard, JCB and Korea; American Express; Diners;
# Maestro, Discover and UnionPay.
_NETWORKS = re.compile(
    r"4(?:\d{15}|\d{18})|(?:2[2-7]|35|5[1-5]|94)\d{14}|3[47]\d{13}|3[0689]\d{12}"
    r"|(?:5[06-8]|6\d)\d{14,17}"
)
_IBAN = re.compile(
    r"(?<!\w)[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?!\w)", re.ASCII
)
# `Tel:02-…` is a number, the end of `10:30-1130` and the difference `1600-1500=100` are none.
_BEFORE = r"(?<![\w.+/=#-])(?<!\d:)"
_PHONE = re.compile(
    rf"{_BEFORE}\+\d{{1,3}}[ .-]?(?:\(0\) ?)?\(?\d{{1,5}}\)?(?:[ ./-]?\d{{2,8}}){{1,4}}(?![\w-])"
    rf"|{_BEFORE}(?:\+\d{{1,3}}[ .)-]?|\d{{1,2}}[ .-])?(?:\(\d{{1,4}}\)[ .-]?|\d{{1,4}}[ .-])?"
    r"\d{2,4}[ .-]\d{4}(?![\w-]| ?=)"
    rf"|{_BEFORE}(?:\+\d{{8,15}}|0\d{{8,10}})(?![\w-])"
    rf"|{_BEFORE}\+\d{{1,3}}(?:[ .-]\d{{1,4}}){{2,6}}(?![\w-])"
    rf"|{_BEFORE}0\d{{1,2}}\) ?\d{{3,4}}[ .-]\d{{4}}(?![\w-])"
    rf"|{_BEFORE}0\d{{1,4}}[ ./-]\d{{5,8}}(?![\w-])",
    re.ASCII,
)
# Characters of Korean, Japanese and printed text that stand for ASCII ones; the digits of Arabic,
# Persian, Hindi and Thai.
_PRINTED = str.maketrans(
    "０１２３４５６７８９＠．＋－（）／‐‑‒–−\xa0\u2009\u202f\u3000",
    "0123456789@.+-()/-----    ",
) | {zero + digit: str(digit) for zero in (0x660, 0x6F0, 0x966, 0xE50) for digit in range(10)}
_HAS_PRINTED = re.compile(f"[{''.join(map(chr, _PRINTED))}]")
_YEARS = re.compile(r"(1\d{3}|20\d{2})[ .-](1\d{3}|20\d{2})")
_SECRETS = {
    "sk-": r"(?=[\w-]*\d)[\w-]{16,}", "hf_": r"[A-Za-z0-9]{30,}", "AKIA": r"[0-9A-Z]{16}\b",
    "ASIA": r"[0-9A-Z]{16}\b", "AIza": r"[\w-]{30,}", "gsk_": r"\w{30,}", "npm_": r"\w{30,}",
    "glpat-": r"[\w-]{16,}", "github_pat_": r"\w{20,}",
    **dict.fromkeys(("sk_live_", "rk_live_"), r"\w{16,}"),
    "-----BEGIN ": r"(?:[A-Z]+ )*PRIVATE KEY-----[^-]*(?:-----END [A-Z ]+-----)?",
    **dict.fromkeys(("ghp_", "gho_", "ghu_", "ghs_", "ghr_"), r"[A-Za-z0-9]{30,}"),
    **dict.fromkeys(("xoxa-", "xoxb-", "xoxp-", "xoxr-", "xoxs-"), r"[\w-]{10,}"),
}  # fmt: skip
"""The beginning of each kind of access key, and the pattern of the rest."""
_SECRET = re.compile(
    rf"(?<![\w-])(?:{'|'.join(prefix + rest for prefix, rest in _SECRETS.items())})", re.ASCII
)
_RESIDENTS = {
    region: (re.compile(rf"(?<![\w.-])(?:{pattern})(?![\w-])", re.ASCII), module)
    for region, pattern, module in (
        ("US", r"\d{3}-\d{2}-\d{4}", "us.ssn"),
        ("JP", r"\d{4} \d{4} \d{4}|\d{12}", "jp.in_"),
        ("BR", r"\d{3}\.\d{3}\.\d{3}-\d{2}|\d{11}", "br.cpf"),
        ("DE", r"\d{2} ?\d{3} ?\d{3} ?\d{3}", "de.idnr"),
        ("ES", r"\d{8}-?[A-Z]|[XYZ]\d{7}-?[A-Z]", "es.nif"),
        ("FR", r"[12] ?\d{2} ?\d{2} ?\d[\dAB] ?\d{3} ?\d{3} ?\d{2}", "fr.nir"),
        ("IN", r"\d{4}[ -]?\d{4}[ -]?\d{4}", "in_.aadhaar"),
        ("PL", r"\d{11}", "pl.pesel"),
        ("SE", r"(?:\d{2})?\d{6}[-+]\d{4}", "se.personnummer"),
    )
}
"""For each country that `regions` may name: how its residents' numbers look, and python-stdnum's
module that knows their check digits. Korean and Chinese ones are found everywhere."""
# Thirteen digits without a hyphen are rather a time in milliseconds, of 2017 to 2030, or the bar
# code of a Korean product than the number of a child or of a resident born in 1988.
_NO_RESIDENT = re.compile(r"1[5-8]\d{11}|880\d{10}")
_ISO_DATE = re.compile(r"\d{4}[ .-]\d{2}[ .-]\d{2}")
_HAS_NUMBER = re.compile(r"\d[\d .()/-]{5,}\d")
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
    if _HAS_PRINTED.search(text):
        text = text.translate(_PRINTED)  # one character for each, so that places stay
    if "@" in text:
        found += [
            Match(*match.span(), "email")
            for match in _EMAIL.finditer(text)
            if not _RESERVED.search(match.group().rpartition("@")[2].lower())
        ]
    if any(prefix in text for prefix in _SECRETS):
        found += [Match(*match.span(), "secret") for match in _SECRET.finditer(text)]
    # Every kind below has seven digits in a row, with at most separators in between; an IBAN may
    # have letters there.
    if _HAS_NUMBER.search(text):
        for kind, pattern, is_valid in _NUMBERS:
            _add(found, text, kind, pattern, is_valid)
        for region, (pattern, module) in _RESIDENTS.items():
            if region in regions:
                _add(found, text, "resident number", pattern, _validity(module))
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

    digits = value.replace("-", "").replace(" ", "")
    if _NO_RESIDENT.fullmatch(value) and (digits[0] == "1" or _is_bar_code(digits)):
        return False
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


def _is_bar_code(digits: str) -> bool:
    from stdnum import ean

    return bool(ean.is_valid(digits))


def _is_chinese_resident_number(value: str) -> bool:
    from stdnum.cn import ric

    return bool(ric.is_valid(value))


@lru_cache(maxsize=len(_RESIDENTS))
def _validity(module: str) -> Callable[[str], bool]:
    """Return the function of python-stdnum that says whether a number of a country is valid."""
    found: Callable[[str], bool] = importlib.import_module(f"stdnum.{module}").is_valid
    return found


def _is_card(value: str) -> bool:
    """Return whether a number has a card network's beginning and length, and passes Luhn's test."""
    from stdnum import luhn

    digits = value.replace(" ", "").replace("-", "")
    return (
        bool(_NETWORKS.fullmatch(digits)) and len(set(digits)) > 1 and bool(luhn.is_valid(digits))
    )


def _is_iban(value: str) -> bool:
    from stdnum import iban

    return bool(iban.is_valid(value))


def _is_phone(value: str, regions: tuple[str, ...]) -> bool:
    """Return whether a numbering plan has the number: any country's with `+`, else a region's."""
    import phonenumbers

    years = _YEARS.fullmatch(value)
    if _ISO_DATE.fullmatch(value) or (years and years[1] <= years[2]):
        return False
    digits = re.sub(r"\D", "", value)
    for region in regions if not value.startswith("+") else ("ZZ",):
        # phonenumbers takes 100-200-3000 and 2400-1000 for Korean numbers without their zero; only
        # those of companies, such as 1588-1234, have none.
        is_company = len(digits) == 8 and digits[0] == "1"
        if region == "KR" and not is_company and not digits.startswith(("0", "82")):
            continue
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

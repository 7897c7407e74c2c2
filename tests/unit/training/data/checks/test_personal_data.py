"""Numbers whose check digits are computed here, and texts that only look like personal data."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.training.data.checks.made import checked, clean_rows, result_of, row
from training.config.checks import PersonalDataCheck
from training.data.checks.personal_data import (
    find_personal_data,
    mask,
    matches,
    without_personal_data,
)


def resident_number(front: str, back: str) -> str:
    """Return a resident number: the check digit of the law's formula follows twelve digits."""
    weights = (2, 3, 4, 5, 6, 7, 8, 9, 2, 3, 4, 5)
    total = sum(w * int(d) for w, d in zip(weights, front + back, strict=True))
    shift = 2 if back[0] in "5678" else 0
    return f"{front}-{back}{(11 - total % 11 + shift) % 10}"


def card_number(digits: str) -> str:
    """Return the digits with Luhn's check digit."""
    doubled = [int(d) * (2 if i % 2 == 0 else 1) for i, d in enumerate(reversed(digits))]
    return digits + str(-sum(sum(divmod(d, 10)) for d in doubled) % 10)


def iban(country: str, account: str) -> str:
    """Return an account with the check digits of ISO 13616."""
    number = "".join(str(int(c, 36)) for c in account + country + "00")
    return f"{country}{98 - int(number) % 97:02d}{account}"


BAD = {
    "Write to kim.minsu@naver.com soon": "email",
    "Mail:a.b+c@mail.tuneline.io.": "email",
    "Call 010-2345-6789 now": "phone",
    "전화 02-312-3456 입니다": "phone",
    "Call +82 10 2345 6789": "phone",
    "Call (212) 736-5000 today": "phone",
    "Ring +14155552671": "phone",
    f"주민번호 {resident_number('880101', '123456')}": "resident number",
    f"외국인 {resident_number('900315', '512345')}": "resident number",
    "born late 210304-3987654": "resident number",
    f"Card {card_number('453201511283036')}": "card",
    f"Card {card_number('37828224631000')}": "card",
    f"to {iban('DE', '370400440532013000')} please": "iban",
    "key sk-abcdefghijklmnop1234 here": "secret",
    "010-2345-6789로 연락주세요": "phone",
    "اتصل على ٠١٠-٢٣٤٥-٦٧٨٩": "phone",
    "02-312-3456입니다": "phone",
    "고객센터 1588-1234": "phone",
    "전화번호는010-2345-6789": "phone",
    "전화:010-2345-6789": "phone",
    "Tel:02-312-3456": "phone",
    "02) 312-3456": "phone",
    "1-800-736-5000 is free": "phone",
    "ring +44 (0)20 7930 4832": "phone",
    "Ruf +49 (0)30 12345670": "phone",
    f"주민번호는 {resident_number('880101', '123456')}입니다": "resident number",
    f"카드 {card_number('453201511283036')}로": "card",
    f"Diners {card_number('3056930902590')[:4]} 930902 5904": "card",
    f"계좌 {iban('DE', '370400440532013000')}로": "iban",
    "SSN 123-45-6789": "resident number",
    f"주민번호 {resident_number('880101', '123456').replace('-', ' ')}": "resident number",
    f"주민번호 {resident_number('880101', '123456').replace('-', '–')}": "resident number",
    f"국내전용 {card_number('941061000000123')}": "card",
    "전화 ０１０－２３４５－６７８９": "phone",
    "010‑2345‑6789": "phone",
    "010\xa02345\xa06789": "phone",
    "82-10-2345-6789": "phone",
    "+82)10-2345-6789": "phone",
    "Ruf +49 30 901820": "phone",
    "write to kim.minsu＠naver.com": "email",
    "key sk_live_4eC39HqLyjWDarjtT1zdp7dc": "secret",
    "-----BEGIN RSA PRIVATE KEY-----\nMIIEow\n-----END RSA PRIVATE KEY-----": "secret",
}


@pytest.mark.parametrize("beginning", ["880123456789", "54012345678", "2112345678901234"])
def test_a_number_with_luhns_digit_that_no_network_has_is_no_card(beginning: str) -> None:
    assert matches(f"SKU {card_number(beginning)}", ()) == []


@pytest.mark.parametrize(("text", "kind"), BAD.items())
def test_personal_data_is_found(text: str, kind: str) -> None:
    assert [match.kind for match in matches(text, ("KR", "US"))] == [kind]


RIGHT = resident_number("880101", "123456")
WRONG_DIGIT = RIGHT[:-1] + str((int(RIGHT[-1]) + 1) % 10)


@pytest.mark.parametrize(
    "text",
    [
        f"the number {WRONG_DIGIT}",
        f"no such day: {resident_number('881301', '123456')}",
        f"Card {card_number('453201511283036')[:-1]}0",
        "Order 4532-0000-0000",
        "Write to help@example.com or to a@b.test",
        "They need <<2500-1200=1300>>1300 more, or 1600-1500 = 100.",
        f"Card {card_number('453201511283')}",
        "The meeting is on 2026-11-28 at 10:30, room 0304",
        "Version 10.15.7 of 2024.01.02, build 19H1323",
        "192.168.100.200:8080 and 10.0.0.1",
        "sha256 5d41402abc4b2a76b9719d911017c592",
        "Ticket 20261128-0042 costs 1,234,567 won",
        "@user follows @other; x@y",
        "DE89 3704 0044 0532 0130 01 is mistyped",
        "coordinates 37.5665, 126.9780",
        "git clone git@github.com:org/repo.git",
        "<img src='logo@2x.png'>",
        "scores = q@k.transpose(1, 2)",
        "hf_tokenizer_config_path and hf_hub_download_function",
        "use sk-learn-style-pipelines-here",
        "from 1800-1899 and 1588-1600",
        "SSN 000-45-6789",
        '{"created_at": 1704067200008}',  # 1 January 2024, in milliseconds
        "bar code 8801235000047",
        "5293 5326 5360 5394 5428 5462 5496 5531",  # a row of a table; four have Luhn's digit
    ],
)
def test_numbers_that_are_no_personal_data_are_not_found(text: str) -> None:
    assert matches(text, ("KR", "US")) == []


@pytest.mark.parametrize("number", ["030 12345670", "0171 2345678", "0171/2345678"])
def test_numbers_of_a_named_region_are_found(number: str) -> None:
    assert [match.kind for match in matches(f"Ruf {number} an.", ("DE",))] == ["phone"]


@pytest.mark.parametrize(
    ("region", "number", "wrong"),
    [
        ("BR", "529.982.247-25", "529.982.247-26"),
        ("ES", "54362315K", "54362315Z"),
        ("FR", "2 95 10 99 126 111 93", "2 95 10 99 126 111 94"),
        ("PL", "44051401359", "44051401358"),
        ("SE", "880320-0016", "880320-0018"),
        ("DE", "36 574 261 809", "36 574 261 890"),
    ],
)
def test_resident_numbers_of_a_named_region_are_found(region: str, number: str, wrong: str) -> None:
    assert [match.kind for match in matches(f"no {number}, ok", (region,))] == ["resident number"]
    kinds = [match.kind for match in matches(f"no {wrong}, ok", (region,))]
    assert "resident number" not in kinds


def test_findings_show_a_masked_value_only() -> None:
    secret = "kim.minsu@naver.com"
    (found,) = find_personal_data(row(f"I am {secret}", "Thanks."), PersonalDataCheck())
    assert (found.column, found.kind) == ("prompt[0].content", "email")
    assert found.excerpt == "k**.*****@*****.**m"


def test_no_excerpt_of_any_check_shows_personal_data(tmp_path: Path) -> None:
    number = resident_number("880101", "123456")
    prompt = f"My number is {number}, my mail is kim.minsu@naver.com"
    rows = [*clean_rows(20), row(prompt, "One.", 21), row(prompt, "Two.", 22)]
    found = checked(tmp_path, rows)
    shown = str([result.as_json() for result in found.results])
    assert result_of(found, "contradictions").num_rows == 2
    assert result_of(found, "personal_data").kinds == {"email": 2, "resident number": 2}
    assert number not in shown
    assert "kim.minsu" not in shown


def test_fix_replaces_personal_data_everywhere(tmp_path: Path) -> None:
    arguments = {"to": "kim.minsu@naver.com", "tries": 3}
    call = {"type": "function", "function": {"name": "send", "arguments": arguments}}
    answer = {"role": "assistant", "content": "Sent.", "tool_calls": [call]}
    bad = row("Write to kim.minsu@naver.com", "", 21)
    bad = type(bad)(prompt=bad.prompt, completion=(answer,), line=21, file="rows.jsonl")
    found = checked(tmp_path, [*clean_rows(20), bad], personal_data="fix")
    assert result_of(found, "personal_data").num_changed == 1
    *_, last = found.rows(False)
    assert last.prompt[0]["content"] == "Write to [email]"
    called = last.completion[0]["tool_calls"][0]["function"]["arguments"]
    assert called == {"to": "[email]", "tries": 3}


@settings(derandomize=True, max_examples=200, deadline=None)
@given(st.text(alphabet="0123456789-+() .@aAzk한", max_size=80))
def test_masked_text_has_no_personal_data_left(text: str) -> None:
    shown = without_personal_data(text)
    assert without_personal_data(shown) == shown


@settings(derandomize=True, max_examples=100, deadline=None)
@given(st.text(max_size=40))
def test_a_mask_keeps_the_length_and_at_most_two_letters(text: str) -> None:
    masked = mask(text)
    assert len(masked) == len(text)
    assert sum(character.isalnum() for character in masked) <= 2

"""chrF and ROUGE-L, with values counted by hand."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.training.evaluation.metrics.rows import made
from training.config import EvaluationConfig
from training.evaluation.answer_text import text_tokens
from training.evaluation.metrics.chrf import score_chrf
from training.evaluation.metrics.rouge_l import common_length, rouge_l

KOREAN = "주문을 취소했습니다."
JAPANESE = "注文を取り消しました。"


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("The cat's 3 hats.", ["the", "cat", "s", "3", "hats"]),
        ("주문 2건", ["주", "문", "2", "건"]),
        ("注文を2件", ["注", "文", "を", "2", "件"]),
        ("Straße", ["strasse"]),
        ("हिन्दी में", ["हिन्दी", "में"]),  # vowel signs belong to their word
        ("ไทย", ["ไ", "ท", "ย"]),
        (unicodedata.normalize("NFD", "한글"), ["한", "글"]),
        ("¿Qué?", ["qué"]),
        ("...", []),
    ],
)
def test_tokens_of_a_text(text: str, tokens: list[str]) -> None:
    assert text_tokens(text) == tokens


@pytest.mark.parametrize(
    ("expected", "answer", "value"),
    [
        (KOREAN, KOREAN, 1.0),
        (JAPANESE, JAPANESE, 1.0),
        # rouge-score says 1.0: they share the digit only. One token of 3 and 4.
        ("3월 회의", "배송 3일", 2 * 1 / (4 + 4)),
        ("고양이가 잔다", "개가 짖는다", 2 * 2 / (6 + 5)),  # 가 and 다
        ("東京に行く", "京都に行く", 2 * 4 / (5 + 5)),  # 京 に 行 く
        ("the cat sat", "the dog sat", 2 * 2 / 6),
        ("a b c d", "d c b a", 2 * 1 / 8),
        ("yes", "no", 0.0),
        ("yes", "", 0.0),
        ("...", "!", 1.0),  # no token on either side
        ("네", "<think>음</think>네", 1.0),
    ],
)
def test_rouge_l_equals_hand_counted_values(expected: str, answer: str, value: float) -> None:
    assert rouge_l(expected, answer) == pytest.approx(value)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.text("abc가나", max_size=12), st.text("abc가나", max_size=12))
def test_the_common_length_equals_the_textbook_table(first: str, second: str) -> None:
    table = [[0] * (len(second) + 1) for _ in range(len(first) + 1)]
    for i, a in enumerate(first, start=1):
        for j, b in enumerate(second, start=1):
            table[i][j] = (
                table[i - 1][j - 1] + 1 if a == b else max(table[i - 1][j], table[i][j - 1])
            )
    assert common_length(list(first), list(second)) == table[-1][-1]


@pytest.mark.parametrize(
    ("expected", "answer", "value"),
    [
        (KOREAN, KOREAN, 100.0),
        (JAPANESE, JAPANESE, 100.0),
        ("네", "네", 100.0),
        ("네", "아니요", 0.0),
        ("", "<think>Nothing to say.</think>", 100.0),
        ("", "네", 0.0),
        ("네", "", 0.0),
        (unicodedata.normalize("NFD", "취소"), "취소", 100.0),
        # 1-grams: 2 of 3 given, 2 of 2 expected. 2-grams: 1 of 2 given, 1 of 1 expected. The
        # expected answer has no longer n-gram, so their mean is over the first two orders:
        # precision (2/3 + 1/2) / 2, recall 1, F with beta 2.
        ("가나", "가나다", 100 * 5 * (7 / 12) / (4 * (7 / 12) + 1)),
    ],
)
def test_chrf_equals_hand_counted_values(expected: str, answer: str, value: float) -> None:
    (found,) = score_chrf(made([(expected, answer)]), EvaluationConfig()).values
    assert found == pytest.approx(value, abs=0.01)


def test_chrf_of_the_corpus_reads_every_pair() -> None:
    # A corpus with the references the wrong way round would score the first pair only.
    pairs = [("가나다라", "가나다라"), ("마바사아", "자차카타")]
    scored = score_chrf(made(pairs), EvaluationConfig())
    assert scored.values == [pytest.approx(100.0), pytest.approx(0.0)]
    assert scored.details["corpus"] == pytest.approx(50.0, abs=0.01)

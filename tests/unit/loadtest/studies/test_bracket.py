"""The rates of a search against endpoints whose highest rate is known."""

import math

import pytest

from loadtest.studies.bracket import Outcome, bracket


def tried(
    highest: float, *, floor: float = 0.0, start: float = 1.0, most: float = 1000.0,
    precision: float = 0.1,
) -> tuple[list[float], float | None, float | None]:  # fmt: skip
    """Return the rates tried, the best and the failing, for an endpoint that holds `highest`."""
    search = bracket(start, most, precision)
    rates = [next(search)]
    while True:
        outcome: Outcome = "holds"
        if rates[-1] > highest:
            outcome = "fails"
        elif rates[-1] < floor:
            outcome = "too low"
        try:
            rates.append(search.send(outcome))
        except StopIteration as end:
            best, failing = end.value
            return rates, best, failing


@pytest.mark.parametrize("highest", [0.9, 1.0, 1.7, 13.0, 64.0, 300.0])
@pytest.mark.parametrize("precision", [0.05, 0.1, 0.5])
def test_the_result_is_within_the_precision_of_the_truth(highest: float, precision: float) -> None:
    rates, best, failing = tried(highest, precision=precision)
    assert best is not None and failing is not None
    assert best <= highest < failing
    assert failing / best - 1 <= precision
    assert len(rates) <= 16


def test_it_doubles_and_then_bisects_on_a_logarithmic_scale() -> None:
    rates, best, failing = tried(5.0, precision=0.5)
    assert rates == [1.0, 2.0, 4.0, 8.0, pytest.approx(math.sqrt(32))]
    assert best == 4.0
    assert failing == pytest.approx(math.sqrt(32))


def test_a_search_that_begins_low_goes_on_to_the_truth() -> None:
    _, best, failing = tried(900.0, start=0.001)
    assert best is not None and failing is not None
    assert best <= 900.0 < failing <= 1.1 * best


def test_no_rate_above_the_highest_allowed_is_tried() -> None:
    rates, best, failing = tried(math.inf, most=100.0)
    assert rates[-1] == max(rates) == best == 100.0
    assert failing is None


def test_it_gives_up_below_an_eighth_of_the_first_rate() -> None:
    rates, best, failing = tried(0.0, start=8.0)
    assert rates == [8.0, 4.0, 2.0, 1.0, 0.5]
    assert (best, failing) == (None, 0.5)


def test_a_rate_that_is_too_low_is_left_upwards() -> None:
    rates, best, failing = tried(100.0, floor=10.0, precision=0.3)
    assert rates[:5] == [1.0, 2.0, 4.0, 8.0, 16.0]
    assert best is not None and failing is not None
    assert 10.0 <= best <= 100.0 < failing


def test_no_rate_meets_a_floor_above_what_the_endpoint_holds() -> None:
    rates, best, failing = tried(20.0, floor=30.0)
    assert best is None
    assert failing is not None and failing > 20.0
    assert len(rates) <= 16


def whole(
    highest: float, *, start: float = 1.0, most: float = 1000.0, precision: float = 0.1
) -> tuple[list[float], float | None, float | None]:
    """Return the numbers of streams tried, the best and the failing."""
    search = bracket(start, most, precision, is_whole=True)
    tried = [next(search)]
    while True:
        try:
            tried.append(search.send("holds" if tried[-1] <= highest else "fails"))
        except StopIteration as end:
            best, failing = end.value
            return tried, best, failing


@pytest.mark.parametrize("highest", [1, 2, 3, 5, 6, 7, 15, 16, 17, 100, 999])
@pytest.mark.parametrize("start", [1, 4, 7])
def test_streams_are_whole_numbers_and_end_next_to_each_other(highest: int, start: int) -> None:
    tried, best, failing = whole(highest, start=start, precision=0.001)
    assert all(value == round(value) >= 1 for value in tried)
    assert best is not None and failing is not None
    assert (best, failing) == (highest, highest + 1)
    assert len({*tried}) == len(tried)


def test_a_search_without_a_precision_ends() -> None:
    rates, best, failing = tried(5.0, precision=0.0)
    # 1, 2, 4 and 8, and 16 bisections between the last two.
    assert len(rates) == 4 + 16
    assert best is not None and failing is not None
    assert 0 < failing / best - 1 < 2e-5


def test_one_stream_is_the_least() -> None:
    assert whole(0) == ([1.0], None, 1.0)
    assert whole(0, start=4) == ([4.0, 2.0, 1.0], None, 1.0)
    assert whole(2000, most=8.0) == ([1.0, 2.0, 4.0, 8.0], 8.0, None)


def test_a_search_that_does_not_go_down_ends_with_its_first_failure() -> None:
    search = bracket(4.0, 100.0, 0.5, goes_down=False)
    assert next(search) == 4.0
    with pytest.raises(StopIteration) as end:
        search.send("fails")
    assert end.value.value == (None, 4.0)
    search = bracket(4.0, 100.0, 0.5, goes_down=False)
    next(search)
    assert search.send("holds") == 8.0
    assert search.send("fails") == pytest.approx(math.sqrt(32.0))

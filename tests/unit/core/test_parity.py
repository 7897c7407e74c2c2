"""The comparison of a form with the reference, against values computed by hand."""

import math
from pathlib import Path

import pytest

from tuneline.core.errors import VerdictError
from tuneline.core.parity import Parity, compare
from tuneline.core.parity_report import describe, markdown, write_parity
from tuneline.core.reference import Continuation
from tuneline.core.tolerances import (
    ARITHMETIC_TOLERANCES,
    WEIGHT_TOLERANCES,
    Tolerances,
    add_tolerances,
)
from tuneline.core.verdict import require_verdict
from tuneline.pipeline.artifact_summary import summarize


def answer(
    token_ids: list[int],
    logprobs: list[float] | None = None,
    top: list[dict[int, float]] | None = None,
    prompt: tuple[int, ...] = (1, 2),
    text: str = "",
) -> Continuation:
    return Continuation(
        messages=[{"role": "user", "content": "q"}],
        prompt_token_ids=list(prompt),
        token_ids=token_ids,
        logprobs=logprobs or [-0.1] * len(token_ids),
        top_logprobs=top or [{} for _ in token_ids],
        text=text,
        finish_reason="stop",
    )


def test_equal_answers_pass() -> None:
    reference = [answer([5, 6, 7]), answer([8])]
    parity = compare("merged", reference, reference, Tolerances())
    assert parity.verdict == "PASS"
    assert (parity.greedy_agreement, parity.token_agreement) == (1.0, 1.0)
    assert (parity.num_tokens, parity.num_agreeing_tokens) == (4, 4)
    assert parity.max_logprob_difference == 0.0
    assert parity.mean_kl == 0.0


def test_differences_are_taken_up_to_the_first_divergence() -> None:
    top: list[dict[int, float]] = [{5: -0.1}, {6: -0.5, 9: -1.2}, {7: -0.1}]
    reference = [answer([5, 6, 7], [-0.1, -0.5, -0.1], top, text="say yes")]
    theirs = [{5: -0.12}, {9: -0.5, 6: -1.4}, {7: -3.0}]
    candidate = [answer([5, 9, 7], [-0.12, -0.5, -3.0], theirs, text="say no")]
    parity = compare("served", reference, candidate, Tolerances())
    assert parity.num_agreeing_tokens == 1
    assert parity.max_logprob_difference == pytest.approx(0.9)  # of token 6, where they part
    assert parity.mean_logprob_difference == pytest.approx((0.02 + 0.9) / 2)
    assert parity.verdict == "FAIL"
    (divergence,) = parity.first_divergences
    assert (divergence.position, divergence.expected_text, divergence.found_text) == (
        1,
        "yes",
        "no",
    )
    assert divergence.expected_margin == pytest.approx(0.7)
    assert "greedy_agreement is 0.0000; expected at least 1" in parity.problems
    assert "'yes'" in describe(parity)
    assert "FAIL" in describe(parity)


def test_an_answer_that_goes_on_or_stops_early_diverges() -> None:
    reference = [answer([5, 6]), answer([5, 6])]
    candidate = [answer([5, 6, 7]), answer([5])]
    parity = compare("merged", reference, candidate, Tolerances(min_greedy_agreement=0.0))
    assert parity.num_equal_answers == 0
    assert [d.position for d in parity.first_divergences] == [2, 1]


def test_other_prompt_ids_fail_even_with_equal_answers() -> None:
    parity = compare("served", [answer([5])], [answer([5], prompt=(1, 3))], Tolerances())
    assert parity.num_prompts_with_equal_ids == 0
    assert "chat template or the tokenizer differs" in parity.problems[0]


def test_kl_uses_one_bucket_for_the_rest() -> None:
    p = {5: math.log(0.6), 6: math.log(0.3)}
    q = {5: math.log(0.5), 6: math.log(0.3), 7: math.log(0.1)}
    parity = compare("q", [answer([5], top=[p])], [answer([5], top=[q])], Tolerances())
    expected = 0.6 * math.log(0.6 / 0.5) + 0.1 * math.log(0.1 / 0.2)
    assert parity.mean_kl == pytest.approx(expected)


def test_nan_never_passes() -> None:
    parity = compare("merged", [answer([5])], [answer([5], [math.nan])], Tolerances())
    assert parity.verdict == "FAIL"


@pytest.mark.parametrize("token", [6, 7], ids=["one figure of several", "at a divergence"])
def test_nan_among_other_figures_never_passes(token: int) -> None:
    lenient = Tolerances(
        min_greedy_agreement=None, min_token_agreement=None, mean_logprob_difference=None
    )
    candidate = answer([5, token], [-0.1, math.nan], [{5: -0.1}, {token: math.nan}])
    parity = compare("m", [answer([5, 6], top=[{5: -0.1}, {6: -0.1}])], [candidate], lenient)
    assert parity.max_logprob_difference is None and parity.mean_kl is None
    assert parity.verdict == "FAIL"


def test_nothing_to_compare_is_an_error_and_no_common_token_fails() -> None:
    with pytest.raises(ValueError, match="0 candidates for 0"):
        compare("merged", [], [], Tolerances())
    with pytest.raises(ValueError, match="1 candidates for 2"):
        compare("merged", [answer([1]), answer([2])], [answer([1])], Tolerances())
    parity = compare("m", [answer([1])], [answer([2])], Tolerances(min_greedy_agreement=0.0))
    assert parity.verdict == "FAIL"
    # Each gives its own token 0.905: at most what is left is the form's for the reference's.
    left = math.log(1 - math.exp(-0.1))
    assert parity.max_logprob_difference == pytest.approx(-0.1 - left)
    lenient = Tolerances(min_greedy_agreement=None, min_token_agreement=None)
    unknown = compare("m", [answer([1])], [answer([])], lenient)
    assert unknown.verdict == "FAIL" and "unknown" in describe(unknown)


def test_a_comparison_survives_its_artifact(tmp_path: Path) -> None:
    parity = compare("m", [answer([1])], [answer([2])], Tolerances())
    artifact = write_parity(tmp_path / "p", parity, Tolerances(), config={}, inputs=[])
    assert Parity.model_validate_json((artifact.path / "parity.json").read_text()) == parity
    assert "FAIL" in summarize(artifact)
    with pytest.raises(VerdictError, match="greedy_agreement"):
        require_verdict(artifact)


def test_right_answers_are_counted_where_the_data_gives_them() -> None:
    def with_text(text: str, expected: str | None) -> Continuation:
        return answer([len(text.strip())], text=text).model_copy(update={"expected": expected})

    # The generation prompt has opened the block of the first, so its text has no mark for that.
    thought = "It asks.\n</think>\n\nyes"
    reference = [with_text(thought, "yes"), with_text("no", " no\n"), with_text("?", None)]
    candidate = [with_text("yes ", None), with_text("maybe", None), with_text("!!", None)]
    unjudged = {
        name: None for name in Tolerances.model_fields if name != "max_accuracy_drop"
    }  # fmt: skip
    allowed = Tolerances(**unjudged, max_accuracy_drop=0.5)
    parity = compare("int4", reference, candidate, allowed, reference_noise=3e-6)
    assert (parity.num_expected_answers, parity.reference_accuracy, parity.accuracy) == (2, 1, 0.5)
    assert parity.reference_noise == 3e-6
    assert parity.verdict == "PASS"
    strict = compare("int4", reference, candidate, Tolerances(**unjudged, max_accuracy_drop=0.49))
    assert strict.problems == [
        "accuracy is 0.5000, the trained model's is 1.0000; expected a drop of at most 0.49"
    ]


def test_the_same_tokens_must_read_the_same() -> None:
    reference = [answer([5], text="the printer"), answer([6], text="cut \ufffd"), answer([7])]
    same = [answer([5], text=" the printer\n"), answer([6], text="cut"), answer([8], text="else")]
    unjudged = Tolerances(min_greedy_agreement=None, max_logprob_difference=None)
    assert compare("served", reference[:2], same[:2], Tolerances()).verdict == "PASS"
    assert compare("served", reference, same, unjudged).num_other_texts == 0
    other = [answer([5], text="the\u0120printer"), same[1]]
    parity = compare("merged", reference[:2], other, Tolerances())
    assert (parity.verdict, parity.num_equal_answers, parity.num_other_texts) == ("FAIL", 2, 1)
    assert "the tokenizer decodes differently" in parity.problems[0]


def test_a_proof_says_where_stopping_was_not_tested() -> None:
    cut = [answer([5]).model_copy(update={"finish_reason": "length"})]
    parity = compare("merged", cut, cut, Tolerances())
    assert (parity.verdict, parity.num_stopped) == ("PASS", 0)
    assert "stopping was not tested" in describe(parity)
    assert "stopping" not in describe(compare("merged", [answer([5])], [answer([5])], Tolerances()))


def test_a_proof_says_how_long_its_longest_text_is() -> None:
    answers = [answer([5]), answer([5, 6, 7], prompt=(1, 2, 3, 4)), answer([5, 6])]
    parity = compare("merged", answers, answers, Tolerances())
    assert parity.longest_tokens == 7
    assert "The longest prompt with its answer has 7 tokens" in markdown([parity])


def test_a_figure_without_a_tolerance_is_reported_and_not_judged() -> None:
    reference = [answer([5, 6], [-0.1, -0.2])]
    candidate = [answer([5, 7], [-2.1, -0.2])]
    unjudged = Tolerances(
        min_greedy_agreement=None, max_logprob_difference=None, mean_logprob_difference=None
    )
    parity = compare("pruned", reference, candidate, unjudged)
    assert (parity.verdict, parity.greedy_agreement) == ("PASS", 0.0)
    assert parity.max_logprob_difference == pytest.approx(2.0)


def test_the_divergence_counts_at_the_position_where_they_part() -> None:
    """Every answer but one is wrong from its first token: nothing agrees, and all of it shows."""
    p, q = {5: math.log(0.9), 6: math.log(0.05)}, {9: math.log(0.99), 5: math.log(0.001)}
    reference = [answer([5, 5], [math.log(0.9)] * 2, [p, p])] * 4
    wrong = answer([9, 9], [math.log(0.99)] * 2, [q, q])
    lenient = Tolerances(
        min_greedy_agreement=None, min_token_agreement=None, max_logprob_difference=None,
        mean_logprob_difference=None, mean_kl=0.02,
    )  # fmt: skip
    parity = compare("pruned", reference, [reference[0], wrong, wrong, wrong], lenient)
    # One answer of two equal positions, and three positions at which they part.
    kl = 0.9 * math.log(0.9 / 0.001) + 0.1 * math.log(0.1 / 0.999)
    assert parity.mean_kl == pytest.approx(3 * kl / 5)
    assert parity.mean_logprob_difference == pytest.approx(3 * math.log(900) / 5)
    assert parity.verdict == "FAIL" and "mean_kl" in parity.problems[0]


def test_an_unlisted_token_is_at_most_as_likely_as_the_last_listed_token() -> None:
    p, q = {5: math.log(0.9)}, {9: math.log(0.6), 8: math.log(0.1)}
    found = compare(
        "m", [answer([5], [math.log(0.9)], [p])], [answer([9], [math.log(0.6)], [q])], Tolerances()
    )
    assert found.max_logprob_difference == pytest.approx(math.log(0.9 / 0.1))
    assert found.mean_kl == pytest.approx(0.9 * math.log(9) + 0.1 * math.log(0.1 / 0.9))


def test_tokens_that_agree_are_judged_in_every_form() -> None:
    """Where the two differ by little, and their answers part all the same."""
    near = [{5: math.log(0.5), 6: math.log(0.5)}] * 4
    half = [math.log(0.5)] * 4
    reference = [answer([5] * 4, half, near)] * 4
    candidate = [answer([5] * 4, half, near)] * 2 + [answer([6] * 4, half, near)] * 2
    assert compare("m", reference, candidate, WEIGHT_TOLERANCES["pruned"]).problems == [
        "token_agreement is 0.5000; expected at least 0.7"
    ]
    for numbers, tolerances in {**WEIGHT_TOLERANCES, **ARITHMETIC_TOLERANCES}.items():
        assert tolerances.min_token_agreement is not None, numbers
        assert tolerances.min_token_agreement >= 0.7, numbers


def test_what_rounding_and_arithmetic_cost_adds_up() -> None:
    weights = Tolerances(
        min_greedy_agreement=0.95, min_token_agreement=0.9, max_logprob_difference=0.15,
        mean_logprob_difference=0.005, mean_kl=2e-4, max_accuracy_drop=0.05,
    )  # fmt: skip
    arithmetic = Tolerances(
        min_greedy_agreement=0.9, min_token_agreement=0.8, max_logprob_difference=0.5,
        mean_logprob_difference=0.05,
    )  # fmt: skip
    assert add_tolerances(weights, arithmetic) == Tolerances(
        min_greedy_agreement=0.85, min_token_agreement=0.7, max_logprob_difference=0.65,
        mean_logprob_difference=0.055, mean_kl=2e-4, max_accuracy_drop=0.05,
    )  # fmt: skip
    # A figure that either side leaves unjudged is unjudged, and no limit falls below zero.
    pruned = weights.model_copy(
        update={"min_greedy_agreement": None, "max_logprob_difference": None}
    )
    assert add_tolerances(pruned, arithmetic).min_greedy_agreement is None
    assert add_tolerances(pruned, arithmetic).max_logprob_difference is None
    little = Tolerances(min_greedy_agreement=0.3)
    assert add_tolerances(little, little).min_greedy_agreement == 0


def test_a_divergence_above_its_tolerance_fails() -> None:
    reference = [answer([5], [-0.1], [{5: math.log(0.9), 6: math.log(0.1)}])]
    candidate = [answer([5], [-0.1], [{5: math.log(0.6), 6: math.log(0.4)}])]
    expected = 0.9 * math.log(0.9 / 0.6) + 0.1 * math.log(0.1 / 0.4)
    parity = compare("int4", reference, candidate, Tolerances(mean_kl=expected * 0.99))
    assert parity.mean_kl == pytest.approx(expected)
    assert parity.verdict == "FAIL" and "mean_kl" in parity.problems[0]
    assert compare("int4", reference, candidate, Tolerances(mean_kl=0.3)).verdict == "PASS"

"""The comparison of a form with the reference: figures and a verdict.

Every form (merged, quantized, ONNX, served ...) answers the prompts of the reference; this module
compares the answers. Log-probabilities are natural logarithms, in nats.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from pydantic import Field

from tuneline.core.config import StrictModel
from tuneline.core.messages import bare_answer
from tuneline.core.reference import Continuation
from tuneline.core.tolerances import Tolerances
from tuneline.core.verdict import Verdict

PARITY_FILE = "parity.json"


class Divergence(StrictModel):
    """The first place where an answer leaves the reference's."""

    prompt_index: int
    position: int
    """Index into the answer's tokens."""
    expected_text: str
    found_text: str
    expected_margin: float | None
    """By how many nats the reference preferred its own token to the found token; small if the two
    were nearly equally likely. None if the reference does not list the found token."""


class Parity(StrictModel):
    """A form compared with the reference."""

    form: str
    """`merged`, `served`, ..."""
    num_prompts: int
    num_prompts_with_equal_ids: int
    num_equal_answers: int
    num_other_texts: int = 0
    """Answers with the reference's tokens and another text: the tokenizer decodes differently.
    White space around them, and a character that is cut off at the end, do not count."""
    num_stopped: int | None = None
    """Answers of the reference that end by themselves; without one, stopping is not tested."""
    num_tokens: int
    """Tokens of the reference's answers."""
    longest_tokens: int | None = None
    """Tokens of the longest prompt with its answer. Rotary scaling and attention windows that act
    only at later positions are not tested."""
    num_agreeing_tokens: int
    """Of these, tokens before each answer's first divergence. The differences are over these and
    the reference's token at each divergence, where both have still seen the same context."""
    greedy_agreement: float
    token_agreement: float
    max_logprob_difference: float | None
    mean_logprob_difference: float | None
    """In nats; None if no token could be compared, which fails."""
    mean_kl: float | None
    """Mean Kullback-Leibler divergence from the reference to the form, over the most likely tokens
    that both report and one bucket for all others: a lower bound of the full one. In nats."""
    reference_noise: float | None = None
    """The largest difference, in nats, between two runs of the reference; None if not measured."""
    template_date: str | None = None
    """The day that the prompts have in place of today; None if the chat template writes no date."""
    num_expected_answers: int = 0
    """Prompts whose right answer the data gives."""
    reference_accuracy: float | None = None
    accuracy: float | None = None
    """Shares of right answers among these, without white space around them and without reasoning;
    None without any."""
    stated_weights: str | None = None
    """Number format of a server's weights as the caller states it, which chose the tolerances. None
    if Tuneline knows the weights itself."""
    sampling_defaults: dict[str, float] = Field(default={})
    """A server's defaults for sampling from the form's generation_config.json. The proof ignores
    them, because it compares plain greedy answers."""
    first_divergences: list[Divergence]
    problems: list[str]
    """Why the verdict is FAIL; empty on PASS."""
    verdict: Verdict


def compare(
    form: str,
    reference: Sequence[Continuation],
    candidate: Sequence[Continuation],
    tolerances: Tolerances,
    *,
    reference_noise: float | None = None,
    template_date: str | None = None,
) -> Parity:
    """Compare a form's greedy answers with the reference's, prompt by prompt.

    Log-probabilities are compared on the tokens up to an answer's first divergence and on the
    reference's own token there, because both sides have seen the same context up to that place. An
    answer is right if it equals the expected answer in the reference.

    Args:
        reference_noise: The difference of two runs of the reference, in nats, for the report.
        template_date: The day that the reference's prompts have in place of today.

    Raises:
        ValueError: The two have no prompts, or different numbers of prompts.
    """
    if not reference or len(reference) != len(candidate):
        raise ValueError(f"{len(candidate)} candidates for {len(reference)} reference prompts")
    # Over 60 lines: one pass gathers every figure, and one call lists them all by name.
    equal_ids = equal_answers = other_texts = agreeing = 0
    differences: list[float] = []
    divergences_kl: list[float] = []
    first_divergences = []
    for index, (expected, found) in enumerate(zip(reference, candidate, strict=True)):
        equal_ids += expected.prompt_token_ids == found.prompt_token_ids
        common = _common_prefix(expected.token_ids, found.token_ids)
        agreeing += common
        differences += [
            abs(a - b)
            for a, b in zip(expected.logprobs[:common], found.logprobs[:common], strict=True)
        ]
        divergences_kl += [
            _bucketed_kl(p, q)
            for p, q in zip(
                expected.top_logprobs[:common], found.top_logprobs[:common], strict=False
            )
        ]
        if common < min(len(expected.token_ids), len(found.token_ids)):
            difference, divergence_kl = _at_divergence(common, expected, found)
            differences.append(difference)
            divergences_kl.append(divergence_kl)
        if expected.token_ids == found.token_ids:
            equal_answers += 1
            other_texts += _readable(expected.text) != _readable(found.text)
        else:
            first_divergences.append(_divergence(index, common, expected, found))
    num_tokens = sum(len(continuation.token_ids) for continuation in reference)
    judged = [
        (bare_answer(expected.expected), bare_answer(expected.text), bare_answer(found.text))
        for expected, found in zip(reference, candidate, strict=True)
        if expected.expected is not None
    ]
    parity = Parity(
        form=form,
        num_prompts=len(reference),
        num_prompts_with_equal_ids=equal_ids,
        num_equal_answers=equal_answers,
        num_other_texts=other_texts,
        num_stopped=sum(one.finish_reason == "stop" for one in reference),
        num_tokens=num_tokens,
        longest_tokens=max(len(one.prompt_token_ids) + len(one.token_ids) for one in reference),
        num_agreeing_tokens=agreeing,
        greedy_agreement=equal_answers / len(reference),
        token_agreement=agreeing / num_tokens,
        max_logprob_difference=_finite(max(differences, key=_nan_first, default=math.inf)),
        mean_logprob_difference=_mean(differences),
        mean_kl=_mean(divergences_kl),
        reference_noise=reference_noise,
        template_date=template_date,
        num_expected_answers=len(judged),
        reference_accuracy=_share([right == own for right, own, _ in judged]),
        accuracy=_share([right == answer for right, _, answer in judged]),
        first_divergences=first_divergences,
        problems=[],
        verdict=Verdict.PASS,
    )
    problems = parity_problems(parity, tolerances)
    return parity.model_copy(
        update={"problems": problems, "verdict": Verdict.FAIL if problems else Verdict.PASS}
    )


def parity_problems(parity: Parity, tolerances: Tolerances) -> list[str]:
    """Return why a parity's figures are outside the tolerances; empty if none is."""
    problems = []
    different = parity.num_prompts - parity.num_prompts_with_equal_ids
    if different:
        problems.append(
            f"{different} of {parity.num_prompts} prompts have other token ids: the chat template "
            "or the tokenizer differs"
            + (
                f", or the template writes another day than {parity.template_date}, the reference's"
                if parity.template_date is not None
                else ""
            )
        )
    if parity.num_other_texts:
        problems.append(
            f"{parity.num_other_texts} answers have the reference's tokens and another text: the "
            "tokenizer decodes differently"
        )
    for name in ("max_logprob_difference", "mean_logprob_difference", "mean_kl"):
        found, allowed = getattr(parity, name), getattr(tolerances, name)
        if allowed is not None and (found is None or found > allowed):
            problems.append(f"{name} is {nats(found)}; expected at most {allowed:g} nats")
    for name in ("greedy_agreement", "token_agreement"):
        share, required = getattr(parity, name), getattr(tolerances, f"min_{name}")
        if required is not None and share < required:
            problems.append(f"{name} is {share:.4f}; expected at least {required:g}")
    drop = tolerances.max_accuracy_drop
    if drop is not None and parity.accuracy is not None and parity.reference_accuracy is not None:
        # A comparison in whole answers is free of rounding.
        lost = round((parity.reference_accuracy - parity.accuracy) * parity.num_expected_answers)
        if lost > drop * parity.num_expected_answers:
            problems.append(
                f"accuracy is {parity.accuracy:.4f}, the trained model's is "
                f"{parity.reference_accuracy:.4f}; expected a drop of at most {drop:g}"
            )
    return problems


def _readable(text: str) -> str:
    """Return an answer without a half character at its end, which a server leaves out."""
    return text.strip().rstrip("\ufffd").rstrip()


def _share(flags: Sequence[bool]) -> float | None:
    return sum(flags) / len(flags) if flags else None


def _mean(values: Sequence[float]) -> float | None:
    return _finite(sum(values) / len(values)) if values else None


def _nan_first(value: float) -> float:
    """Return a key for max(), which would ignore NaN."""
    return math.inf if math.isnan(value) else value


def _finite(value: float) -> float | None:
    """Return None for a value that JSON cannot write: infinite or NaN."""
    return value if math.isfinite(value) else None


def nats(value: float | None) -> str:
    """Return a difference for people: `0.0012 nats`."""
    return "unknown" if value is None else f"{value:.2g} nats"


def _divergence(
    index: int, position: int, expected: Continuation, found: Continuation
) -> Divergence:
    margin = None
    if position < min(len(expected.token_ids), len(found.token_ids), len(expected.top_logprobs)):
        rival = expected.top_logprobs[position].get(found.token_ids[position])
        margin = None if rival is None else expected.logprobs[position] - rival
    start = len(_common_text(expected.text, found.text))
    return Divergence(
        prompt_index=index,
        position=position,
        expected_text=expected.text[start : start + 40] or "(the end)",
        found_text=found.text[start : start + 40] or "(the end)",
        expected_margin=margin,
    )


def _at_divergence(
    position: int, expected: Continuation, found: Continuation
) -> tuple[float, float]:
    """Return the difference of the log-probabilities of the reference's token at a divergence, and
    the KL divergence there. If the form does not list that token, both are lower bounds."""
    token, own = expected.token_ids[position], expected.logprobs[position]
    ranked = {found.token_ids[position]: found.logprobs[position]}
    if position < len(found.top_logprobs):
        ranked |= found.top_logprobs[position]
    if math.isnan(sum(ranked.values())):
        return math.nan, math.nan
    divergence_kl = 0.0
    if position < len(expected.top_logprobs):
        divergence_kl = _bucketed_kl(expected.top_logprobs[position], ranked)
    if token in ranked:
        return abs(own - ranked[token]), divergence_kl
    # An unlisted token is at most as likely as the last listed token, and as all others together.
    rest = max(1.0 - sum(math.exp(logprob) for logprob in ranked.values()), 1e-12)
    at_most = min(own, math.log(rest), *ranked.values())
    return own - at_most, max(divergence_kl, _bucketed_kl({token: own}, {token: at_most}))


def _bucketed_kl(p: dict[int, float], q: dict[int, float]) -> float:
    """Return the sum of p·ln(p/q) over common tokens and one bucket for the rest, a lower bound of
    the KL divergence by the data-processing inequality."""
    common = p.keys() & q.keys()
    total = sum(math.exp(p[token]) * (p[token] - q[token]) for token in common)
    rest_p = max(1.0 - sum(math.exp(p[token]) for token in common), 0.0)
    rest_q = max(1.0 - sum(math.exp(q[token]) for token in common), 1e-12)
    return max(total + (rest_p * math.log(rest_p / rest_q) if rest_p > 1e-12 else 0.0), 0.0)


def _common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    for position, (left, right) in enumerate(zip(a, b, strict=False)):
        if left != right:
            return position
    return min(len(a), len(b))


def _common_text(a: str, b: str) -> str:
    length = 0
    while length < min(len(a), len(b)) and a[length] == b[length]:
        length += 1
    return a[:length]

"""Signatures against datasketch's own, and pairs against all pairs."""

from __future__ import annotations

import itertools
import random
import tracemalloc

import numpy as np
import pytest
from datasketch import MinHash
from hypothesis import given, settings
from hypothesis import strategies as st

from training.data.checks.minhash import (
    COMMON_BITS,
    NUM_PERMUTATIONS,
    band_shape,
    bands_of,
    candidate_pairs,
    find_common,
    jaccard,
    own_shingles,
    shingles,
    signature,
)


def test_a_signature_equals_that_of_datasketch() -> None:
    found = shingles("The router restarts when the power supply is too weak.")
    theirs = MinHash(num_perm=NUM_PERMUTATIONS, seed=1, hashfunc=int)
    theirs.update_batch(found.tolist())
    assert len(found) > 20
    assert np.array_equal(signature(found), theirs.hashvalues)


def test_datasketch_chooses_25_bands_of_5_at_a_half() -> None:
    assert band_shape() == (25, 5)


@settings(derandomize=True, max_examples=200, deadline=None)
@given(st.text(max_size=60), st.text(max_size=60))
def test_jaccard_equals_that_of_the_sets_of_substrings(first: str, second: str) -> None:
    def substrings(text: str) -> set[str]:
        normal = " ".join(text.casefold().split())
        width = min(8, len(normal))
        return {normal[i : i + width] for i in range(len(normal) - width + 1)} - {""}

    one, other = substrings(first), substrings(second)
    union = one | other
    expected = len(one & other) / len(union) if union else 1.0
    measured = jaccard(set(shingles(first).tolist()), set(shingles(second).tolist()))
    assert measured == pytest.approx(expected)


def test_every_similar_pair_of_generated_texts_is_a_candidate() -> None:
    generator = random.Random(1)
    words = ["".join(generator.choices("abcdefghij", k=6)) for _ in range(400)]
    texts = [" ".join(generator.choices(words, k=60)) for _ in range(60)]
    texts += [text.replace(text.split()[10], "another") for text in texts[:30]]
    sets = [set(shingles(text).tolist()) for text in texts]
    similar = {
        (i, j)
        for i, j in itertools.combinations(range(len(texts)), 2)
        if jaccard(sets[i], sets[j]) >= 0.8
    }
    bands = bands_of(np.stack([signature(shingles(text)) for text in texts]))
    pairs = {tuple(pair) for pair in candidate_pairs(bands, np.arange(len(texts))).tolist()}
    assert len(similar) == 30
    assert similar <= pairs
    assert len(pairs) < 60


def test_a_big_bucket_gives_few_pairs_and_ties_every_text() -> None:
    bands = np.zeros((1000, 25), dtype=np.uint32)
    pairs = candidate_pairs(bands, np.arange(1000))
    assert set(pairs[:, 1].tolist()) == set(range(1, 1000))
    assert len(pairs) < 6000


def test_pairs_of_two_sides_are_on_different_sides() -> None:
    sides = np.arange(1000) >= 990
    pairs = candidate_pairs(np.zeros((1000, 25), dtype=np.uint32), np.arange(1000), sides)
    assert set(pairs[:, 0].tolist()) == set(range(990))
    assert (sides[pairs[:, 0]] != sides[pairs[:, 1]]).all()


def test_shingles_of_a_shared_instruction_are_common() -> None:
    instruction = "Read the ticket below and name its category. "
    texts = [instruction + f"Number {n * 7919**5}" for n in range(200)]
    common = find_common([shingles(text) for text in texts])
    assert len(own_shingles(texts[5], common)) < 30
    assert len(own_shingles(instruction, common)) == len(shingles(instruction))


def test_the_pairs_of_all_bands_are_not_in_memory_at_once() -> None:
    template = "Please answer the customer {} who asks when the printer of the third floor arrives."
    nothing = np.zeros(1 << COMMON_BITS, dtype=np.bool_)
    texts = [template.format(f"name{number:04}") for number in range(600)]
    bands = bands_of(np.stack([signature(own_shingles(text, nothing)) for text in texts]))
    tracemalloc.start()
    pairs = candidate_pairs(bands, np.arange(len(bands)))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(pairs) > 10 * len(texts)
    assert peak < 4 * pairs.nbytes

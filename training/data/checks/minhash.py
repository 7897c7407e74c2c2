"""Similar texts: MinHash signatures by datasketch's permutations, kept as a few bytes per text.

A text is the set of its runs of eight characters (shingles). The Jaccard similarity of two texts is
the share of shingles that both have. A signature's bands are equal for similar texts with the
probability 1 - (1 - s^r)^b (Leskovec, Rajaraman, Ullman: Mining of Massive Datasets, 3.4).
datasketch chooses b and r for a threshold of 0.5, well below the similarity that is asked for, and
every candidate pair is then compared by its true similarity.
"""

from __future__ import annotations

from collections.abc import Set
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from training.data.checks.texts import seen_text

Shingles = npt.NDArray[np.uint32]
Bands = npt.NDArray[np.uint32]

SHINGLE_LENGTH = 8
NUM_PERMUTATIONS = 128
LSH_THRESHOLD = 0.5
# Shingles whose permutations are computed at once.
BLOCK = 192
# In a bucket with more texts than this, each text is paired with the first ones and its neighbours
# only: the pairs of a bucket of thousands would not end.
MAX_ALL_PAIRS = 12
NUM_LEADERS = 4
# Entries of the table of common shingles; a shingle is looked up by its highest bits.
COMMON_BITS = 20
# A shingle that this share of all texts has is common: the words of a shared instruction.
COMMON_SHARE = 0.3
MIN_TEXTS_FOR_COMMON = 100
# With fewer shingles of its own, a text is compared by all its shingles.
MIN_OWN_SHINGLES = 8


def shingles(text: str) -> Shingles:
    """Return the hashes of a text's shingles, with repeats.

    Case, spacing, and the width and Unicode form of characters do not count. A text of fewer than
    eight characters has shingles of four, two or one.
    """
    normal = " ".join(seen_text(text).casefold().split())
    codes = np.frombuffer(normal.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    if not len(codes):
        return codes
    hashes = codes * np.uint32(0x9E3779B1)
    # Runs of 2, 4 and 8: each is made of two runs of half the length.
    width = 1
    while width < SHINGLE_LENGTH and len(hashes) > width:
        hashes = (hashes[:-width] ^ (hashes[:-width] >> np.uint32(15))) * np.uint32(0x85EBCA6B) + (
            hashes[width:] * np.uint32(0xC2B2AE35)
        )
        width *= 2
    return hashes ^ (hashes >> np.uint32(13))


def find_common(texts: list[Shingles]) -> npt.NDArray[np.bool_]:
    """Return the table of the shingles that many texts of a sample have."""
    table = np.zeros(1 << COMMON_BITS, dtype=np.bool_)
    if len(texts) >= MIN_TEXTS_FOR_COMMON:
        distinct = np.concatenate([np.unique(text) for text in texts])
        found, counts = np.unique(distinct, return_counts=True)
        table[found[counts > COMMON_SHARE * len(texts)] >> np.uint32(32 - COMMON_BITS)] = True
    return table


def own_shingles(text: str, common: npt.NDArray[np.bool_]) -> Shingles:
    """Return the shingles of a text that are not common, or all if few are its own."""
    found = shingles(text)
    own = found[~common[found >> np.uint32(32 - COMMON_BITS)]]
    return own if len(own) >= MIN_OWN_SHINGLES else found


def signature(found: Shingles) -> npt.NDArray[np.uint32]:
    """Return the MinHash of a set of shingles, equal to datasketch's for the same hashes."""
    scale, shift = _permutations()
    if not len(found):
        return np.full(NUM_PERMUTATIONS, 0xFFFFFFFF, dtype=np.uint32)
    mixed = _mixed(found)
    # Small blocks stay in the processor's cache.
    blocks = [
        (scale * mixed[start : start + BLOCK] + shift).min(axis=1)
        for start in range(0, len(mixed), BLOCK)
    ]
    least: npt.NDArray[np.uint32] = np.minimum.reduce(blocks)
    return least


def bands_of(signatures: npt.NDArray[np.uint32]) -> Bands:
    """Return the hash of each band of each signature: [n, permutations] -> [n, bands]."""
    num_bands, num_rows = band_shape()
    shaped = signatures[:, : num_bands * num_rows].reshape(len(signatures), num_bands, num_rows)
    hashes = np.zeros(shaped.shape[:2], dtype=np.uint64)
    for row in range(num_rows):
        hashes = (hashes ^ shaped[:, :, row]) * np.uint64(0x9E3779B97F4A7C15)
        hashes ^= hashes >> np.uint64(29)
    return (hashes >> np.uint64(32)).astype(np.uint32)


def candidate_pairs(
    bands: Bands, members: npt.NDArray[np.int64], sides: npt.NDArray[np.bool_] | None = None
) -> npt.NDArray[np.int64]:
    """Return the pairs of members that share a band, the earlier first: [n, 2], each pair once.

    Args:
        bands: The bands of all texts.
        members: The indices of the texts to compare, in ascending order.
        sides: Only pairs of texts on different sides are returned: for each text, its side.
    """
    codes = np.zeros(0, dtype=np.uint64)
    size = np.uint64(len(bands))
    for band in range(bands.shape[1]):
        values = bands[members, band]
        order = np.argsort(values, kind="stable")
        ranked = values[order]
        starts = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])
        sizes = np.diff(np.r_[starts, len(ranked)])
        # Most buckets have two texts; their pairs need no loop.
        twos = starts[sizes == 2]
        pairs = [np.stack([order[twos], order[twos + 1]], axis=1)]
        for start, length in zip(starts[sizes > 2], sizes[sizes > 2], strict=True):
            pairs.append(_pairs_of_bucket(order[start : start + length], members, sides))
        both = members[np.concatenate(pairs)]
        if sides is not None:
            both = both[sides[both[:, 0]] != sides[both[:, 1]]]
        first, second = both.min(axis=1).astype(np.uint64), both.max(axis=1).astype(np.uint64)
        # Similar rows share many bands; the pairs of all bands together would be ten times as many.
        codes = np.union1d(codes, first * size + second)
    return np.stack([codes // size, codes % size], axis=1).astype(np.int64)


def _pairs_of_bucket(
    bucket: npt.NDArray[np.int64],
    members: npt.NDArray[np.int64],
    sides: npt.NDArray[np.bool_] | None,
) -> npt.NDArray[np.int64]:
    """Return pairs of positions in a bucket, which is in ascending order."""
    if len(bucket) <= MAX_ALL_PAIRS:
        first, second = np.triu_indices(len(bucket), 1)
        return np.stack([bucket[first], bucket[second]], axis=1)
    leaders = bucket[:NUM_LEADERS]
    if sides is not None:
        of_bucket = sides[members[bucket]]
        leaders = np.r_[bucket[of_bucket][:NUM_LEADERS], bucket[~of_bucket][:NUM_LEADERS]]
    parts = [np.stack([bucket[:-1], bucket[1:]], axis=1)]
    for leader in leaders:
        others = bucket[bucket != leader]
        parts.append(np.stack([np.full(len(others), leader), others], axis=1))
    return np.concatenate(parts)


def jaccard(first: Set[int], second: Set[int]) -> float:
    """Return the share of two sets' shingles that both have; 1 for two empty sets."""
    common = len(first & second)
    union = len(first) + len(second) - common
    return common / union if union else 1.0


@lru_cache(maxsize=1)
def band_shape() -> tuple[int, int]:
    """Return the numbers of bands and of rows per band that datasketch chooses."""
    from datasketch import MinHashLSH

    index = MinHashLSH(threshold=LSH_THRESHOLD, num_perm=NUM_PERMUTATIONS)
    return index.b, index.r


@lru_cache(maxsize=1)
def _permutations() -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint32]]:
    from datasketch import MinHash

    scale, shift = MinHash(num_perm=NUM_PERMUTATIONS, seed=1).permutations
    return np.ascontiguousarray(scale)[:, None], np.ascontiguousarray(shift)[:, None]


def _mixed(hashes: Shingles) -> Shingles:
    """Return the hashes through MurmurHash3's finalizer, as datasketch mixes them."""
    hashes = hashes ^ (hashes >> np.uint32(16))
    hashes = hashes * np.uint32(0x85EBCA6B)
    hashes = hashes ^ (hashes >> np.uint32(13))
    hashes = hashes * np.uint32(0xC2B2AE35)
    return hashes ^ (hashes >> np.uint32(16))

"""The file of a long run's records: what goes in comes out, and damage ends it, not the reader."""

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtest.client.records import Records, concatenate
from loadtest.client.spill import SpillFile, decode_chunk, encode_chunk, read_chunks
from tests.unit.loadtest.made_records import made_records


def assert_equal(found: Records, expected: Records) -> None:
    for field in fields(Records):
        left, right = getattr(found, field.name), getattr(expected, field.name)
        assert left.shape == right.shape, field.name
        if right.dtype.kind == "f":
            # Times are kept to a microsecond between events, and to a nanosecond elsewhere.
            np.testing.assert_allclose(left, right, atol=1.01e-6, err_msg=field.name)
        else:
            np.testing.assert_array_equal(left, right, err_msg=field.name)


def written(path: Path, parts: list[Records]) -> Path:
    file = SpillFile(path)
    for part in parts:
        assert file.append(part)
    file.close()
    assert not file.reserve.exists()
    return path


@given(
    num=st.integers(0, 40),
    seed=st.integers(0, 10),
    failed=st.floats(0, 1),
    tokens=st.integers(1, 9),
)
@settings(derandomize=True, max_examples=50, deadline=None)
def test_a_chunk_holds_its_records(num: int, seed: int, failed: float, tokens: int) -> None:
    records = made_records(num, seed=seed, failed=failed, tokens=tokens, num_warmup=2)
    # A request that ended before its first byte.
    for name in ("first_byte_s", "first_token_s", "last_token_s", "tokens"):
        getattr(records, name)[records.state == 1] = np.nan
    silent = records.select(records.state == 1).without_events()
    whole = concatenate([silent, records.select(records.state != 1), silent])
    (found,) = [decode_chunk(encode_chunk(whole)[12:])]
    assert_equal(found, whole)


def test_a_file_that_is_cut_anywhere_keeps_its_whole_chunks(tmp_path: Path) -> None:
    parts = [made_records(5, seed=seed) for seed in range(4)]
    path = written(tmp_path / "records-x.0.spill", parts)
    data = path.read_bytes()
    ends = np.cumsum([len(encode_chunk(part)) for part in parts])
    assert ends[-1] == len(data)
    for cut in range(0, len(data), 37):
        path.write_bytes(data[:cut])
        found = list(read_chunks(path))
        assert len(found) == int(np.sum(ends <= cut))
        for left, right in zip(found, parts, strict=False):
            assert_equal(left, right)


@given(place=st.integers(0, 10_000), value=st.integers(0, 255))
@settings(derandomize=True, max_examples=60, deadline=None)
def test_a_changed_byte_ends_the_reading_and_raises_nothing(
    tmp_path_factory: pytest.TempPathFactory, place: int, value: int
) -> None:
    folder = tmp_path_factory.mktemp("spill")
    path = written(folder / "records-x.0.spill", [made_records(5), made_records(5, seed=1)])
    data = bytearray(path.read_bytes())
    place %= len(data)
    is_same = data[place] == value
    data[place] = value
    path.write_bytes(data)
    assert len(list(read_chunks(path))) == 2 if is_same else len(list(read_chunks(path))) < 2


@given(payload=st.binary(max_size=200))
@settings(derandomize=True, max_examples=200, deadline=None)
def test_foreign_bytes_are_no_chunk(payload: bytes) -> None:
    with pytest.raises(ValueError, match="chunk"):
        decode_chunk(payload)


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "records-x.0.spill"
    path.symlink_to("/dev/full")
    file = SpillFile(path)
    assert not file.append(made_records(5))
    assert file.is_full
    assert not file.append(made_records(5))
    assert not file.reserve.exists()
    file.close()

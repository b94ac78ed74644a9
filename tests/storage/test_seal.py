"""Every flipped bit, every cut and every foreign file is noticed when a file of ours is read."""

from __future__ import annotations

import random
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq
import pytest
import torch
from upath import UPath

from forvalue_dagster.storage.feature_store import FeatureStore
from forvalue_dagster.storage.location import Storage
from forvalue_dagster.storage.parquet import scan_table, write_table
from forvalue_dagster.storage.parts import StoredParts
from forvalue_dagster.storage.seal import DamagedFileError, check_parquet
from forvalue_dagster.storage.tensors import TensorFile, load_tensors, write_tensors

ROWS = pl.DataFrame(
    {
        "sample_id": [f"{n:032x}" for n in range(60)],
        "value": [n / 7 for n in range(60)],
        "hidden": [bytes([n, 255 - n]) * 9 for n in range(60)],
    }
)


def table(path: UPath) -> str:
    return write_table(path, ROWS)


def lazy(path: UPath) -> str:
    return write_table(path, ROWS.lazy())


def parts(path: UPath) -> str:
    stored = StoredParts(UPath(path.parent / "parts"))
    for key in ("a", "b"):
        stored.save(key, ROWS, "9,1")
    return write_table(path, stored)


def read_table(path: UPath) -> Any:
    return scan_table(Storage(base_dir=str(path.parent)), path).collect()


def tensors(path: UPath) -> str:
    return write_tensors(path, TensorFile({"g": torch.arange(40.0)}, {"identity": "x", "n": 1}))


def read_tensors(path: UPath) -> Any:
    return load_tensors(path)


KINDS = [(table, read_table), (lazy, read_table), (parts, read_table), (tensors, read_tensors)]


@pytest.mark.parametrize(("write", "read"), KINDS)
def test_no_flipped_bit_is_silent(
    write: Callable[[UPath], str], read: Callable[[UPath], Any], tmp_path: Path
) -> None:
    path = UPath(tmp_path / "file")
    digest = write(path)
    whole = path.read_bytes()
    assert digest == sha256(whole).hexdigest()
    read(path)
    generator = random.Random(5)
    # The seal, the footer and the header are the places to get wrong.
    ends = [*range(16), *range(len(whole) - 200, len(whole))]
    places = [*ends, *(generator.randrange(len(whole)) for _ in range(250))]
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << generator.randrange(8)
        path.write_bytes(bytes(damaged))
        with pytest.raises(DamagedFileError, match="Materialise it again"):
            read(path)


@pytest.mark.parametrize(("write", "read"), KINDS)
@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.99])
def test_a_file_that_was_cut(
    write: Callable[[UPath], str], read: Callable[[UPath], Any], share: float, tmp_path: Path
) -> None:
    path = UPath(tmp_path / "file")
    write(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(DamagedFileError):
        read(path)


def test_a_file_that_something_else_wrote(tmp_path: Path) -> None:
    path = UPath(tmp_path / "file")
    ROWS.write_parquet(path.path)
    with pytest.raises(DamagedFileError, match="carries no seal"):
        read_table(path)


def test_other_readers_do_not_mind_the_seal(tmp_path: Path) -> None:
    path = UPath(tmp_path / "file")
    write_table(path, ROWS)
    assert pl.read_parquet(path.path).equals(ROWS)
    assert pl.DataFrame(pq.read_table(path.path)).equals(ROWS)
    assert pq.read_metadata(path.path).num_rows == len(ROWS)


def test_damaged_features_are_not_used_again(tmp_path: Path) -> None:
    path = UPath(tmp_path / "shard.parquet")
    lines = ROWS.with_columns(fingerprint=pl.lit("m"), reason=pl.lit(None, pl.String))
    write_table(path, lines)
    store = FeatureStore(Storage(base_dir=str(tmp_path)), UPath(tmp_path))
    assert sum(len(part) for part in store.lines("m", ROWS["sample_id"])) == len(ROWS)
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(bytes(damaged))
    assert list(store.lines("m", ROWS["sample_id"])) == []


def test_a_damaged_part_is_made_again(tmp_path: Path) -> None:
    stored = StoredParts(UPath(tmp_path / "parts"))
    stored.save("a", ROWS, "9,1")
    path = tmp_path / "parts" / "attempt" / "a.parquet"
    damaged = bytearray(path.read_bytes())
    damaged[99] ^= 4
    path.write_bytes(bytes(damaged))
    assert StoredParts(UPath(tmp_path / "parts"), "next").load("a") is None
    with pytest.raises(DamagedFileError):
        list(stored.frames())


def test_the_digest_is_of_the_file(tmp_path: Path) -> None:
    path = UPath(tmp_path / "file")
    assert write_table(path, ROWS) == check_parquet(path) == sha256(path.read_bytes()).hexdigest()

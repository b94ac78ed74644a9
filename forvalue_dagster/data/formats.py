"""The file formats that hold rows, one entry for each, with its reader."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TypeAlias

import polars as pl

from forvalue_dagster.data.files import COMPRESSED, DataFileError, ReadLimits, SourceRow
from forvalue_dagster.data.json_files import read_json, read_json_lines
from forvalue_dagster.data.tables import (
    read_arrow,
    read_csv,
    read_parquet,
    read_saved_dataset,
    read_tsv,
)

Reader: TypeAlias = Callable[[Path, ReadLimits], "pl.DataFrame | Iterator[SourceRow]"]


@dataclass(frozen=True)
class FileFormat:
    """A kind of file that holds rows.

    Attributes:
        name: its usual name.
        suffixes: suffixes of its files, in lower case; files may have them in any case.
        rows: the part of the file that is a row.
        read: function that returns its rows, as a table or one by one.
    """

    name: str
    suffixes: tuple[str, ...]
    rows: str
    read: Reader


def _each(*suffixes: str) -> tuple[str, ...]:
    return tuple(suffix + compressed for suffix in suffixes for compressed in COMPRESSED)


# If two files of a folder have the same shard name, the format listed first is used.
FORMATS = (
    FileFormat(
        "JSON Lines",
        _each(".jsonl", ".ndjson"),
        "an object on each line; also an array, or objects that are broken over lines",
        read_json_lines,
    ),
    FileFormat("Parquet", (".parquet",), "a row of the table", read_parquet),
    FileFormat(
        "JSON",
        _each(".json"),
        "an object in an array, under one key such as `data`, or on each line",
        read_json,
    ),
    FileFormat(
        "CSV",
        _each(".csv"),
        "a line below the names of the columns, all text; an empty cell is absent",
        read_csv,
    ),
    FileFormat("TSV", _each(".tsv"), "as in CSV, between tabs", read_tsv),
    FileFormat("Arrow", (".arrow", ".feather"), "a row of the table", read_arrow),
)
SUFFIXES = tuple(suffix for known in FORMATS for suffix in known.suffixes)
SAVED_DATASET = "state.json"
DATASET_DICT = "dataset_dict.json"
# Files that describe data and hold no rows.
DESCRIPTIONS = frozenset((SAVED_DATASET, DATASET_DICT, "dataset_info.json", "dataset_infos.json"))


def format_of(name: str) -> FileFormat | None:
    """Return the format of a file by its name, or None."""
    if name in DESCRIPTIONS:
        return None
    lower = name.lower()
    return next((known for known in FORMATS if lower.endswith(known.suffixes)), None)


def stem(path: PurePath) -> str:
    """Return a name without the suffixes of a data file."""
    for suffix in sorted(SUFFIXES, key=len, reverse=True):
        if path.name.lower().endswith(suffix):
            return path.name[: -len(suffix)]
    return path.name


def read_file(path: Path, limits: ReadLimits) -> pl.DataFrame | Iterator[SourceRow]:
    """Read a data file or a dataset that was saved by Hugging Face.

    Raises:
        DataFileError: if its format is unknown, or it is damaged.
    """
    if path.is_dir():
        return read_saved_dataset(path, limits)
    known = format_of(path.name)
    if known is None:
        raise not_a_data_file(path)
    return known.read(path, limits)


def not_a_data_file(path: Path) -> DataFileError:
    """Return the error for a file of an unknown format."""
    return DataFileError(
        f"{path} is no data file; expected one of {', '.join(SUFFIXES)}, or a folder of them or "
        "written by datasets' save_to_disk."
    )

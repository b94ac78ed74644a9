"""Data files as a stream of source rows: JSON Lines, Parquet, and saved Arrow datasets."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import IO, Any, cast

import polars as pl

JSON_LINES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".ndjson", ".ndjson.gz", ".ndjson.zst")
PARQUET = (".parquet",)
SUFFIXES = (*JSON_LINES, *PARQUET)


class DataFileError(ValueError):
    """A data file cannot be read; the message names the file, what was expected and what to do."""


@dataclass(frozen=True)
class SourceRow:
    """One row as the file has it.

    Attributes:
        row: number in the file, from 0 (a JSON Lines file's line − 1).
        values: the row's columns; None if it could not be parsed.
        text: the line verbatim, for JSON Lines.
        problem: why it could not be parsed, or None.
    """

    row: int
    values: dict[str, Any] | None
    text: str | None = None
    problem: str | None = None


def is_data_file(path: Path) -> bool:
    """Whether `path` is something `read_json_lines` or `read_table` reads, judged by its name."""
    return path.name.endswith(SUFFIXES) or is_saved_dataset(path)


def is_saved_dataset(path: Path) -> bool:
    """Whether `path` is a directory written by Hugging Face `Dataset.save_to_disk`."""
    return (path / "state.json").is_file()


def data_file_stem(path: PurePath) -> str:
    """Return the name without the suffixes of a data file."""
    for suffix in sorted(SUFFIXES, key=len, reverse=True):
        if path.name.endswith(suffix):
            return path.name.removesuffix(suffix)
    return path.name


def data_files(path: Path) -> list[Path]:
    """Return the data files that `path` stands for: itself, or those directly inside a folder.

    Raises:
        DataFileError: if it is absent, a file of another kind, or several datasets in one.
    """
    if not path.exists():
        raise DataFileError(f"{path} does not exist; expected a data file or a folder of them.")
    if is_data_file(path):
        return [path]
    if (path / "dataset_dict.json").is_file():
        raise DataFileError(
            f"{path} is a DatasetDict; expected one dataset. Name one of its splits, a folder "
            "inside it."
        )
    if not path.is_dir():
        raise DataFileError(
            f"{path} is no data file; expected one of {', '.join(SUFFIXES)}, or a folder written "
            "by datasets' save_to_disk."
        )
    return sorted(child for child in path.iterdir() if is_data_file(child))


def read_json_lines(path: Path) -> Iterator[SourceRow]:
    """Yield the rows of a JSON Lines file, plain, .gz or .zst; blank lines are no rows.

    Raises:
        DataFileError: if the compressed stream itself is damaged.
    """
    number = 0
    try:
        with closing(_open(path)) as stream:
            for number, line in enumerate(stream, start=1):
                if line.strip():
                    yield _parse_line(number - 1, line)
    except (EOFError, gzip.BadGzipFile, zlib.error, _zstd_error()) as error:
        raise DataFileError(
            f"{path}: the compressed stream is damaged after line {number} ({error}); expected a "
            "complete file. Write it again."
        ) from error


def read_table(path: Path) -> pl.DataFrame:
    """Read a Parquet file or a saved Arrow dataset.

    Raises:
        DataFileError: if it is damaged.
    """
    try:
        return _read_saved_dataset(path) if path.is_dir() else pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError, ValueError) as error:
        raise DataFileError(
            f"{path}: not readable as {'an Arrow dataset' if path.is_dir() else 'Parquet'} "
            f"({error}); write it again."
        ) from error


def _parse_line(row: int, line: bytes) -> SourceRow:
    try:
        text = line.decode("utf-8-sig" if row == 0 else "utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        return SourceRow(row, None, None, f"byte {error.start} is not UTF-8; re-encode the file")
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        # json's message names the place, not the text.
        return SourceRow(row, None, text, f"not JSON ({error}); expected one object a line")
    if not isinstance(values, dict):
        kind = type(values).__name__
        return SourceRow(row, None, text, f"a JSON {kind}; expected an object with named columns")
    return SourceRow(row, values, text)


def _open(path: Path) -> IO[bytes]:
    if path.name.endswith(".gz"):
        return cast("IO[bytes]", gzip.open(path, "rb"))
    if path.name.endswith(".zst"):
        import io

        return io.BufferedReader(_zstandard().ZstdDecompressor().stream_reader(path.open("rb")))
    return path.open("rb")


def _zstandard() -> Any:
    try:
        import zstandard
    except ImportError as error:
        raise DataFileError(
            "Reading .zst files needs the zstandard package: pip install 'forvalue-dagster[zstd]'."
        ) from error
    return zstandard


def _zstd_error() -> type[Exception]:
    try:
        import zstandard
    except ImportError:
        return gzip.BadGzipFile
    return cast("type[Exception]", zstandard.ZstdError)


def _read_saved_dataset(path: Path) -> pl.DataFrame:
    """Read the Arrow streams that a saved dataset's state names, in its order."""
    import pyarrow as pa

    state = json.loads((path / "state.json").read_text("utf-8"))
    tables = []
    for entry in state["_data_files"]:
        file = path / entry["filename"]
        # The state is data like any other: it may not point outside its folder.
        if file.resolve().parent != path.resolve():
            raise ValueError(f"state.json names {entry['filename']!r}, outside the dataset")
        with pa.memory_map(str(file)) as source:
            tables.append(pa.ipc.open_stream(source).read_all())
    frame = pl.from_arrow(pa.concat_tables(tables))
    if not isinstance(frame, pl.DataFrame):
        raise ValueError("the dataset has no columns")
    return frame
